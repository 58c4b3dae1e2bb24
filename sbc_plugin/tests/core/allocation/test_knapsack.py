"""One option a layer under a budget: against every combination."""

from itertools import product
from typing import Any

import pytest
import torch

from sbc_plugin.core.allocation.knapsack import UNITS, cheapest_options
from sbc_plugin.errors import SettingsError

Losses = dict[str, list[float]]
Costs = dict[str, list[int]]


def drawn(seed: int, layers: int = 4, options: int = 5, largest: int = 100) -> tuple[Losses, Costs]:
    """Losses of any order, and costs that grow."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(layers, options, generator=generator, dtype=torch.float64)
    costs = torch.randint(1, largest, (layers, options), generator=generator).cumsum(1)
    names = [f"layer {number}" for number in range(layers)]
    return dict(zip(names, losses.tolist(), strict=True)), dict(zip(names, costs.tolist(), strict=True))


def total(table: Losses | Costs, chosen: dict[str, int]) -> float:
    return sum(table[name][option] for name, option in chosen.items())


def best(losses: Losses, costs: Costs, budget: float) -> float:
    """The least loss of all combinations in the budget."""
    every = (dict(zip(losses, picks, strict=True)) for picks in product(*map(range, map(len, losses.values()))))
    return min(total(losses, chosen) for chosen in every if total(costs, chosen) <= budget)


def part_of(costs: Costs, fraction: float) -> int:
    """A budget between the least and the most that layers can cost."""
    least, most = (sum(end(cost) for cost in costs.values()) for end in (min, max))
    return least + int(fraction * (most - least))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_no_combination_in_the_budget_has_less_loss(seed: int, fraction: float) -> None:
    losses, costs = drawn(seed)
    budget = part_of(costs, fraction)
    chosen = cheapest_options(losses, costs, budget)
    assert list(chosen) == list(losses) and total(costs, chosen) <= budget
    assert total(losses, chosen) == best(losses, costs, budget)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_costs_that_are_rounded_waste_a_unit_a_layer_at_most(seed: int, fraction: float) -> None:
    losses, costs = drawn(seed, largest=10**7)
    budget = part_of(costs, fraction)
    found = total(losses, chosen := cheapest_options(losses, costs, budget))
    wasted = len(losses) * (budget - part_of(costs, 0.0)) / UNITS
    assert total(costs, chosen) <= budget
    assert best(losses, costs, budget) <= found <= best(losses, costs, budget - wasted)


def test_what_all_layers_have_alike_is_never_better() -> None:
    """Rounding each cost up would leave no way to spend all of the budget."""
    losses = {name: [3.0, 2.0, 1.0] for name in "abc"}
    costs = {name: [0, size, 10 * size] for name, size in zip("abc", (10**6 + 3, 10**6 + 7, 10**6 + 9), strict=True)}
    budget = sum(cost[1] for cost in costs.values())
    assert cheapest_options(losses, costs, budget) == {"a": 1, "b": 1, "c": 1}


def test_a_small_table() -> None:
    losses = {"a": [3.0, 2.0, 0.0], "b": [5.0, 1.0]}
    costs = {"a": [1, 2, 4], "b": [2, 3]}
    assert [cheapest_options(losses, costs, budget) for budget in (3, 4, 5, 7)] == [
        {"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1},
    ]  # fmt: skip


def test_nothing_is_spent_in_vain() -> None:
    assert cheapest_options({"a": [1.0, 1.0, 2.0]}, {"a": [1, 2, 3]}, budget=3) == {"a": 0}
    assert cheapest_options({"a": [0.0, 0.0]}, {"a": [0, 0]}, budget=0)["a"] in (0, 1)


@pytest.mark.parametrize(
    ("losses", "costs", "budget", "message"),
    [
        ({}, {}, 1, "each layer needs options"),
        ({"a": []}, {"a": []}, 1, "each layer needs options"),
        ({"a": [1.0]}, {"a": [1, 2]}, 3, r"found \{'a': \(1, 2\)\}"),
        ({"a": [1.0]}, {}, 3, r"found \{'a': \(1, 0\)\}"),
        ({"a": [float("nan")]}, {"a": [1]}, 3, r"losses of \['a'\] hold NaN"),
        ({"a": [1.0], "b": [1.0]}, {"a": [1], "b": [2]}, 2, "a budget of 2 is less than the cheapest options take"),
    ],
)  # fmt: skip
def test_what_cannot_be_dealt(losses: Any, costs: Any, budget: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        cheapest_options(losses, costs, budget)
