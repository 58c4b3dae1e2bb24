"""From single calls of a model, however a loop makes them, to whole sequences and the layers' Hessians."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import check_batch
from sbc_plugin.calibration.collector import Collector
from sbc_plugin.calibration.driver import Driver
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.hessians import HessianCollector, Statistics, check_steps, listening
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.errors import CalibrationError
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import Calibration

TRACED_STEPS = 4


class Recorder:
    """Runs a model's calls, cuts them into sequences, and gathers the Hessian of the layers that it listens to.

    A call with a state that is not None goes on with the sequence; any other call begins one.

    Args:
        model: whose calls.
        calibration: settings; ``order`` does not matter here.
        forward: ``forward(model, batch)`` runs one whole sequence; None: as the model is called.
    """

    def __init__(self, model: nn.Module, calibration: Calibration, forward: Forward | None) -> None:
        self.model, self.calibration, self.forward = model, calibration, forward
        self.library = library_or_plain(model)
        self.driver: Driver | None = None  # of a step model, once a call has shown that it is one
        self.step_axes = 0  # of a step's input
        self.layers: list[SpikingLayer] | None = None
        self.statistics: dict[str, Statistics] = {}
        self.sequences, self.open = 0, False
        self.listen([])

    def listen(self, layers: list[SpikingLayer]) -> None:
        """Gather for these layers from now on."""
        self.collectors = [HessianCollector(layer, self.calibration) for layer in layers]
        for collector in self.collectors:
            collector.inputs = QuantisedInputs(collector.layer, collector.inputs.emit)
        self.statistics |= {collector.layer.name: collector.statistics for collector in self.collectors}

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[SpikingLayer], dict[str, str]]:
        """The model's layers in the order in which they run, and what was left out and why."""
        batch, again = _first(args, kwargs)
        forward: Forward | None = self.forward or (lambda model, batch: again(model, batch))
        if self.forward is None and isinstance(batch, Tensor):
            # An input alone, without a state, may hold a whole sequence for a model that takes steps.
            alone = len(args) + len(kwargs) == 1 and batch.dim() > 2
            whole = batch if alone else batch.expand(TRACED_STEPS, *batch.shape)
            driver = self.library.default_forward(self.model, whole)
            if isinstance(driver, Driver) and driver.state_items is not None:
                self.driver, self.step_axes = driver, whole.dim() - 1
                forward, batch = driver, whole
        return self.library.find_layers(self.model, batch, forward, self.calibration.temporal)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], original: Callable[..., Any]) -> Any:
        """Run one call while the collectors record.

        Raises:
            CalibrationError: a state without a sequence that it could belong to, or bad input.
        """
        extras = [*args[1:], *(kwargs.values() if args else list(kwargs.values())[1:])]
        begins = all(extra is None for extra in extras)
        batch, _ = _first(args, kwargs)
        check_batch(batch, self.sequences + (begins and self.open))  # before anything is counted
        if begins:
            self.end()
            self.begin()
        else:
            self._check_goes_on()
        with eval_mode(self.model), torch.no_grad(), listening(self.library, self.model, self._inputs()):
            if self.forward is not None:
                return self.forward(self.model, batch)
            if self.driver is not None and isinstance(batch, Tensor) and batch.dim() > self.step_axes:
                return self.driver(self.model, batch)
            return original(*args, **kwargs)

    def begin(self) -> None:
        """A new sequence: filters start from rest."""
        for inputs in self._inputs():
            inputs.begin()
        self.open = True

    def end(self) -> None:
        """The sequence is over.

        Raises:
            CalibrationError: it was one step long.
        """
        if not self.open:
            return
        self.open = False
        for collector in self.collectors:
            collector.inputs.end()
            collector.end_batch(self.sequences)
        check_steps(self._inputs(), self.sequences, self.calibration.temporal)
        self.sequences += 1

    def finish(self) -> None:
        """End the last sequence and pass on all that was gathered. Raises as :meth:`end`."""
        self.end()
        for collector in self.collectors:
            collector.flush()

    def _inputs(self) -> list[Collector]:
        return [collector.inputs for collector in self.collectors]

    def _check_goes_on(self) -> None:
        if not self.open:
            raise CalibrationError("a state was given before a sequence began; start each sequence with state None")
        layouts = {site.layout for collector in self.collectors for site in collector.layer.sites}
        if layouts - {"step"}:
            raise CalibrationError(
                "a state was given to a model that takes whole sequences (T, B, ...); give each sequence in one call"
            )


class QuantisedInputs(Collector):
    """Takes a layer's input as its input quantizer hands it to the weight."""

    def _hook(self, index: int) -> Callable[..., None]:
        record = super()._hook(index)
        quantise = getattr(self.layer.parts[index].module, "input_quant", None)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            record(module, inputs if quantise is None else (quantise(inputs[0]),))

        return hook


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Forward]:
    """The first argument of a call, and the call again with another one in its place.

    Raises:
        CalibrationError: there is no argument.
    """
    if args:
        return args[0], lambda model, batch: model(batch, *args[1:], **kwargs)
    if not kwargs:
        raise CalibrationError("the model was called without an input")
    name = next(iter(kwargs))
    return kwargs[name], lambda model, batch: model(**(kwargs | {name: batch}))
