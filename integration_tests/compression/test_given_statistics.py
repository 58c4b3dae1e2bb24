"""What ``calibrate`` has gathered serves many compressions, each as if it had gathered it itself."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import over_time
from integration_tests.models.resumed import RUNS, assert_same
from sbc_plugin import Calibration, CalibrationStatistics, Prune, Quantize, Report, calibrate, compress
from sbc_plugin.errors import CalibrationError, CheckpointError, SettingsError

BUDGETS: list[dict[str, Any]] = [
    {"prune": Prune(0.5), "calibration": Calibration(tuning=0)},
    {"prune": Prune(0.8, allocation="loss", silent_first=True), "calibration": Calibration(tuning=0)},
    {"quantize": Quantize(3, allocation="loss"), "calibration": Calibration(tuning=0)},
    {"prune": Prune(0.6, rounds=2), "quantize": Quantize(4), "calibration": Calibration(tuning=3, align=True)},
    {"prune": Prune(0.6, silent_first=True), "calibration": Calibration(tuning=3, order="sequential")},
    {"prune": Prune(0.5), "method": "magnitude"},
]


def batches(name: str) -> list[Any]:
    return [CASES[name].batch(seed=seed) for seed in range(1, 6)]


def made(name: str, **settings: Any) -> tuple[nn.Module, Report]:
    case = CASES[name]
    given = {"calibration_data": batches(name), "forward": case.forward, "progress": False, **settings}
    return compress(case.model(), **given)


def gathered(name: str, **settings: Any) -> CalibrationStatistics:
    return calibrate(CASES[name].model(), batches(name), forward=CASES[name].forward, **settings)


@pytest.mark.parametrize("name", ["step", "conv", "LIFRecurrentCell", "per neuron"])
def test_all_budgets_are_those_of_runs_that_calibrate_themselves(name: str) -> None:
    statistics = gathered(name)
    before = copy.deepcopy(statistics)
    for settings in BUDGETS:
        model, report = made(name, statistics=statistics, **settings)
        assert report.skipped["statistics"].startswith("were given")
        notes = {key: reason for key, reason in report.skipped.items() if key != "statistics"}
        assert_same((model, replace(report, skipped=notes)), made(name, **settings))
    for layer, accumulator in statistics.items():
        assert torch.equal(accumulator.sum_xx, before[layer].sum_xx) and accumulator.count == before[layer].count


def test_the_model_does_not_run_on_the_data_again() -> None:
    x, passes = batches("step"), [0]

    class Counted(list[Any]):
        def __iter__(self) -> Any:
            passes[0] += 1
            return super().__iter__()

    made("step", prune=Prune(0.5), calibration=Calibration(tuning=0), statistics=gathered("step"))
    made(
        "step",
        prune=Prune(0.5),
        calibration=Calibration(tuning=0),
        statistics=gathered("step"),
        calibration_data=Counted(x),
    )
    assert passes == [1]  # for its first batch


def test_statistics_are_a_dict_of_accumulators_as_before() -> None:
    found = gathered("conv")
    assert isinstance(found, dict) and list(found) == ["0", "4", "9"]
    assert found["9"].hessian().shape == (4, 4) and set(found.sequences.values()) == {15}


def test_parts_merge_to_the_whole() -> None:
    case = CASES["step"]
    data = [batch.double() for batch in batches("step")]
    model = case.model(torch.float64)
    whole, part, other = (calibrate(model, each) for each in (data, data[:2], data[2:]))
    part.merge(other)
    assert part.sequences == whole.sequences
    for name in whole:
        torch.testing.assert_close(part[name].sum_xx, whole[name].sum_xx)
        assert torch.equal(part.silent[name], whole.silent[name])
    with pytest.raises(CalibrationError, match=r"of another model: '0\.weight' is not the same"):
        part.merge(gathered("step"))


def moved() -> nn.Module:
    model = CASES["step"].model()
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] += 1e-6
    return model


REFUSED: dict[str, tuple[Callable[[], CalibrationStatistics], dict[str, Any], str]] = {
    "model": (lambda: calibrate(moved(), batches("step")), {}, r"of another model: '2\.weight' is not the same"),
    "network": (lambda: gathered("conv"), {}, "of another model"),
    "temporal": (
        lambda: gathered("step", calibration=Calibration(temporal=False)),
        {},
        r"gathered with temporal=False, here it is True; calibrate\(model, data",
    ),
    "baseline": (lambda: gathered("step"), {"method": "obc"}, "gathered with temporal=True, here it is False"),
    "samples": (
        lambda: gathered("step"),
        {"calibration": Calibration(max_samples=3)},
        "max_samples=None, here it is 3",
    ),
    "forward": (lambda: gathered("step"), {"forward": over_time}, "the model was run in another way"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_statistics_of_another_kind_are_refused(name: str) -> None:
    statistics, settings, message = REFUSED[name]
    with pytest.raises(CalibrationError, match=message):
        made("step", prune=Prune(0.5), statistics=statistics(), **settings)


def test_a_hessian_of_another_shape_is_refused() -> None:
    statistics = gathered("step")
    statistics["2"] = statistics["0"]
    with pytest.raises(CalibrationError, match=r"layer '2' is \(5, 5\), and has to be \(6, 6\)"):
        made("step", prune=Prune(0.5), statistics=statistics)
    del statistics["2"]
    with pytest.raises(CalibrationError, match="no layer '2'"):
        made("step", prune=Prune(0.5), statistics=statistics)
    with pytest.raises(SettingsError, match=r"statistics is a dict; give what calibrate\(model, data\) returned"):
        made("step", prune=Prune(0.5), statistics=dict(statistics))


def test_given_statistics_belong_to_the_job_of_a_folder(tmp_path: Path) -> None:
    statistics = gathered("step")
    wanted = made("step", **RUNS["tuned"][1], statistics=statistics)
    assert_same(made("step", **RUNS["tuned"][1], statistics=statistics, checkpoint=tmp_path), wanted)
    assert_same(made("step", **RUNS["tuned"][1], statistics=gathered("step"), checkpoint=tmp_path), wanted)
    statistics["0"].sum_xx *= 2
    for other in (None, statistics):
        with pytest.raises(CheckpointError, match=r"statistics is '[0-9a-f]+'? there and"):
            made("step", **RUNS["tuned"][1], statistics=other, checkpoint=tmp_path)
