"""What zeros and bits cost a layer: measured at a few sparsities, interpolated between, and chosen under one budget.

Each option of a layer is a number of zeros and a number of bits, with a loss and a cost. Between two measured
sparsities of the same bits, the loss is a power of the number of kept weights, and the cost is linear in it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sbc_plugin.core.allocation.knapsack import cheapest_options

BETWEEN = 6  # interpolated options between two measured ones
LEAST_LOSS = 1e-12  # in the place of 0, which has no logarithm


@dataclass(frozen=True)
class Option:
    """What a layer may get.

    Attributes:
        kept: weights that are not zero.
        bits: of each; None = floating point.
        loss: of the layer.
        cost: in the budget's unit.
    """

    kept: int
    bits: int | None
    loss: float
    cost: float


def refined(options: Sequence[Option], between: int = BETWEEN) -> list[Option]:
    """The options, and so many interpolated ones between every two neighbours of the same bits.

    >>> [round(each.loss, 6) for each in refined([Option(100, 2, 0.01, 10.0), Option(400, 2, 0.0001, 40.0)], between=1)]
    [0.01, 0.001, 0.0001]
    """
    found: list[Option] = []
    for bits in dict.fromkeys(option.bits for option in options):
        same = sorted((option for option in options if option.bits == bits), key=lambda option: option.kept)
        for low, high in pairwise(same):
            found.append(low)
            parts = [part / (between + 1) for part in range(1, between + 1)]
            found += [_between(low, high, part) for part in parts] if low.kept else []
        found += same[-1:]
    return list({(option.kept, option.bits): option for option in found}.values())


def _between(low: Option, high: Option, part: float) -> Option:
    kept = round(low.kept * (high.kept / low.kept) ** part)
    share = (kept - low.kept) / max(high.kept - low.kept, 1)
    losses = [math.log(max(option.loss, LEAST_LOSS)) for option in (low, high)]
    loss = math.exp(losses[0] + part * (losses[1] - losses[0]))
    return Option(kept, low.bits, loss, low.cost + share * (high.cost - low.cost))


def cost_at(options: Sequence[Option], kept: int, bits: int | None) -> float | None:
    """The cost of so many weights of so many bits, from the nearest options; None where none has such bits.

    >>> cost_at([Option(100, 2, 0.1, 10.0), Option(300, 2, 0.0, 40.0)], kept=200, bits=2)
    25.0
    """
    same = sorted((option for option in options if option.bits == bits), key=lambda option: option.kept)
    if not same:
        return None
    above = next((number for number, option in enumerate(same) if option.kept >= kept), len(same) - 1)
    low, high = same[max(above - 1, 0)], same[above]
    if high.kept == low.kept:
        return high.cost * kept / max(high.kept, 1)
    return low.cost + (kept - low.kept) / (high.kept - low.kept) * (high.cost - low.cost)


def best_options(
    options: Mapping[str, Sequence[Option]], budget: float, loss_of: Callable[[str, float], float], unit: float = 1.0
) -> dict[str, Option]:
    """The option of each layer for which the losses together are least, and the costs together are in the budget.

    Args:
        options: by layer name.
        budget: of all layers together.
        loss_of: what counts of a layer, by its name and loss.
        unit: of cost; fractions of it are rounded up.

    Raises:
        SettingsError: nothing fits the budget.
    """
    losses = {name: [loss_of(name, option.loss) for option in each] for name, each in options.items()}
    costs = {name: [math.ceil(option.cost / unit) for option in each] for name, each in options.items()}
    chosen = cheapest_options(losses, costs, math.floor(budget / unit))
    return {name: options[name][number] for name, number in chosen.items()}
