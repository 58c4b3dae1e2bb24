"""Sequential calibration: what the compressed prefix sends to a layer, and how far that is from the dense input."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples
from sbc_plugin.calibration.hessians import Statistics, run_batch
from sbc_plugin.core.hessian import HessianAccumulator
from sbc_plugin.errors import in_layer
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer
from sbc_plugin.settings import Calibration


def gather_drift(
    library: SNNLibrary,
    model: nn.Module,
    layer: SpikingLayer,
    data: Iterable[Any],
    calibration: Calibration,
    forward: Forward | None,
    layers: list[SpikingLayer],
    dense: dict[str, Tensor],
    done: dict[str, Tensor],
) -> tuple[Statistics, Tensor]:
    """The layer's Hessian on the compressed prefix, and its drift ``D = 2 X'^T (X - X') / count``.

    Each batch runs twice: with the dense weights for X, with those of ``done`` for X'; filtered, both. Where nothing is
    compressed yet it runs once and the drift is 0.

    Args:
        library: of the model.
        model: holds the weights of ``done`` before and after.
        layer: whose input.
        data: batches, iterable more than once.
        calibration: settings.
        forward: runs one whole sequence; None for the library's default.
        layers: all layers of the model.
        dense: name -> dense weight.
        done: name -> compressed weight, of the layers before this one.

    Returns:
        The statistics of X', and D, in the shape of the Hessian.
    """
    device = calibration.device or layer.parts[0].tensor.device
    statistics = Statistics(HessianAccumulator(layer.columns, layer.hessians, device))
    cross = torch.zeros_like(statistics.accumulator.sum_xx)

    def add(both: Tensor) -> None:
        now, before = both.split(layer.columns, dim=-1) if done else (both, both)
        with in_layer(layer.name):
            statistics.accumulator.add(now if layer.hessians is not None else now[0])
        if done:
            product = now.mT @ (before - now)
            cross.add_((product if layer.hessians is not None else product[0]).to(cross))

    reservoir = Reservoir(add, calibration.max_samples)
    memory: list[list[Tensor]] = []

    def emit(filtered: list[Tensor]) -> None:
        before = memory.pop(0) if done else filtered
        for now, then in zip(as_samples(layer, filtered), as_samples(layer, before), strict=True):
            reservoir.add(torch.cat([now, then], dim=-1) if done else now)

    remember, collect = Collector(layer, memory.append), Collector(layer, emit)
    run = forward or library.default_forward(model)
    for number, batch in enumerate(data):
        if done:
            with weights(layers, dense, done):
                run_batch(library, model, [remember], batch, number, calibration, run)
        run_batch(library, model, [collect], batch, number, calibration, run)
        reservoir.end_batch(number)
        statistics.sequences += collect.sequences
    reservoir.flush()
    return statistics, cross * (2.0 / max(statistics.accumulator.count, 1))


@contextmanager
def weights(layers: list[SpikingLayer], inside: dict[str, Tensor], outside: dict[str, Tensor]) -> Iterator[None]:
    """Put the weights ``inside`` into the layers that ``outside`` names, and those of ``outside`` back at the end."""
    changed = [layer for layer in layers if layer.name in outside]
    try:
        for layer in changed:
            layer.write(inside[layer.name])
        yield
    finally:
        for layer in changed:
            layer.write(outside[layer.name])
