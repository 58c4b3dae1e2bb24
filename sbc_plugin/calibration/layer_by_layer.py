"""Whole sequences layer by layer: all time steps of a layer before the next layer, with gradients, for tuning."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration.driver import Driver, as_input, result_of
from sbc_plugin.calibration.forward import Runner, Source, eval_mode, undisturbed

TOLERANCE = 1e-3  # of the largest output
SHARE = 0.01  # of spikes or outputs may differ: a membrane that meets its threshold rounds to either side

Reduction = Callable[[Tensor], Tensor]
REDUCTIONS: tuple[Reduction, ...] = (
    lambda steps: steps,
    lambda steps: steps.sum(0),
    lambda steps: steps.mean(0),
    lambda steps: steps[-1],
    lambda steps: steps.amax(0),
)


@dataclass(frozen=True)
class LayerByLayer:
    """Runs whole sequences through a model as one time step of T * B sequences, neurons over T steps each.

    Attributes:
        runner: of the model, which is in eval mode already.
        reduce: makes the model's output of the steps' outputs (T, B, ...).
    """

    runner: Runner
    reduce: Reduction

    def spikes(self, batch: Any, keep: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Any]:
        """As of :meth:`~sbc_plugin.calibration.forward.Runner.spikes`, up to rounding."""
        with undisturbed(self.runner.model):
            spikes, steps = _run(self.runner, batch)
        assert steps is not None
        return {name: keep(train) for name, train in spikes.items()}, self.reduce(steps)


@contextmanager
def layer_by_layer(runner: Runner, batch: Any) -> Iterator[Source]:
    """A faster way to a model's spikes inside the block, the runner itself where there is none.

    Whether a model can be run so is tried: spikes and output have to be those that it has step by step.

    Args:
        runner: of the model.
        batch: like those that will be run.
    """
    reduce = _reduction(runner, batch)
    if reduce is None:
        yield runner
        return
    with eval_mode(runner.model):
        yield LayerByLayer(runner, reduce)


def _reduction(runner: Runner, batch: Any) -> Reduction | None:
    """How the steps' outputs become the model's output; None where the model does not run layer by layer."""
    if not isinstance(runner.run, Driver) or runner.run.still:
        return None
    with torch.no_grad():
        expected, output = runner.spikes(batch, keep=lambda step: step)
        output = result_of(output)
        try:
            with eval_mode(runner.model):
                spikes, steps = _run(runner, batch)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):  # of a model that counts its steps
            return None
        if steps is None or not isinstance(output, Tensor) or spikes.keys() != expected.keys():
            return None
        if not all(alike(spikes[name], train, 0.0) for name, train in expected.items()):
            return None
        return next((reduce for reduce in REDUCTIONS if alike(reduce(steps), output)), None)


def alike(found: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether two outputs differ by no more than rounding explains.

    Args:
        found: any shape.
        expected: is of another shape where they are not alike.
        tolerance: of a number; None = a thousandth of the largest.
    """
    if found.shape != expected.shape:
        return False
    if tolerance is None:
        tolerance = TOLERANCE * float(expected.abs().max()) if expected.numel() else 0.0
    other = ~((found - expected).abs() <= tolerance)  # NaN is another
    return not found.numel() or float(other.double().mean()) <= SHARE


def _run(runner: Runner, batch: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """Spikes (T, B, ...) by name, and the output of each step (T, B, ...); None where it is no tensor."""
    driver = runner.run
    assert isinstance(driver, Driver)
    x = as_input(runner.model, batch)
    if x.dim() < 3:  # there is no time axis, or none of sequences
        return {}, None
    x = x.transpose(0, 1) if driver.batch_axis == 0 else x
    steps = len(x)
    merged = x.flatten(0, 1).unsqueeze(1 - driver.batch_axis)
    spikes: dict[str, Tensor] = {}
    with runner.library.layer_by_layer(runner.model, steps, spikes.__setitem__):
        output = result_of(driver(runner.model, merged))
    if not isinstance(output, Tensor):
        return spikes, None
    output = output[0] if output.dim() > 1 and len(output) == 1 else output
    return spikes, output.unflatten(0, (steps, -1))
