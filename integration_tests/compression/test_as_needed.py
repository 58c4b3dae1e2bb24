"""By default nothing follows the solvers where hardly any accuracy is expected to be lost."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression import plan as defaults
from sbc_plugin.compression import run
from sbc_plugin.compression.objective import expected_losses, targets, upper_bound

CLASSES, INPUTS, SEQUENCES = 3, 12, 240


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "TUNING_STEPS", 4)
    monkeypatch.setattr(defaults, "SCALE_STEPS", 4)


def network() -> nn.Module:
    """Each class has four inputs of its own, which excite its neuron; other weights are small."""
    weight = 0.02 * torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(0))
    weight += torch.eye(CLASSES).repeat_interleave(INPUTS // CLASSES, dim=1)
    model = norse.SequentialState(nn.Linear(INPUTS, CLASSES, bias=False), norse.LIFBoxCell())
    with torch.no_grad():
        model[0].weight.copy_(20 * weight)
    return model


def batches() -> list[Tensor]:
    """(T, B, inputs): the inputs of one class spike in each sequence, the others hardly."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(SEQUENCES) % CLASSES
    rates = 0.02 + 0.4 * torch.eye(CLASSES).repeat_interleave(INPUTS // CLASSES, dim=1)[classes]
    x = (torch.rand(15, SEQUENCES, INPUTS, generator=generator) < rates).float()
    return list(x.split(40, dim=1))


def made(**settings: Any) -> tuple[nn.Module, Any]:
    return compress(network(), batches(), progress=False, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("quantize", [None, Quantize(3)])
def test_where_nothing_is_lost_the_solvers_do_alone_and_that_is_told(quantize: Quantize | None) -> None:
    small, report = made(prune=Prune(0.5), quantize=quantize)
    assert report.settings["calibration"].tuning == 0
    assert report.settings["prune"] == Prune(0.5, rounds=1, silent_first=True)
    assert "not needed" in report.skipped["tuning"] and "0.0 points" in report.skipped["tuning"]
    alone, _ = made(prune=Prune(0.5, rounds=1, silent_first=True))
    if quantize is None:
        assert same(small, alone)


def test_bits_alone_are_left_too() -> None:
    small, report = made(quantize=Quantize(3))
    assert report.settings["calibration"].tuning == 0
    assert same(small, made(quantize=Quantize(3), calibration=Calibration(tuning=0))[0])


def test_where_much_is_lost_weights_are_tuned() -> None:
    _, report = made(prune=Prune(0.95))
    assert report.settings["calibration"].tuning == 4
    assert "tuning" not in report.skipped or "not needed" not in report.skipped["tuning"]


def test_steps_that_are_asked_for_are_taken() -> None:
    _, report = made(prune=Prune(0.5), calibration=Calibration(tuning=4))
    assert report.settings["calibration"].tuning == 4
    assert "not needed" not in report.skipped.get("tuning", "")


def test_a_part_that_is_left_is_told_where_another_was_tuned() -> None:
    _, report = made(prune=Prune(0.95), quantize=Quantize(3))
    assert report.settings["calibration"].tuning is None and report.steps[0] > 0 == report.steps[1]
    assert "not needed" in report.skipped["tuning"]


def test_fine_grids_follow_tuned_weights_untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = []
    real = run.tune
    monkeypatch.setattr(run, "tune", lambda *arguments: tuned.append(arguments[2]) or real(*arguments))
    _, report = made(prune=Prune(0.95), quantize=Quantize(8))
    assert tuned == [{}]  # no grids yet
    assert report.settings["calibration"].tuning is None and report.steps[0] > 0 == report.steps[1]


def test_expected_losses_are_the_dense_networks_probabilities() -> None:
    dense, data = network(), batches()
    runner = Runner.of(dense, data[0])
    aims = targets(runner, data, True)
    assert expected_losses(runner, aims).abs().max() == 0  # type: ignore[union-attr]
    scores = torch.cat([_counts(dense, x) for x in _pieces(data)])
    with torch.no_grad():
        dense[0].weight[0] = dense[0].weight[1]
    found = expected_losses(runner, aims)
    answers = torch.cat([_counts(dense, x) for x in _pieces(data)]).argmax(1)
    likely = (float(aims.inverse_temperature or 0) * scores.double()).softmax(1)
    rows = torch.arange(SEQUENCES)
    expected = likely[rows, scores.argmax(1)] - likely[rows, answers]
    assert found is not None and 0.05 < float(found.mean()) < 0.5
    torch.testing.assert_close(found.sort().values, expected.sort().values)


def test_numbers_of_which_each_counts_have_no_such_loss() -> None:
    data = batches()
    runner = Runner.of(network(), data[0])
    assert expected_losses(runner, targets(runner, data, False)) is None


def test_few_sequences_tell_little() -> None:
    losses = torch.tensor([0.0] * 99 + [1.0], dtype=torch.float64)
    assert upper_bound(losses) == pytest.approx(0.01 + 2 * (0.01 * 0.99) ** 0.5 / 10 + 0.01)
    assert upper_bound(losses[:20]) == pytest.approx(0.05)


def _pieces(data: list[Tensor]) -> list[Tensor]:
    return [piece for x in data for piece in x.split(32, dim=1)]


def _counts(model: nn.Module, x: Tensor) -> Tensor:
    state, counts = None, torch.zeros(())
    with torch.no_grad():
        for step in x:
            spikes, state = model(step, state)
            counts = counts + spikes
    return counts
