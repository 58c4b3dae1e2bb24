"""What a budget counts: bytes of packed weights, synaptic operations, or energy; of a layer, and of the whole model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.weights import holding
from sbc_plugin.core.hessian import owner_of_rows
from sbc_plugin.core.sizes import in_words
from sbc_plugin.core.spikes import JOULES_PER_AC, JOULES_PER_MAC, Operations, synaptic_operations
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.evaluation.operations import OperationCounter, sequences_of, weights_left_alone
from sbc_plugin.layers import Part, SpikingLayer
from sbc_plugin.settings import Budget

Weights = Mapping[str, Tensor]  # by layer name, each (rows, columns)


def layer_bytes(layer: SpikingLayer, weight: Tensor) -> int:
    """Packed size of a layer whose weight is (rows, columns)."""
    blocks = weight.split([part.form.columns for part in layer.parts], dim=1)
    return sum(
        packed_bytes(part.form.as_weight(block, part.tensor.shape).to(part.tensor.dtype))
        for part, block in zip(layer.parts, blocks, strict=True)
    )


@dataclass(frozen=True)
class Measure:
    """How a budget is counted on a model.

    Attributes:
        limit: of the whole model, in ``unit``.
        unit: "bytes", "operations" or "J".
        fixed: what weights cost that no layer holds.
        of_layer: about what a layer with a weight (rows, columns) costs.
        of_model: exactly what the model costs when its layers have these weights.
        step: a difference in cost that does not matter.
    """

    limit: float
    unit: str
    fixed: float
    of_layer: Callable[[SpikingLayer, Tensor], float]
    of_model: Callable[[Weights], float]
    step: float = 1.0

    def told(self, cost: float) -> str:
        """A cost in words."""
        if self.unit == "bytes":
            return f"{cost:,.0f} bytes" + (f" ({in_words(cost)})" if cost >= 1024 else "")
        return f"{1e9 * cost:,.3f} nJ" if self.unit == "J" else f"{cost:,.0f} operations"


def measure_of(
    budget: Budget,
    runner: Runner,
    layers: list[SpikingLayer],
    data: Iterable[Any],
    uncounted: frozenset[str] = frozenset(),
) -> Measure:
    """How this budget is counted, on a model that is still dense.

    Args:
        budget: what is counted.
        runner: of the model.
        layers: of the model.
        data: calibration batches of this rank's share; run through for operations and energy alone.
        uncounted: names of weights that do not count.
    """
    if budget.counts in ("size", "factor"):
        alone = weights_left_alone(runner.model, layers)
        others = sum(packed_bytes(weight.flatten(1)) for name, weight in alone.items() if name not in uncounted)

        def size(weights: Weights) -> float:
            return float(others + sum(layer_bytes(layer, weights[layer.name]) for layer in layers))

        dense = size({layer.name: layer.weight() for layer in layers})
        limit = float(budget.size) if isinstance(budget.size, int) else float(int(dense / float(budget.factor or 1)))
        return Measure(limit, "bytes", others, lambda layer, weight: float(layer_bytes(layer, weight)), size)
    joules = budget.counts == "energy"
    limit = float(budget.energy or 0) if joules else float(budget.operations or 0)
    activity = Activity(runner, layers, data, joules)
    unit, step = ("J", JOULES_PER_AC) if joules else ("operations", 1.0)
    return Measure(limit, unit, 0.0, activity.of_layer, activity.of_model, step)


class _ColumnCounter(OperationCounter):
    """Also counts, for each part's columns, how many nonzero inputs came, as joules or as operations."""

    def __init__(self, runner: Runner, parts: list[Part], joules: bool) -> None:
        self.runner, self.parts, self.others = runner, parts, {}
        self.operations, self.output, self.joules = Operations(), None, joules
        self.columns: dict[str, Tensor] = {}

    def _count(self, part: Part, x: Tensor) -> None:
        pieces = x.split(max(1, len(x) // 8)) if part.form.positions > 1 else (x,)
        weight = part.form.as_matrix(part.tensor.detach())
        for samples in map(part.form.samples, pieces):
            found = synaptic_operations(samples, weight)
            self.operations += found
            spiking = not found.macs and bool(((samples == 0) | (samples == 1) | (samples == -1)).all())
            each = (JOULES_PER_AC if spiking else JOULES_PER_MAC) if self.joules else 1.0
            active = samples.count_nonzero(-2).reshape(-1, part.form.columns).double() * each
            self.columns[part.name] = self.columns.get(part.name, torch.zeros_like(active)) + active


class Activity:
    """Synaptic operations, or their energy, a sequence: of weights under the dense network's spikes, and measured."""

    def __init__(self, runner: Runner, layers: list[SpikingLayer], data: Iterable[Any], joules: bool) -> None:
        self._runner, self._layers, self._data, self._joules = runner, layers, data, joules
        counter, sequences = self._counted()
        self._costs: dict[str, Tensor] = {}
        for layer in layers:
            blocks = []
            for part in layer.parts:
                (rows, columns) = layer.rows, part.form.columns
                found = counter.columns.get(part.name)
                found = torch.zeros(1, columns, dtype=torch.float64, device="cpu") if found is None else found
                ranks.total([found])
                blocks.append(found[owner_of_rows(rows, len(found), None, found.device)] / sequences)
            self._costs[layer.name] = torch.cat(blocks, dim=1)

    def of_layer(self, layer: SpikingLayer, weight: Tensor) -> float:
        """Of a weight (rows, columns), if its inputs are those of the dense network."""
        return float((self._costs[layer.name].to(weight.device) * (weight != 0)).sum())

    def of_model(self, weights: Weights) -> float:
        """Measured on all data."""
        with holding(self._layers, weights):
            counter, sequences = self._counted()
        found = counter.operations
        (acs, macs) = ranks.sums(float(found.acs), float(found.macs))
        if self._joules:
            return (acs * JOULES_PER_AC + macs * JOULES_PER_MAC) / sequences
        return (acs + macs) / sequences

    def _counted(self) -> tuple[_ColumnCounter, float]:
        counter = _ColumnCounter(self._runner, [part for layer in self._layers for part in layer.parts], self._joules)
        sequences = 0
        for number, batch in ranks.numbered(self._data):
            sequences += sequences_of(counter.run(batch, number))
        (together,) = ranks.sums(float(sequences))
        return counter, max(together, 1.0)
