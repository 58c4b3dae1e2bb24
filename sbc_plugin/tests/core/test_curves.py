"""Allocations of a budget against trying them all, and what lies between two measured sparsities."""

from itertools import product

import pytest
import torch

from sbc_plugin.core.allocation.curves import Option, best_options, cost_at, refined
from sbc_plugin.errors import SettingsError


def drawn(seed: int, layers: int = 3) -> dict[str, list[Option]]:
    """Tables of a few layers, in which more weights cost more and lose less."""
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for layer in range(layers):
        options = []
        for bits in (2, 4):
            costs = torch.randint(1, 40, (3,), generator=generator).cumsum(0).tolist()
            losses = torch.rand(3, generator=generator, dtype=torch.float64).sort(descending=True).values.tolist()
            options += [
                Option(10 * (place + 1), bits, loss, cost)
                for place, (loss, cost) in enumerate(zip(losses, costs, strict=True))
            ]
        tables[f"layer {layer}"] = options
    return tables


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_no_other_allocation_in_the_budget_loses_less(seed: int, exponent: float) -> None:
    tables = drawn(seed)
    least = sum(min(option.cost for option in table) for table in tables.values())
    most = sum(max(option.cost for option in table) for table in tables.values())
    for budget in (least, (least + most) // 2, most):
        chosen = best_options(tables, budget, lambda name, loss: loss**exponent)
        assert sum(option.cost for option in chosen.values()) <= budget
        tried = [each for each in product(*tables.values()) if sum(option.cost for option in each) <= budget]
        best = min(sum(option.loss**exponent for option in each) for each in tried)
        assert sum(option.loss**exponent for option in chosen.values()) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_larger_budget_never_loses_more(seed: int) -> None:
    tables = {name: refined(table) for name, table in drawn(seed).items()}
    least = sum(min(option.cost for option in table) for table in tables.values())
    losses = []
    for budget in range(int(least) + 1, int(least) + 150, 7):
        chosen = best_options(tables, budget, lambda name, loss: loss)
        losses.append(sum(option.loss for option in chosen.values()))
    assert losses == sorted(losses, reverse=True)


def test_fractions_of_a_unit_are_rounded_up() -> None:
    table = {"a": [Option(1, 2, 0.5, 1.0), Option(2, 2, 0.1, 2.1)]}
    assert best_options(table, 2.9, lambda name, loss: loss)["a"].kept == 1
    assert best_options(table, 3.0, lambda name, loss: loss)["a"].kept == 2


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(SettingsError, match="less than the cheapest"):
        best_options({"a": [Option(1, 2, 0.5, 10.0)]}, 9.0, lambda name, loss: loss)


def test_measured_options_stay_and_those_between_lie_between() -> None:
    measured = [Option(10, 2, 0.5, 8.0), Option(40, 2, 0.1, 20.0), Option(160, 2, 0.0, 60.0), Option(10, 4, 0.3, 12.0)]
    found = refined(measured, between=3)
    assert set(measured) <= set(found) and len(found) == 3 + 2 * 3 + 1
    same = sorted((option for option in found if option.bits == 2), key=lambda option: option.kept)
    assert [option.loss for option in same] == sorted((option.loss for option in same), reverse=True)
    assert [option.cost for option in same] == sorted(option.cost for option in same)


@pytest.mark.parametrize(("kept", "cost"), [(100, 10.0), (150, 17.5), (300, 40.0), (50, 5.0), (340, 46.0)])
def test_costs_are_linear_between_options_and_beyond(kept: int, cost: float) -> None:
    options = [Option(100, 2, 0.1, 10.0), Option(300, 2, 0.0, 40.0), Option(100, 4, 0.1, 99.0)]
    assert cost_at(options, kept, 2) == pytest.approx(cost)
    assert cost_at(options, kept, 3) is None
