"""Norse models: which neuron integrates each weight, its impulse response, and what every neuron did at every step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sbc_plugin.errors import extra

with extra("norse"):
    from sbc_plugin.calibration.driver import Driver
    from sbc_plugin.layers import Forward, SpikingLayer
    from sbc_plugin.norse import discovery
    from sbc_plugin.norse.calling import state_items
    from sbc_plugin.norse.copying import copy_model
    from sbc_plugin.norse.forward import default_forward, is_step_model
    from sbc_plugin.norse.layer_by_layer import layer_by_layer
    from sbc_plugin.norse.linear import linear_neurons, linear_state
    from sbc_plugin.norse.membranes import MembraneReport, StateReport, quantize_membranes, restore_membranes
    from sbc_plugin.norse.neurons import (
        holds_weights,
        is_neuron,
        is_spiking,
        register_neuron,
        state_tensor,
        threshold_of,
    )
    from sbc_plugin.norse.recording import NeuronRecord, record_states
    from sbc_plugin.norse.states import FlatStep, drop_surrogates, flat_step
    from sbc_plugin.norse.steps import Step, intercept_steps


__all__ = [
    "FlatStep",
    "MembraneReport",
    "NeuronRecord",
    "StateReport",
    "copy_model",
    "default_forward",
    "drop_surrogates",
    "find_layers",
    "flat_step",
    "holds_weights",
    "is_neuron",
    "is_step_model",
    "layer_by_layer",
    "linear_neurons",
    "linear_state",
    "quantize_membranes",
    "record_states",
    "register_neuron",
    "restore_membranes",
    "state_items",
    "thresholds",
    "watch_steps",
]

TRACED_STEPS, TRACED_BATCH = 4, 2


def find_layers(
    model: nn.Module, batch: Any, forward: Forward | None = None, temporal: bool = True
) -> tuple[list[SpikingLayer], dict[str, str]]:
    """See :func:`sbc_plugin.norse.discovery.find_layers`; a step model is traced on a few steps of two sequences."""
    run = forward or default_forward(model, batch)
    if isinstance(run, Driver) and run.state_items is not None:
        batch = run.sample(batch, TRACED_STEPS, TRACED_BATCH)
    return discovery.find_layers(model, batch, run, temporal)


@contextmanager
def watch_steps(
    model: nn.Module, on_step: Callable[[str, Tensor, Tensor | None, Tensor | None], None]
) -> Iterator[None]:
    """Call ``on_step(name, x, feedback, spikes)`` after each neuron step inside the block.

    ``x`` is the step's input; ``feedback`` the neuron's own last spikes where its cell holds recurrent weights, else
    None; ``spikes`` what it sent, None for an integrator that never spikes.
    """

    def watched(step: Step) -> tuple[Tensor, Any]:
        feedback = state_tensor(step.state, "z") if step.weights else None
        output, state = step.run(step.x)
        on_step(step.name, step.x, feedback, output if is_spiking(step.neuron) else None)
        return output, state

    with intercept_steps(model, watched):
        yield


def thresholds(model: nn.Module) -> dict[str, Tensor]:
    """The threshold of every neuron module that spikes, by name: a scalar, or a value a neuron."""
    values = {name: threshold_of(module) for name, module in model.named_modules()}
    return {name: value for name, value in values.items() if value is not None}
