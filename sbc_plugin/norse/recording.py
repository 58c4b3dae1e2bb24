"""What every neuron saw and did at every step of one batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.layers import Forward
from sbc_plugin.norse.forward import default_forward
from sbc_plugin.norse.neurons import below_threshold, is_spiking, state_tensor
from sbc_plugin.norse.steps import Step, intercept_steps


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


@autocast_off()
def record_states(model: nn.Module, batch: Any, forward: Forward | None = None) -> dict[str, NeuronRecord]:
    """Run one batch and capture the input, v before and after reset, i and spikes of every neuron and step.

    Args:
        model: a Norse model in step or sequence mode.
        batch: as in ``compress``: the input, or a tuple, list or dict that holds it.
        forward: ``forward(model, batch)`` runs one whole sequence; the default is :func:`default_forward`.

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

    run = forward or default_forward(model, batch)
    with eval_mode(model), torch.no_grad(), intercept_steps(model, on_step):
        run(model, batch)
    return {
        name: NeuronRecord(*(_stacked(column) for column in zip(*steps, strict=True)))
        for name, steps in records.items()
    }


def _stacked(values: tuple[Tensor | None, ...]) -> Any:
    present = [value for value in values if value is not None]
    return torch.stack(present) if len(present) == len(values) and present else None
