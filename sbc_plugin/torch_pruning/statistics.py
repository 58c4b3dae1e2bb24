"""One pass over the data that gives every layer which reads channels its statistics."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import run_batches
from sbc_plugin.calibration.plain import PlainNetworks, library_or_plain
from sbc_plugin.compression.layer import check_active
from sbc_plugin.core.hessian import HessianAccumulator, LayerHessian
from sbc_plugin.core.kernels import CausalFilter
from sbc_plugin.errors import in_layer
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer
from sbc_plugin.settings import Calibration
from sbc_plugin.torch_pruning.consumers import Consumer, is_depthwise, matrix


def gather_consumers(
    model: nn.Module, data: Iterable[Any], calibration: Calibration, forward: Forward | None = None
) -> tuple[list[Consumer], dict[str, str]]:
    """One pass over the data: every layer that reads channels, in the order in which they run; and what was left out.

    Args:
        model: left as it was.
        data: iterable of batches, each (T, B, ...) for a spiking network, (B, ...) for a plain one.
        calibration: temporal, damping, max_samples and device count.
        forward: ``forward(model, batch)`` runs one whole batch.

    Returns:
        The layers, and name -> reason for weights without statistics.

    Raises:
        CalibrationError: no data, data that does not fit, or a layer that stays silent.
        UnsupportedModelError: a neuron or weight without a rule.
    """
    first, data = peek(data)
    library, layers, skipped = find_readers(model, first, calibration.temporal, forward)
    layers = [layer for layer in layers if not is_depthwise(layer.parts[0].module)]
    collectors: list[Collector] = []
    accumulators, reservoirs = [], []
    for layer in layers:
        device = calibration.device or layer.parts[0].tensor.device
        accumulator = HessianAccumulator(layer.columns + 1, layer.hessians or 1, device)
        reservoir = Reservoir(_into(layer.name, accumulator), calibration.max_samples)
        collectors.append(_collector_with_constant(layer, reservoir.add))
        accumulators.append(accumulator)
        reservoirs.append(reservoir)
    for number in run_batches(Runner(model, library, forward), collectors, data, calibration.temporal):
        for reservoir in reservoirs:
            reservoir.end_batch(number)
    for reservoir in reservoirs:
        reservoir.flush()
    found = []
    for layer, accumulator in zip(layers, accumulators, strict=True):
        with in_layer(layer.name):
            found.append(_consumer(layer, accumulator.hessian(), calibration.damping))
    return found, skipped


def find_readers(
    model: nn.Module, batch: Any, temporal: bool, forward: Forward | None
) -> tuple[SNNLibrary, list[SpikingLayer], dict[str, str]]:
    """The library that drives the model, its layers, and what was left out; M = I where no neuron spikes."""
    library = library_or_plain(model)
    run = forward or library.default_forward(model)
    spiked: list[str] = []
    with library.watch_steps(
        model, lambda name, x, feedback, spikes: spiked.append(name) if spikes is not None else None
    ):
        others, skipped = PlainNetworks().find_layers(model, batch, run)
    if not spiked:
        return library, others, skipped
    layers, skipped = library.find_layers(model, batch, forward, temporal)
    known = {id(part.module) for layer in layers for part in layer.parts}
    extra = [layer for layer in others if id(layer.parts[0].module) not in known]
    skipped = {name: reason for name, reason in skipped.items() if name not in {layer.name for layer in extra}}
    skipped |= {layer.name: f"{layer.kind} is not followed to its neuron: M = I" for layer in extra}
    return library, layers + extra, skipped


def _collector_with_constant(layer: SpikingLayer, sink: Callable[[Tensor], None]) -> Collector:
    """Collect a layer's samples with one more column: the constant 1, filtered as long as the input is.

    Args:
        layer: whose inputs.
        sink: takes blocks of samples (hessians, n, columns + 1).
    """
    causal, groups = CausalFilter(layer.kernel), layer.parts[0].form.groups
    constants: list[Tensor] = []  # the constant 1 after 1, 2, ... steps, each (hessians, 1, 1)

    def emit(filtered: list[Tensor]) -> None:
        while len(constants) < collector.age:
            answer = causal.step(torch.ones(1, dtype=torch.float64, device="cpu"))
            constants.append(answer.reshape(-1, 1, 1).repeat_interleave(groups, dim=0))
        constant = constants[collector.age - 1]
        for samples in as_samples(layer, filtered):
            sink(torch.cat([samples, constant.to(samples).expand(-1, samples.shape[1], 1)], dim=-1))

    collector = Collector(layer, emit)
    return collector


def _into(name: str, accumulator: HessianAccumulator) -> Callable[[Tensor], None]:
    def add(samples: Tensor) -> None:
        with in_layer(name):
            accumulator.add(samples)

    return add


def _consumer(layer: SpikingLayer, hessian: Tensor, damping: float) -> Consumer:
    inputs = hessian[:, :-1, :-1].diagonal(dim1=-2, dim2=-1)
    check_active(hessian[:, :-1, :-1])
    owner = layer.groups.to(hessian.device)
    gain = layer.gain.to(hessian)
    weight = torch.cat([matrix(part) for part in layer.parts], dim=1).to(hessian)
    total = LayerHessian(hessian[:, :-1, :-1], owner).quadratic(weight * gain[:, None]).sum()
    ridge = torch.cat([damping * inputs.mean(-1, keepdim=True).expand_as(inputs), inputs.new_zeros(len(inputs), 1)], 1)
    silent = hessian.diagonal(dim1=-2, dim2=-1) == 0
    hessian = hessian + torch.diag_embed(ridge.where(~silent, 1.0))
    scale = gain / total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    return Consumer(layer.name, layer.parts, hessian, silent, owner, scale, damping)
