"""Pruning in rounds: each on what the one before it left."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin.compression.layer import LayerSettings
from sbc_plugin.compression.plan import Phase, phases


def network() -> norse.SequentialState:
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(12, 16), norse.LIFBoxCell(), nn.Linear(16, 5), norse.LIFBoxCell())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(10, 6, 12, generator=generator) < 0.4).float() for _ in range(3)]


def pruned(model: nn.Module, prune: Prune, **settings: Any) -> Any:
    return compress(model, batches(), prune=prune, progress=False, **settings)


@pytest.mark.parametrize("order", ["one-shot", "sequential"])
def test_rounds_are_compressions_of_the_compressed(order: str) -> None:
    calibration = Calibration(order=order)
    model, report = pruned(network(), Prune(0.9, rounds=3), calibration=calibration)
    expected, losses = network(), torch.zeros(2)
    for sparsity in (0.6, 0.8, 0.9):
        expected, told = pruned(expected, Prune(sparsity), calibration=calibration)
        losses += torch.tensor([layer.loss for layer in told.layers])
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)
    torch.testing.assert_close(torch.tensor([layer.loss for layer in report.layers]), losses)


def test_rounds_that_would_keep_all_are_left_out() -> None:
    many, _ = pruned(network(), Prune(0.5, rounds=10**9))
    once, _ = pruned(network(), Prune(0.5))
    assert all(torch.equal(a, b) for a, b in zip(many.parameters(), once.parameters(), strict=True))


def test_data_that_can_be_read_once_serves_all_rounds() -> None:
    prune = Prune(0.8, rounds=2)
    once, _ = compress(network(), iter(batches()), prune=prune, progress=False)
    expected, _ = pruned(network(), prune)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "tuning", "expected"),
    [
        ((Prune(0.9), None), True, [(0.9, None, True)]),
        ((Prune(0.9, rounds=2), None), False, [(0.8, None, False), (0.9, None, False)]),
        ((Prune(0.9, rounds=2), Quantize(4)), False, [(0.8, None, False), (0.9, 4, False)]),
        ((Prune(0.9, rounds=2), Quantize(4)), True, [(0.8, None, False), (0.9, None, True), (None, 4, True)]),
        ((None, Quantize(4)), True, [(None, 4, True)]),
    ],
)
def test_rounds_come_first_and_quantisation_last(settings: tuple[Any, Any], tuning: bool, expected: list[Any]) -> None:
    found = [
        (
            stage["0"].prune and round(stage["0"].prune.sparsity, 9),
            stage["0"].quantize and stage["0"].quantize.bits,
            tuned,
        )
        for phase in phases({"0": LayerSettings("sbc", *settings, damping=0.01)}, tuning)
        for stage in phase.stages
        for tuned in [phase.tune and stage is phase.stages[-1]]
    ]
    assert found == expected


def test_scales_of_fine_grids_are_tuned_only_where_steps_are_asked_for() -> None:
    for bits, as_needed, tuned in ((4, True, False), (3, True, True), (4, False, True)):
        last = phases({"0": LayerSettings("sbc", Prune(0.9), Quantize(bits), 0.01)}, True, as_needed)[-1]
        assert (last.tune, last.spared) == (tuned, not tuned)
    fixed = Quantize(4, scale="power_of_two")
    assert not phases({"0": LayerSettings("sbc", Prune(0.9), fixed, 0.01)}, True, True)[-1].spared


def test_baselines_take_one_round() -> None:
    layers = {"0": LayerSettings("magnitude", Prune(0.9, rounds=3), None, 0.01)}
    assert phases(layers, tuning=False) == (Phase((layers,), tune=False),)


def test_a_layer_that_a_round_silenced_is_solved_on_what_reached_it_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from sbc_plugin.compression import stage

    solve = stage.solve

    def silencing(layer: Any, weight: Tensor, *rest: Any) -> Any:
        solution = solve(layer, weight, *rest)
        if layer.name == "0":
            solution.weight.copy_(-solution.weight.abs())  # nothing excites the neurons behind the first layer any more
        return solution

    monkeypatch.setattr(stage, "solve", silencing)
    model = network()
    with torch.no_grad():
        model[0].bias.zero_()
    small, report = pruned(model, Prune(0.8, rounds=2))
    assert float((small[2].weight == 0).double().mean()) > 0.5
    assert [layer.sequences for layer in report.layers] == [18, 18]


def test_zeros_stay_and_the_budget_is_met_with_tuning() -> None:
    model, report = pruned(
        network(), Prune(0.9, rounds=2, silent_first=True), quantize=Quantize(4), calibration=Calibration(tuning=3)
    )
    weights = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()])
    assert int((weights == 0).sum()) >= round(0.9 * weights.numel())
    assert all(layer.bits == 4 for layer in report.layers)
