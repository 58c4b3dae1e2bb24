"""Run the model on calibration data, filter what reaches each layer, and sum one Hessian a layer.

Time ends here: a layer's input is filtered causally with the impulse response of the neuron that integrates it
(docs/theory.md, equation 2), brought to matrix form, and from then on a sample is a sample.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.collector import Collector, Reservoir, as_samples
from sbc_plugin.calibration.progress import progress_bar
from sbc_plugin.core.hessian import HessianAccumulator
from sbc_plugin.errors import CalibrationError, in_layer
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer, input_of, library_of, neutral
from sbc_plugin.settings import Calibration

DEFAULT = Calibration()


def calibrate(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    calibration: Calibration = DEFAULT,
    forward: Forward | None = None,
) -> dict[str, HessianAccumulator]:
    """Gather each layer's Hessian ``H = 2 (MX)^T (MX) / count`` in one pass. Source: docs/theory.md, equation 2.

    Args:
        model: left as it was: modes, hooks and random state included.
        calibration_data: iterable of batches, each (T, B, ...) or a tuple, list or dict that holds it.
        calibration: settings; ``order`` does not matter here.
        forward: ``forward(model, batch)`` runs one whole sequence.

    Returns:
        Accumulators by layer name. Those of one model merge with those of another process's data.

    Raises:
        CalibrationError: no data, data of the wrong shape, NaN or infinity, or sequences of a single step.
        UnsupportedModelError: a model, neuron or weight without a rule.
    """
    library = library_of(model)
    first, data = peek(calibration_data)
    layers, _ = library.find_layers(model, first, forward, calibration.temporal)
    gathered = gather(library, model, layers, data, calibration, forward)
    return {name: statistics.accumulator for name, statistics in gathered.items()}


@dataclass
class Statistics:
    """A layer's Hessian and what it was made from.

    Attributes:
        accumulator: the sum.
        sequences: how many sequences were seen.
    """

    accumulator: HessianAccumulator
    sequences: int = 0


def peek(calibration_data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and an iterable of all batches, the first included.

    Raises:
        CalibrationError: there is no batch, or the first is empty.
    """
    if isinstance(calibration_data, Tensor):
        shape = tuple(calibration_data.shape)
        raise CalibrationError(
            f"calibration_data is one tensor {shape}, an iterable of batches is needed; if it is one batch, "
            "(T, B, ...), give [tensor]"
        )
    try:
        iterator = iter(calibration_data)
    except TypeError:
        kind = type(calibration_data).__name__
        raise CalibrationError(
            f"calibration_data is no iterable of batches but {kind}; give a list or loader"
        ) from None
    try:
        first = next(iterator)
    except StopIteration:
        raise CalibrationError("calibration_data holds no batch; give at least one, or a fresh iterator") from None
    check_batch(first, 0)
    return first, (chain([first], iterator) if iterator is calibration_data else calibration_data)


def gather(
    library: SNNLibrary,
    model: nn.Module,
    layers: list[SpikingLayer],
    data: Iterable[Any],
    calibration: Calibration,
    forward: Forward | None,
    progress: bool | None = False,
) -> dict[str, Statistics]:
    """One pass over the data that fills one accumulator a layer. Raises as :func:`calibrate`."""
    listeners = [listener(layer, calibration) for layer in layers]
    collectors = [collector for collector, _, _ in listeners]
    for number in run_batches(library, model, collectors, data, calibration, forward, progress):
        for collector, reservoir, statistics in listeners:
            reservoir.end_batch(number)
            statistics.sequences += collector.sequences
    for _, reservoir, _ in listeners:
        reservoir.flush()
    return {collector.layer.name: statistics for collector, _, statistics in listeners}


