"""Zeros and bits of all layers together under one budget: from tables made once, solved exactly, judged by spikes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.weights import holding
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.objective import Targets, distance_on
from sbc_plugin.compression.within import Chosen, Share, Shares, Within
from sbc_plugin.core.allocation.curves import Option, best_options, cost_at, refined
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.pruning.prune import is_small
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import BudgetError
from sbc_plugin.layers import SpikingLayer

KEPT = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.015, 0.005)  # of the weights, in a layer's table
LITTLE = 1e-9  # in the place of a loss or a distance of 0
KEPT_OF_LARGE = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)


def tables(within: Within) -> dict[str, list[Option]]:
    """What zeros and bits cost each layer, measured at a few sparsities.

    Args:
        within: the network and its budget.

    Raises:
        BudgetError: a layer cannot be within what a core holds.
    """
    budget, measure = within.budget, within.measure

    def table_of(layer: SpikingLayer) -> list[tuple[int, int | None, float, float]]:
        most = within.most(layer)
        fractions = KEPT if is_small(layer.rows, layer.columns) else KEPT_OF_LARGE
        counts = sorted({max(1, round(fraction * most)) for fraction in fractions}) if most else [0]
        rows: list[tuple[int, int | None, float, float]] = []
        sizes, shared = [], within.shared(layer)

        def measured(share: Share) -> tuple[float, float, float]:
            solution = within.solved(layer, share)
            cost = measure.of_layer(layer, solution.weight)
            return max(solution.loss, 0.0), cost, within.core_bytes(layer, solution)  # rounding may leave a loss below

        for share in [Share(kept, bits) for kept in counts for bits in budget.widths or (None,)]:
            if measure.unit == "bytes" and rows and share.kept * (share.bits or 32) / 8 > 2 * measure.limit:
                continue  # more than all layers together may take
            loss, cost, size = shared.once((share, measure.unit), partial(measured, share))
            sizes.append(size)
            if size <= within.core_limit:
                rows.append((share.kept, share.bits, loss, cost))
        if not rows:
            raise BudgetError(
                f"layer {layer.name!r}: its {layer.rows} x {layer.columns} weights take {min(sizes):,.0f} bytes with "
                f"one weight left, and a core holds {within.core_limit:,.0f}; use a chip with more, or a smaller layer"
            )
        return rows

    found = dealt(within.stage.layers, table_of, "measuring curves", within.stage.progress)
    return {name: [Option(*row) for row in rows] for name, (rows, _) in found.items()}


def candidates(
    within: Within, tables: Mapping[str, list[Option]], weights: Mapping[str, float]
) -> Iterator[tuple[str, Shares]]:
    """Allocations worth a look: exact under several objectives, and by LAMP with the same bits in all layers.

    Args:
        within: the network and its budget.
        tables: of each layer.
        weights: by which each layer's loss counts, measured by spikes; {} without.
    """
    fine, room = {name: refined(table) for name, table in tables.items()}, within.measure.limit - within.measure.fixed
    rules: dict[str, Callable[[str, float], float]] = {
        "loss": lambda name, loss: loss,
        "root of the loss": lambda name, loss: loss**0.5,
    }
    if weights:
        rules = {
            "loss, layers weighted by their spikes": lambda name, loss: weights[name] * loss,
            "root of the loss, layers weighted by their spikes": lambda name, loss: (weights[name] * loss) ** 0.5,
        }
    for rule, loss_of in rules.items():
        chosen = best_options(fine, room, loss_of, within.measure.step)
        yield rule, {name: Share(option.kept, option.bits) for name, option in chosen.items()}
    for bits in (within.budget.widths or (None,)) if not weights else ():
        if shares := _lamp(within, tables, bits, room):
            yield f"LAMP, {bits} bits" if bits else "LAMP", shares


def _lamp(within: Within, tables: Mapping[str, list[Option]], bits: int | None, room: float) -> Shares | None:
    """LAMP's zeros with the same bits in all layers, as few as fit; None if none does."""
    low, high, best = 0.0, 1.0, None
    most = {layer.name: within.most(layer) for layer in within.stage.layers}
    for _ in range(12):
        sparsity = (low + high) / 2
        zeros = allocate_zeros(within.targets, sparsity)
        kept = {name: min(within.targets[name].numel() - count, most[name]) for name, count in zeros.items()}
        costs = [cost_at(tables[name], count, bits) for name, count in kept.items()]
        if any(cost is None for cost in costs):
            return None
        if sum(cost for cost in costs if cost is not None) <= room:
            high, best = sparsity, {name: Share(count, bits) for name, count in kept.items()}
        else:
            low = sparsity
    return best


def chosen(within: Within, aims: Targets) -> tuple[Chosen, int]:
    """The allocation whose solutions leave the spikes closest, and of how many that were tried.

    Args:
        within: the network and its budget.
        aims: what the dense network did.

    Raises:
        BudgetError: the budget is too small for the network.
    """
    options, measure = tables(within), within.measure
    least = {name: min(table, key=lambda option: option.cost) for name, table in options.items()}
    cheapest = sum(option.cost for option in least.values()) + measure.fixed
    if cheapest > measure.limit:
        name = max(least, key=lambda name: least[name].cost)
        alone = f", {measure.told(measure.fixed)} of them in weights that no layer holds" if measure.fixed else ""
        raise BudgetError(
            f"a budget of {measure.told(measure.limit)} is too small: with {least[name].kept} weights left in the "
            f"largest layer, {name!r} ({measure.told(least[name].cost)}), the network still takes "
            f"{measure.told(cheapest)}{alone}"
        )
    found: list[Chosen] = []

    def judge(weights: Mapping[str, float]) -> None:
        for rule, shares in candidates(within, options, weights):
            if any(shares == each.shares for each in found):
                continue
            if (fit := within.fitted(shares, tries=3)) is not None:
                found.append(replace(fit, rule=rule, distance=_distance(within, aims, fit.solutions)))

    judge({})
    if not found:
        raise BudgetError(f"a budget of {measure.told(measure.limit)} is too small for this network")
    best = min(found, key=lambda each: each.distance)
    moved = {name: _distance(within, aims, {name: solution}) for name, solution in best.solutions.items()}
    judge({name: max(moved[name], 0.0) / max(best.solutions[name].loss, LITTLE) + LITTLE for name in moved})
    return min(found, key=lambda each: each.distance), len(found)


def _distance(within: Within, aims: Targets, solutions: Mapping[str, Solution]) -> float:
    """How far the spikes of the model with these layers are from the dense network's, on all calibration pieces."""
    weights = {name: solution.weight for name, solution in solutions.items()}
    with (
        holding(within.stage.layers, weights),
        torch.no_grad(),
        layer_by_layer(within.stage.runner, aims.example) as source,
    ):
        distances = [float(distance_on(source, aims, target)) for target in aims.all]
    summed, pieces = ranks.sums(sum(distances), len(distances))
    return summed / pieces
