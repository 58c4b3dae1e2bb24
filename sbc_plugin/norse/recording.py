"""Watch every step of every neuron, through the one seam all Norse neurons have: ``.activation``.

Step mode and sequence mode both call ``neuron.activation(x, state, [w_in, w_rec,] p, dt)`` once a time step, so
swapping it sees everything; it is put back on any exit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.layers import Forward
from sbc_plugin.norse.forward import default_forward
from sbc_plugin.norse.neurons import NEURONS, RECURRENT, below_threshold, is_spiking, state_tensor


class Step(NamedTuple):
    """One call of a neuron's step function.

    Attributes:
        name: of the neuron in ``model.named_modules()``.
        neuron: the module.
        x: input, (B, ...).
        state: the state before the step.
        weights: () or (input weights, recurrent weights).
        run: ``run(x)`` performs the step and returns (output, new state); ``run(x, parameters, state)`` with others.
    """

    name: str
    neuron: nn.Module
    x: Tensor
    state: Any
    weights: tuple[Tensor, ...]
    run: Callable[..., tuple[Tensor, Any]]


@contextmanager
def intercept_steps(model: nn.Module, on_step: Callable[[Step], tuple[Tensor, Any]]) -> Iterator[None]:
    """Call ``on_step`` instead of each neuron's step, inside the block; it returns what the step shall return."""
    saved: list[tuple[nn.Module, Any, bool]] = []
    try:
        for name, neuron in model.named_modules():
            if isinstance(neuron, NEURONS):
                saved.append((neuron, neuron.activation, "activation" in vars(neuron)))
                neuron.activation = _watched(name, neuron, neuron.activation, on_step)
        yield
    finally:
        for neuron, original, own in saved:
            if own:
                neuron.activation = original
            else:
                del neuron.activation


def _watched(name: str, neuron: nn.Module, original: Any, on_step: Callable[[Step], tuple[Tensor, Any]]) -> Any:
    recurrent = isinstance(neuron, RECURRENT)

    def activation(x: Tensor, state: Any, *rest: Any) -> tuple[Tensor, Any]:
        weights, (parameters, dt) = (rest[:2], rest[2:]) if recurrent else ((), rest)

        def run(x: Tensor, parameters: Any = parameters, state: Any = state) -> tuple[Tensor, Any]:
            result: tuple[Tensor, Any] = original(x, state, *weights, parameters, dt)
            return result

        return on_step(Step(name, neuron, x, state, weights, run))

    return activation


@dataclass(frozen=True)
class NeuronRecord:
    """What one neuron module saw and did, stacked over its steps.

    Attributes:
        input: (T, B, ...), the current handed to the neuron; of a recurrent cell, its input before the weights.
        v_before: (T, B, ...), membrane before reset; None for neurons without a threshold that can be lifted.
        v: (T, B, ...), membrane after reset; None where the state has none.
        i: (T, B, ...), synaptic current after the step; None for neurons without one.
        spikes: (T, B, ...), what the neuron sent (an integrator's membrane).
    """

    input: Tensor
    v_before: Tensor | None
    v: Tensor | None
    i: Tensor | None
    spikes: Tensor


def record_states(model: nn.Module, batch: Any, forward: Forward | None = None) -> dict[str, NeuronRecord]:
    """Run one batch and capture the input, v before and after reset, i and spikes of every neuron and step.

    Args:
        model: a Norse model in step or sequence mode.
        batch: as in ``compress``: the input, or a tuple, list or dict that holds it.
        forward: ``forward(model, batch)`` runs one whole sequence; the default drives a step model over the first axis.

    Returns:
        A record for each neuron that ran, by its name in ``model.named_modules()``.

    Raises:
        CalibrationError: the default forward was given an input it cannot run.
    """
    records: dict[str, list[tuple[Tensor | None, ...]]] = {}

    def on_step(step: Step) -> tuple[Tensor, Any]:
        output, state = step.run(step.x)
        lifted = below_threshold(step.neuron, step.state) if is_spiking(step.neuron) else None
        v_before = state_tensor(step.run(step.x, *lifted)[1], "v") if lifted is not None else None
        v, current = state_tensor(state, "v"), state_tensor(state, "i")
        values = (step.x, v_before, v, current, output)
        full = tuple(None if value is None else value.detach().clone() for value in values)
        records.setdefault(step.name, []).append(full)
        return output, state

    with eval_mode(model), torch.no_grad(), intercept_steps(model, on_step):
        (forward or default_forward(model))(model, batch)
    return {
        name: NeuronRecord(*(_stacked(column) for column in zip(*steps, strict=True)))
        for name, steps in records.items()
    }


def _stacked(values: tuple[Tensor | None, ...]) -> Any:
    present = [value for value in values if value is not None]
    return torch.stack(present) if len(present) == len(values) and present else None
