"""Run the model on calibration data, filter what reaches each layer, and sum one Hessian a layer.

Time ends here: a layer's input is filtered causally with the impulse response of the neuron that integrates it
(docs/theory.md, equation 2), brought to matrix form, and from then on a sample is a sample.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples, waiting
from sbc_plugin.calibration.forward import OnStep, Runner, hooked
from sbc_plugin.calibration.progress import Shown, progress_bar
from sbc_plugin.calibration.shares import check_lengths
from sbc_plugin.calibration.sums import sum_fired, sum_statistics
from sbc_plugin.core.accumulators import DiagonalAccumulator, HessianAccumulator
from sbc_plugin.core.hessian import owner_of_rows
from sbc_plugin.errors import CalibrationError, in_layer
from sbc_plugin.layers import SNNLibrary, SpikingLayer
from sbc_plugin.settings import Calibration

DEFAULT = Calibration()


@dataclass
class Statistics:
    """A layer's Hessian and what it was made from.

    Attributes:
        accumulator: the sum.
        sequences: how many sequences were seen.
        silent: (rows,), True where the neuron never spiked; None where nobody watched.
    """

    accumulator: HessianAccumulator
    sequences: int = 0
    silent: Tensor | None = None

    @property
    def overview(self) -> "Overview":
        """The same without the Hessian."""
        found = self.accumulator
        return Overview(found.diagonal, found.count, self.sequences, self.silent)


@dataclass
class Overview:
    """What is known of a layer's Hessian without it.

    Attributes:
        diagonal: (columns,) or (groups, columns) of the sum of squares, 0 where an input was 0 in every sample.
        samples: how many samples were seen.
        sequences: how many sequences were seen.
        silent: as of :class:`Statistics`.
    """

    diagonal: Tensor
    samples: int
    sequences: int
    silent: Tensor | None

    def dead_weights(self, layer: SpikingLayer) -> Tensor:
        """True where a weight of the layer reads an input that was always 0, (rows, columns)."""
        dead = self.diagonal == 0
        dead = dead if dead.dim() == 2 else dead[None]
        return dead[owner_of_rows(layer.rows, len(dead), layer.groups, dead.device)]


class HessianCollector:
    """Gathers one layer's statistics while the model runs.

    Args:
        layer: whose Hessian.
        calibration: settings.
        layers: that are listened to at the same time.
        whole: False gathers the diagonal alone, for the statistics' overview.

    Attributes:
        layer: whose Hessian.
        inputs: filters what reaches the layer; hand it to :func:`run_batch` or :func:`listening`.
        statistics: complete once :meth:`flush` was called; without ``whole`` for their overview alone.
    """

    def __init__(self, layer: SpikingLayer, calibration: Calibration, layers: int = 1, *, whole: bool = True) -> None:
        device = calibration.device or layer.parts[0].tensor.device
        self.layer = layer
        kind: type[HessianAccumulator | DiagonalAccumulator] = HessianAccumulator if whole else DiagonalAccumulator
        self.accumulator = kind(layer.columns, layer.hessians, device)
        self.statistics = Statistics(cast(HessianAccumulator, self.accumulator))
        self.inputs = Collector(layer, self._emit)
        self._reservoir = Reservoir(self._add, calibration.max_samples, waiting(layers, layer.columns))

    def end_batch(self, number: int) -> None:
        """The batch of this number has run."""
        self._reservoir.end_batch(number)
        self.statistics.sequences += self.inputs.sequences

    def flush(self) -> None:
        """All batches have run: sum what still waits for a larger block."""
        self._reservoir.flush()

    def taken(self) -> Statistics:
        """The statistics, which are forgotten here.

        A collector and its inputs refer to each other, and would keep them until garbage is collected.
        """
        statistics = self.statistics
        del self.statistics, self.accumulator
        return statistics

    def _emit(self, filtered: list[Tensor]) -> None:
        for samples in as_samples(self.layer, filtered):
            self._reservoir.add(samples, self.inputs.more)

    def _add(self, samples: Tensor) -> None:
        with in_layer(self.layer.name):
            self.accumulator.add(samples if self.layer.hessians is not None else samples[0])


def gather(
    runner: Runner,
    layers: Sequence[SpikingLayer],
    data: Iterable[Any],
    calibration: Calibration,
    progress: Shown = False,
    silence: bool = False,
) -> dict[str, Statistics]:
    """One pass over the data that fills one accumulator a layer, with all ranks' sums.

    Raises as :func:`~sbc_plugin.calibration.calibrate.calibrate` does.

    Args:
        runner: of the model.
        layers: whose statistics.
        data: batches, of this rank's share.
        calibration: settings.
        progress: show a progress bar; None = on a terminal.
        silence: also note which neurons stay silent.
    """
    collectors = [HessianCollector(layer, calibration, len(layers)) for layer in layers]
    _fill(collectors, runner, data, calibration, progress, silence)
    found = {each.layer.name: each.taken() for each in collectors}
    sum_statistics(found.values())
    return found


def gather_overview(
    runner: Runner,
    layers: Sequence[SpikingLayer],
    data: Iterable[Any],
    calibration: Calibration,
    progress: Shown = False,
    silence: bool = False,
) -> dict[str, Overview]:
    """The same of what can be known without Hessians, in little memory."""
    collectors = [HessianCollector(layer, calibration, len(layers), whole=False) for layer in layers]
    _fill(collectors, runner, data, calibration, progress, silence)
    return {each.layer.name: each.statistics.overview for each in collectors}


def _fill(
    collectors: Sequence[HessianCollector],
    runner: Runner,
    data: Iterable[Any],
    calibration: Calibration,
    progress: Shown,
    silence: bool,
) -> None:
    """Run all of this rank's data while the collectors listen."""
    inputs = [collector.inputs for collector in collectors]
    fired = FiredNeurons() if silence else None
    for number in run_batches(runner, inputs, data, calibration.temporal, progress, fired):
        for collector in collectors:
            collector.end_batch(number)
    for collector in collectors:
        collector.flush()
    check_lengths(data)
    if fired is not None:
        spiked = sum_fired(fired.fired)
        for collector in collectors:
            collector.statistics.silent = silent_rows(collector.layer, spiked)