def listener(layer: SpikingLayer, calibration: Calibration) -> tuple[Collector, Reservoir, Statistics]:
    """What filters a layer's inputs, what gathers them into blocks, and the statistics that the blocks end in."""
    device = calibration.device or layer.parts[0].tensor.device
    statistics = Statistics(HessianAccumulator(layer.columns, layer.hessians, device))
    reservoir = Reservoir(_into(layer, statistics.accumulator), calibration.max_samples)
    return Collector(layer, _through(layer, reservoir)), reservoir, statistics


def _through(layer: SpikingLayer, reservoir: Reservoir) -> Callable[[list[Tensor]], None]:
    def emit(filtered: list[Tensor]) -> None:
        for samples in as_samples(layer, filtered):
            reservoir.add(samples)

    return emit


def _into(layer: SpikingLayer, accumulator: HessianAccumulator) -> Callable[[Tensor], None]:
    def add(samples: Tensor) -> None:
        with in_layer(layer.name):
            accumulator.add(samples if layer.hessians is not None else samples[0])

    return add


def run_batches(
    library: SNNLibrary,
    model: nn.Module,
    collectors: list[Collector],
    data: Iterable[Any],
    calibration: Calibration,
    forward: Forward | None,
    progress: bool | None = False,
) -> Iterator[int]:
    """Run every batch through the model while the collectors listen; yield the number of each batch when it is done."""
    run = forward or library.default_forward(model)
    for number, batch in enumerate(progress_bar(data, "calibrating", "batch", progress)):
        run_batch(library, model, collectors, batch, number, calibration, run)
        yield number


def run_batch(
    library: SNNLibrary,
    model: nn.Module,
    collectors: list[Collector],
    batch: Any,
    number: int,
    calibration: Calibration,
    run: Forward,
) -> None:
    """Run one batch through the model while the collectors listen.

    Raises:
        CalibrationError: NaN or infinity, or sequences of one step.
    """
    check_batch(batch, number)
    for collector in collectors:
        collector.begin()
    with neutral(model), torch.no_grad(), listening(library, model, collectors):
        run(model, batch)
    for collector in collectors:
        collector.end()
    check_steps(collectors, number, calibration)


def check_steps(collectors: list[Collector], number: int, calibration: Calibration) -> None:
    """Refuse sequences that were one step long, where time matters.

    Raises:
        CalibrationError: they were.
    """
    steps = [count for collector in collectors for count in collector.steps.values()]
    if calibration.temporal and steps and max(steps) < 2:
        raise CalibrationError(
            f"batch {number}: sequences of one step (T = 1) have no spike train to keep; give input as (T, B, ...) "
            "with T >= 2, pass `forward` if the model takes one time step, or use Calibration(temporal=False)"
        )


def check_batch(batch: Any, number: int) -> None:
    """Refuse an empty input, NaN and infinity in a batch, where it is known which tensor its input is.

    Raises:
        CalibrationError: no step, no sequence or no feature; NaN or infinity.
    """
    try:
        x = input_of(batch)
    except CalibrationError:
        return  # a batch of the user's own kind, for the user's own forward
    if x.numel() == 0:
        raise CalibrationError(
            f"batch {number}: the input has shape {tuple(x.shape)}, so it holds no steps or sequences"
        )
    if x.is_floating_point() and not (x if x.layout == torch.strided else x.to_dense()).isfinite().all():
        raise CalibrationError(f"batch {number}: the input holds NaN or infinity; clean the calibration data")


@contextmanager
def listening(library: SNNLibrary | None, model: nn.Module, collectors: list[Collector]) -> Iterator[None]:
    """Hand layers' inputs and neurons' steps to the collectors inside the block; every hook is gone after it.

    Without a library no neuron steps, and only inputs are heard.
    """

    def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
        for collector in collectors:
            collector.on_step(name, x, feedback)

    with ExitStack() as stack:
        for collector in collectors:
            for handle in collector.hooks():
                stack.callback(handle.remove)
        if library is not None:
            stack.enter_context(library.watch_steps(model, on_step))
        yield
