"""Strangers' networks are compressed as asked, or refused with the model as it was; the oracles find what is wrong."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integration_tests.strangers.compression import Case, attempt, case, faults, parts, reproduction
from integration_tests.strangers.grids_and_patterns import best_for_its_zeros, breaks_pattern, by_hand, off_grid
from integration_tests.strangers.networks import network
from sbc_plugin import Report, compress

SEEDS = range(40)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 10))
def test_strangers_are_compressed_as_asked_or_refused(first: int) -> None:
    outcomes = {seed: attempt(seed) for seed in SEEDS[first : first + 10]}
    wrong = [reproduction(seed, outcome) for seed, outcome in outcomes.items() if outcome.is_fault]
    assert not wrong, "\n\n".join(wrong)
    assert sum(outcome.kind == "right" for outcome in outcomes.values()) >= 8


def test_rarer_kinds_follow_from_their_seed_and_leave_the_common_ones_as_they_are() -> None:
    before = torch.random.get_rng_state()
    first, second, common = network(7, more=True), network(7, more=True), network(7)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.description == second.description != common.description
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
    kinds = {type(network(seed, more=True).model).__name__ for seed in range(60)}
    assert {"TwoOutputs", "SequenceWithState", "BatchFirstSum", "Still"} <= kinds
    blocks = {line.split(":")[0] for seed in range(60) for line in network(seed, more=True).description.splitlines()}
    assert {"Between", "Transposing", "OverTime", "PooledCurrent", "Matrix", "Recurrence", "OddNeuron"} <= blocks


def some_seed(wanted: Callable[[Case], bool]) -> int:
    return next(seed for seed in range(400) if wanted(case(seed)) and attempt(seed).kind == "right")


def spoilt(seed: int, spoil: Callable[[nn.Module, Report], None]) -> str:
    """What the oracles say of a result that something was done to."""
    asked = case(seed)
    dense = copy.deepcopy(asked.stranger.model)
    small, report = compress(asked.stranger.model, asked.data, **asked.arguments)
    assert faults(asked, dense, small, report) == ""
    with torch.no_grad():
        spoil(small, report)
    return faults(asked, dense, small, report)


def first_weight(small: nn.Module, report: Report) -> Tensor:
    module = small.get_submodule(report.layers[0].name.split(" + ")[0])
    weight = next(parameter for parameter in module.parameters() if parameter.dim() > 1)
    return weight.view(-1)


def scale_one_up(small: nn.Module, report: Report) -> None:
    weight = first_weight(small, report)
    weight[weight.nonzero()[0]] *= 1.37


def bring_one_back(small: nn.Module, report: Report) -> None:
    weight = first_weight(small, report)
    weight[(weight == 0).nonzero()[0]] = 0.5


def move_a_bias(small: nn.Module, report: Report) -> None:
    next(parameter for name, parameter in small.named_parameters() if name.endswith("bias"))[0] += 1e-3


def scale_linear_layers(small: nn.Module, report: Report) -> None:
    for row in report.layers:
        if isinstance(module := small.get_submodule(row.name), nn.Linear):
            module.weight.mul_(1.02)


def quantised(c: Case) -> bool:
    return c.prune is None and c.quantize is not None and c.quantize.bits <= 4 and c.quantize.granularity == "channel"


def pruned(c: Case) -> bool:
    return c.prune is not None and c.prune.sparsity >= 0.5 and c.prune.pattern == "unstructured" and c.quantize is None


def solved(c: Case) -> bool:
    plain = c.calibration.order == "one-shot" and c.calibration.tuning == 0 and c.calibration.max_samples is None
    refit = c.prune is not None and c.prune.refit and c.prune.rounds in (None, 1) and 0 < c.prune.sparsity < 0.9
    refit = refit and c.prune is not None and not c.prune.rescale and not c.prune.silent_first
    return plain and refit and c.quantize is None and c.arguments["method"] == "obc"


@pytest.mark.parametrize(
    ("wanted", "spoil", "found"),
    [
        (quantised, scale_one_up, "on no grid"),
        (pruned, bring_one_back, "are zero"),
        (lambda c: not c.calibration.align, move_a_bias, "of no layer, and changed"),
        (solved, scale_linear_layers, "least-squares optimum"),
    ],
)
def test_the_oracles_find(wanted: Any, spoil: Any, found: str) -> None:
    assert found in spoilt(some_seed(wanted), spoil)


def test_patterns_and_grids_by_hand() -> None:
    weight = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]])  # (1 row, 4 inputs, 2 positions)
    assert breaks_pattern(weight, "1:2", None) == "" and "2 of 4" in breaks_pattern(weight, "1:4", None)
    assert breaks_pattern(weight, "block:2", 2) == "" and "not 4" in breaks_pattern(weight, "block:2", 4)
    row, powers = (torch.tensor([[step, -3 * step, 0.0, 2 * step]])[..., None] for step in (0.3, 0.25))
    assert off_grid(row, 3, "channel", True, False) == "" and off_grid(row, 2, "channel", True, False)
    assert off_grid(row, 3, "channel", True, True) and off_grid(powers, 3, "channel", True, True) == ""
    assert off_grid(row + 0.05, 4, "tensor", True, False) and off_grid(row, 2, "group:2", True, False)
    assert off_grid(row.abs(), 2, "channel", False, False) == "" and off_grid(row, 2, "channel", False, False)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_weights_by_hand(groups: int) -> None:
    """Row r of the matrix makes channel r of the output."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(4, 6, 3, groups=groups, bias=False).double()
    (weight,) = by_hand(layer)
    x = torch.randn(1, 4, 1, dtype=torch.float64)
    expected = layer(x)[0]  # one position in: kernel position p comes out at position p
    inputs = x[0, :, 0].chunk(groups)
    found = torch.cat([torch.einsum("rip,i->rp", w, v) for w, v in zip(weight.chunk(groups), inputs, strict=True)])
    torch.testing.assert_close(found, expected)


def test_the_best_weights_by_hand() -> None:
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = best_for_its_zeros(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]), x, 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.5]], dtype=torch.float64))
    assert parts(nn.Sequential(nn.Linear(2, 3)), "0")[0][0].shape == (3, 2, 1)