def run_batches(
    runner: Runner,
    collectors: Sequence[Collector],
    data: Iterable[Any],
    temporal: bool,
    progress: Shown = False,
    fired: "FiredNeurons | None" = None,
) -> Iterator[int]:
    """Run every batch through the model while the collectors listen; yield the number of each batch when it is done."""
    for number, batch in ranks.numbered(progress_bar(data, "calibrating", "batch", progress)):
        run_batch(runner, collectors, batch, number, temporal, fired)
        yield number


def run_batch(
    runner: Runner,
    collectors: Sequence[Collector],
    batch: Any,
    number: int,
    temporal: bool,
    fired: "FiredNeurons | None" = None,
) -> None:
    """Run one batch through the model while the collectors listen.

    Raises:
        CalibrationError: NaN or infinity, or sequences of one step.
    """
    runner.check(batch, number)
    for collector in collectors:
        collector.begin()
    with torch.no_grad():
        runner(batch, hooks=_hooks(collectors), on_step=_on_step(collectors, fired))
    for collector in collectors:
        collector.end()
    check_steps(collectors, number, temporal)


def check_steps(collectors: Sequence[Collector], number: int, temporal: bool) -> None:
    """Refuse sequences that were one step long, where time matters.

    Raises:
        CalibrationError: they were.
    """
    steps = [count for collector in collectors for count in collector.steps.values()]
    if temporal and steps and max(steps) < 2:
        raise CalibrationError(
            f"batch {number}: sequences of one step (T = 1) have no spike train to keep; give input as (T, B, ...) "
            "with T >= 2, pass `forward` if the model takes one time step, or use Calibration(temporal=False)"
        )


@contextmanager
def listening(library: SNNLibrary, model: nn.Module, collectors: Sequence[Collector]) -> Iterator[None]:
    """Hand layers' inputs and neurons' steps to the collectors inside the block; every hook is gone after it."""
    with hooked(_hooks(collectors)), library.watch_steps(model, _on_step(collectors)):
        yield


def _hooks(collectors: Sequence[Collector]) -> Iterator[Any]:
    return (handle for collector in collectors for handle in collector.hooks())


def _on_step(collectors: Sequence[Collector], fired: "FiredNeurons | None" = None) -> OnStep:
    def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
        for collector in collectors:
            collector.on_step(name, x, feedback)
        if fired is not None:
            fired(name, spikes)

    return on_step


class FiredNeurons:
    """Notes which neurons have spiked, step by step.

    Attributes:
        fired: name -> (...), of one sequence's neurons; None where the module sends no spikes, or of several shapes.
    """

    def __init__(self) -> None:
        self.fired: dict[str, Tensor | None] = {}

    def __call__(self, name: str, spikes: Tensor | None) -> None:
        """Of one step, (B, ...); of an integrator None."""
        now = None if spikes is None else (spikes != 0).any(0)
        before = self.fired.get(name, now)
        if now is None or before is None or now.shape != before.shape:
            self.fired[name] = None
        else:
            self.fired[name] = before | now


def silent_rows(layer: SpikingLayer, fired: Mapping[str, Tensor | None]) -> Tensor:
    """(rows,), True where no neuron that the layer feeds spiked; none where one is a readout, or of another shape.

    Args:
        layer: whose rows.
        fired: as of :class:`FiredNeurons`.
    """
    found = torch.zeros(layer.rows, dtype=torch.bool, device="cpu")
    for site in layer.sites:
        seen = None if site.neuron is None else fired.get(site.neuron)
        if seen is not None and seen.dim():
            seen = seen.movedim(0, -1) if layer.parts[0].form.axes else seen
        if seen is None or not seen.dim() or seen.shape[-1] != layer.rows:
            return torch.zeros_like(found)
        found |= seen.reshape(-1, layer.rows).any(0).cpu()
    return ~found if layer.sites else found
