"""One option for each layer under one budget: a multiple-choice knapsack, by dynamic programming."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from sbc_plugin.errors import SettingsError

UNITS = 2**14  # what is spent above the cheapest options is counted in at most so many units


def cheapest_options(
    losses: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[int]], budget: int
) -> dict[str, int]:
    """The option of each layer for which the sum of all losses is least, and the sum of all costs is in the budget.

    The result is exact as long as the costs, counted in their common divisor, fit ``UNITS``. Beyond that, costs are
    rounded up, so that the budget still holds, and each option is also tried for all layers alike: no such choice does
    better than the result. Of equal sums, the one that leaves more of the budget wins.

    Args:
        losses: name -> the loss of each option, finite.
        costs: name -> the cost of each option; the same names and lengths.
        budget: at least the sum of each layer's least cost.

    Returns:
        Name -> index of the option.

    Raises:
        SettingsError: nothing fits the budget, a layer without options, or a loss that is NaN or infinite.

    >>> cheapest_options({"small": [9.0, 1.0], "large": [5.0, 0.0]}, {"small": [1, 2], "large": [10, 20]}, budget=12)
    {'small': 1, 'large': 0}
    """
    shapes = {name: (len(losses[name]), len(costs.get(name, ()))) for name in losses}
    if not shapes or any(given != priced or not given for given, priced in shapes.values()):
        raise SettingsError(f"each layer needs options with a loss and a cost each, found {shapes}")
    if broken := [name for name in losses if not all(map(math.isfinite, losses[name]))]:
        raise SettingsError(f"the losses of {broken} hold NaN or infinity; leave these options out")
    above = {name: [cost - min(costs[name]) for cost in costs[name]] for name in losses}
    spare = budget - sum(min(costs[name]) for name in losses)
    if spare < 0:
        raise SettingsError(f"a budget of {budget} is less than the cheapest options take, {budget - spare}")

    def totals(chosen: dict[str, int]) -> tuple[float, int]:
        spent = sum(above[name][option] for name, option in chosen.items())
        return sum(losses[name][option] for name, option in chosen.items()), spent

    alike = [dict.fromkeys(losses, option) for option in range(min(map(len, losses.values())))]
    found = [_by_units(losses, above, spare), *(each for each in alike if totals(each)[1] <= spare)]
    return min(found, key=totals)


def _by_units(losses: Mapping[str, Sequence[float]], above: Mapping[str, Sequence[int]], spare: int) -> dict[str, int]:
    """The best option of each layer, by a table of the least loss for each number of units spent, layer after layer."""
    unit = max(math.gcd(*chain(*above.values())), -(-spare // UNITS), 1)
    units = spare // unit
    best = torch.zeros(units + 1, dtype=torch.float64, device="cpu")  # loss so far, by the units spent at most
    taken: list[tuple[str, list[int], torch.Tensor]] = []
    for name, options in losses.items():
        steps = [-(-cost // unit) for cost in above[name]]
        table = torch.full((len(options), units + 1), torch.inf, dtype=torch.float64, device="cpu")
        for option, (loss, step) in enumerate(zip(options, steps, strict=True)):
            if step <= units:
                table[option, step:] = best[: units + 1 - step] + loss
        best, choice = table.min(0)
        taken.append((name, steps, choice))
    left = int((best == best[-1]).nonzero()[0])  # the fewest units that do as well as all
    chosen = {}
    for name, steps, choice in reversed(taken):
        chosen[name] = int(choice[left])
        left -= steps[chosen[name]]
    return {name: chosen[name] for name in losses}
