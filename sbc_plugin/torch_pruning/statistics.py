"""One pass over the data gathers the statistics of every layer that reads channels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples, waiting
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import run_batches
from sbc_plugin.calibration.plain import PlainNetworks, library_or_plain
from sbc_plugin.calibration.shares import check_lengths, peek
from sbc_plugin.calibration.sums import check_same
from sbc_plugin.compression.layer import check_reached
from sbc_plugin.core.kernels import CausalFilter
from sbc_plugin.core.pruning.primal_dual import Hessian
from sbc_plugin.errors import in_layer
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import Calibration
from sbc_plugin.torch_pruning.consumers import Consumer, all_or, is_depthwise, matrix
from sbc_plugin.torch_pruning.gathered import Gathered, of_all_ranks


@ranks.joined()
def gather_consumers(
    model: nn.Module, data: Iterable[Any], calibration: Calibration, forward: Forward | None = None
) -> tuple[list[Consumer], dict[str, str]]:
    """The layers that read channels with their statistics, in the order in which they run, and what was left out.

    Statistics are those of the data of all ranks of ``torch.distributed``, where there are several.

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
    runner = Runner.of(model, first, forward, library=library_or_plain(model))
    layers, skipped = find_readers(runner, first, calibration.temporal)
    layers = [layer for layer in layers if not is_depthwise(layer.parts[0].module)]
    check_same(model, layers, {"call": "channels", "calibration": calibration})
    collectors = [_ConsumerCollector(layer, calibration, len(layers)) for layer in layers]
    inputs = [collector.inputs for collector in collectors]
    for number in run_batches(runner, inputs, data, calibration.temporal):
        for collector in collectors:
            collector.end_batch(number)
    for collector in collectors:
        collector.flush()
    check_lengths(data)
    of_all_ranks(collector.gathered for collector in collectors)
    return [collector.consumer(calibration.damping) for collector in collectors], skipped


def find_readers(runner: Runner, batch: Any, temporal: bool) -> tuple[list[SpikingLayer], dict[str, str]]:
    """The layers that read channels, and what was left out: name -> reason; M = I where no neuron spikes."""
    spiked: list[str] = []

    def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
        if spikes is not None:
            spiked.append(name)

    with runner.library.watch_steps(runner.model, on_step):
        others, skipped = PlainNetworks().find_layers(runner.model, batch, runner.run)
    if not spiked:
        return others, skipped
    layers, skipped = runner.find_layers(batch, temporal)
    known = {id(part.module) for layer in layers for part in layer.parts}
    extra = [layer for layer in others if id(layer.parts[0].module) not in known]
    skipped = {name: reason for name, reason in skipped.items() if name not in {layer.name for layer in extra}}
    skipped |= {layer.name: f"{layer.kind} is not followed to its neuron: M = I" for layer in extra}
    return layers + extra, skipped


class _ConsumerCollector:
    """Gathers a layer's samples with one more column: the constant 1, filtered as long as the input is.

    Args:
        layer: whose inputs.
        calibration: settings.
        layers: that are listened to at the same time.

    Attributes:
        inputs: filters what reaches the layer; hand it to ``run_batches``.
        gathered: of all batches, once :meth:`flush` was called.
    """

    def __init__(self, layer: SpikingLayer, calibration: Calibration, layers: int) -> None:
        device = calibration.device or layer.parts[0].tensor.device
        self.layer = layer
        self.inputs = Collector(layer, self._emit)
        # Without damping the Hessian of few samples has no inverse, which its factorisation tells.
        self.gathered = Gathered(layer.columns + 1, layer.hessians or 1, device, hold=calibration.damping > 0)
        self._reservoir = Reservoir(self._add, calibration.max_samples, waiting(layers, layer.columns))
        self._filter = CausalFilter(layer.kernel)
        self._constants: list[Tensor] = []  # the constant 1 after 1, 2, ... steps, each (hessians, 1, 1)

    def end_batch(self, number: int) -> None:
        """The batch of this number has run."""
        self._reservoir.end_batch(number)

    def flush(self) -> None:
        """All batches have run: sum what still waits for a larger block."""
        self._reservoir.flush()

    def consumer(self, damping: float) -> Consumer:
        """The layer with the statistics of all batches.

        Raises:
            CalibrationError: the layer stayed silent, or its input holds NaN or infinity.
        """
        with in_layer(self.layer.name):
            return _consumer(self.layer, self.gathered.hessians(), damping)

    def _emit(self, filtered: list[Tensor]) -> None:
        while len(self._constants) < self.inputs.age:
            answer = self._filter.step(torch.ones(1, dtype=torch.float64, device="cpu"))
            self._constants.append(answer.reshape(-1, 1, 1).repeat_interleave(self.layer.parts[0].form.groups, dim=0))
        constant = self._constants[self.inputs.age - 1]
        for samples in as_samples(self.layer, filtered):
            self._reservoir.add(
                torch.cat([samples, constant.to(samples).expand(-1, samples.shape[1], 1)], dim=-1), self.inputs.more
            )

    def _add(self, samples: Tensor) -> None:
        with in_layer(self.layer.name):
            self.gathered.add(samples)


def _consumer(layer: SpikingLayer, hessians: list[Hessian], damping: float) -> Consumer:
    diagonal = torch.stack([hessian.diagonal() for hessian in hessians])
    inputs, silent = diagonal[:, :-1], diagonal == 0
    check_reached(inputs)
    owner, gain = layer.groups.to(diagonal.device), layer.gain.to(diagonal)
    weight = torch.cat([matrix(part) for part in layer.parts], dim=1).to(diagonal).mul_(gain[:, None])
    losses = [hessian.part(slice(-1)).loss(weight[all_or(owner == number)]) for number, hessian in enumerate(hessians)]
    total = torch.stack(losses).sum()
    ridge = torch.cat([damping * inputs.mean(-1, keepdim=True).expand_as(inputs), inputs.new_zeros(len(inputs), 1)], 1)
    damped = [hessian.damped(more) for hessian, more in zip(hessians, ridge.where(~silent, 1.0), strict=True)]
    scale = gain / total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    return Consumer(layer.name, layer.parts, damped, silent, owner, scale, damping)
