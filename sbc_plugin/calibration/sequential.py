"""Sequential calibration: what the compressed prefix sends to a layer, and how far that is from the dense input."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Statistics, run_batch
from sbc_plugin.calibration.sums import sum_statistics
from sbc_plugin.calibration.weights import holding
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.errors import in_layer
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration


@dataclass(frozen=True)
class Prefix:
    """The layers of a model, the first of them compressed already.

    Attributes:
        layers: all layers of the model.
        dense: name -> dense weight (rows, columns), of all layers.
        compressed: name -> compressed weight, of those that are done; the model holds these.
    """

    layers: list[SpikingLayer]
    dense: dict[str, Tensor]
    compressed: dict[str, Tensor]

    def dense_again(self) -> AbstractContextManager[None]:
        """Put the dense weights into the compressed layers, and the compressed ones back at the end of the block."""
        return holding([layer for layer in self.layers if layer.name in self.compressed], self.dense)


def gather_drift(
    runner: Runner, layer: SpikingLayer, data: Iterable[Any], calibration: Calibration, prefix: Prefix
) -> tuple[Statistics, Tensor]:
    """The layer's Hessian on the compressed prefix, and its drift ``D = 2 X'^T (X - X') / count``.

    Each batch runs twice: with the dense weights for X, with the compressed ones for X'; both are filtered. Where
    nothing is compressed yet it runs once and the drift is 0.

    Args:
        runner: of the model; it holds the compressed weights before and after.
        layer: whose input.
        data: batches of this rank's share, iterable more than once; sums are those of all ranks.
        calibration: settings.
        prefix: which layers are compressed.

    Returns:
        The statistics of X', and D, in the shape of the Hessian.
    """
    device = calibration.device or layer.parts[0].tensor.device
    statistics = Statistics(HessianAccumulator(layer.columns, layer.hessians, device))
    cross = torch.zeros_like(statistics.accumulator.sum_xx)
    moved = bool(prefix.compressed)  # whether X' can differ from X

    def add(both: Tensor) -> None:
        now, before = both.split(layer.columns, dim=-1) if moved else (both, both)
        with in_layer(layer.name):
            statistics.accumulator.add(now if layer.hessians is not None else now[0])
        if moved:
            product = now.mT @ (before - now)
            cross.add_((product if layer.hessians is not None else product[0]).to(cross))

    reservoir = Reservoir(add, calibration.max_samples)
    memory: list[list[Tensor]] = []

    def emit(filtered: list[Tensor]) -> None:
        before = memory.pop(0) if moved else filtered
        for now, then in zip(as_samples(layer, filtered), as_samples(layer, before), strict=True):
            reservoir.add(torch.cat([now, then], dim=-1) if moved else now)

    remember, collect = Collector(layer, memory.append), Collector(layer, emit)
    for number, batch in ranks.numbered(data):
        if moved:
            with prefix.dense_again():
                run_batch(runner, [remember], batch, number, calibration.temporal)
        run_batch(runner, [collect], batch, number, calibration.temporal)
        reservoir.end_batch(number)
        statistics.sequences += collect.sequences
    reservoir.flush()
    sum_statistics([statistics], [cross])
    return statistics, cross * (2.0 / max(statistics.accumulator.count, 1))
