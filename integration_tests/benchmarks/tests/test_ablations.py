"""What the ablations vary is what they say."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from integration_tests.benchmarks import ablations, other_data, page, plots, surrogate
from integration_tests.benchmarks.ablations import ABLATIONS, Ground
from integration_tests.benchmarks.published import Published
from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.subjects import SUBJECTS, Few
from sbc_plugin import Calibration, calibrate
from sbc_plugin.core.kernels import delta


@pytest.fixture(scope="module")
def ground() -> Ground:
    subject = SUBJECTS["digits"]
    data = subject.parts(0)
    small = SimpleNamespace(training=data.training, calibration=data.calibration.subset(slice(0, 40)), test=data.test)
    return Ground(replace(subject, parts=lambda seed: small), 0)


def hessians(ground: Ground, change: object = None) -> dict[str, torch.Tensor]:
    batches = ground.parts.calibration.batches(20)
    method = Published(ground.dense, batches) if change is None else Published(ground.dense, batches, change=change)
    method.calibrate()
    return method.hessians


def test_a_kernel_of_one_step_is_the_baseline(ground: Ground) -> None:
    batches = ground.parts.calibration.batches(20)
    plain = calibrate(ground.dense, batches, calibration=Calibration(temporal=False))
    for name, found in hessians(ground, partial(ablations.with_kernel, delta())).items():
        assert torch.equal(found, plain[name].hessian())


def test_time_constants_are_multiplied(ground: Ground) -> None:
    (layer, *_) = Published(ground.dense, ground.parts.calibration.batches(20)).layers_of(ground.dense)
    (decay,) = layer.kernel.decays
    (longer,) = ablations.with_tau(2.0, layer).kernel.decays
    assert 1 / (1 - float(longer)) == pytest.approx(2 / (1 - float(decay)))
    assert torch.equal(ablations.with_tau(1.0, layer).kernel.decays[0], decay)


def test_a_very_wide_surrogate_is_the_constant_one(ground: Ground) -> None:
    """Every row then has the Hessian that the rows of the paper share; in float32, as products are."""
    method = Published(ground.dense, ground.parts.calibration.batches(20), change=surrogate.by_row)
    surrogate.calibrate(method, width=1e9)
    for name, shared in hessians(ground).items():
        found = method.hessians[name]
        assert_close(found, shared.expand_as(found), rtol=1e-4, atol=1e-6 * float(shared.max()))
    method.order()
    assert method.compress(ground.prune) is not ground.dense


def test_changed_data_keep_what_they_should(ground: Ground) -> None:
    events, generator = ground.parts.calibration, torch.Generator().manual_seed(0)
    half = other_data.half_of_the_classes(events, generator)
    assert set(half.labels.tolist()) == {0, 1, 2, 3, 4}
    rated, plain = other_data.rate_coded(events, generator), other_data.noise(events, generator)
    rate = float(events.x.float().mean())
    for other in (rated, plain):
        assert other.x.shape == events.x.shape and other.x.dtype == events.x.dtype
        assert float(other.x.float().mean()) == pytest.approx(rate, rel=0.02)  # of a million Bernoulli draws
    silent = (events.x == 0).all(0)
    assert not rated.x[:, silent].any() and plain.x[:, silent].any()


def test_every_variant_is_a_line_of_its_own(ground: Ground, tmp_path: Path) -> None:
    places: list[Line] = []

    def known(line: Line) -> bool:
        places.append(line)
        return True

    assert list(ablations.lines(known, networks=("digits",))) == []
    keys = [(line["ablation"], line["value"], line["method"], line["seed"]) for line in places]
    assert (
        len(set(keys)) == len(keys) == len(ablations.SEEDS) * sum(len(variants) for _, variants in ABLATIONS.values())
    )
    assert set(page.SAYS) == set(ABLATIONS)
    for name, (varied, _) in ABLATIONS.items():
        drawn = [line | {"accuracy": 0.5, "dense": 0.9} for line in places if line["ablation"] == name]
        path = plots.draw_ablation(drawn, tmp_path / f"{name}.svg", varied)
        assert plots.is_current(path, drawn)


def test_test_sequences_are_few() -> None:
    subject = SUBJECTS["digits"]
    parts = Few(subject.parts(0), 7)
    assert len(parts.test) == 7 and len(replace(subject).parts(0).test) == 600
