"""Run each neuron over a whole sequence in one call, layer by layer, instead of all neurons step by step.

The model is called on one time step of T * B sequences. What lies between the neurons treats sequences one by one, so
it does not notice; each neuron takes its input apart again, and runs over the T steps from rest. Where a model does
more with time than its neurons do, or mixes sequences, its answer is another one, which the caller has to compare.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from norse.torch.functional.iaf import iaf_feed_forward_step
from norse.torch.functional.leaky_integrator import li_feed_forward_step
from norse.torch.functional.leaky_integrator_box import li_box_feed_forward_step
from norse.torch.functional.lif import lif_feed_forward_step, lif_step
from norse.torch.functional.lif_box import lif_box_feed_forward_step
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.functional.threshold import threshold
from torch import Tensor, nn

from sbc_plugin.core.recurrences import Firing, Parameter, Slope, leaky_sum, recurrent_spikes, spikes_of
from sbc_plugin.norse.neurons import is_spiking
from sbc_plugin.norse.steps import replaced_steps

CURRENT_BASED = (lif_feed_forward_step, li_feed_forward_step)
LEAKY = (*CURRENT_BASED, lif_box_feed_forward_step, li_box_feed_forward_step)
INTEGRATORS = (li_feed_forward_step, li_box_feed_forward_step)
WRITTEN_OUT = (*LEAKY, iaf_feed_forward_step, lif_step)  # step functions whose gradients core has over whole sequences

OnSequence = Callable[[str, Tensor], None]


@contextmanager
def layer_by_layer(model: nn.Module, steps: int, on_sequence: OnSequence) -> Iterator[None]:
    """Inside the block each neuron takes (steps * B, ...), time first, for ``steps`` steps of B sequences.

    Args:
        model: in eval mode.
        steps: T.
        on_sequence: called with each neuron's name and its spikes (T, B, ...), where it spikes.
    """

    def over_time(name: str, neuron: nn.Module, original: Any) -> Any:
        def step(x: Tensor, state: Any = None, *rest: Any) -> tuple[Tensor, Any]:
            whole = x.unflatten(0, (steps, -1))
            output = run_over_time(original, whole, _first(state, whole.shape[1], len(x)), rest)
            if is_spiking(neuron):
                on_sequence(name, output)
            return output.flatten(0, 1), state

        return step

    with replaced_steps(model, over_time):
        yield


def _first(state: Any, sequences: int, merged: int) -> Any:
    """The state of the first step's sequences, of one that was made for all steps."""
    if isinstance(state, Tensor):
        return state[:sequences] if state.dim() and len(state) == merged else state
    if isinstance(state, tuple):
        parts = [_first(part, sequences, merged) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def run_over_time(step: Any, x: Tensor, state: Any, rest: tuple[Any, ...]) -> Tensor:
    """What a neuron sends over a whole sequence.

    Args:
        step: the neuron's function of one step.
        x: (T, B, ...), its input.
        state: before the first step.
        rest: what ``step`` takes behind the state: own weights, parameters and dt.

    Returns:
        (T, B, ...), the host's result up to rounding.
    """
    if not _is_written_out(step, rest):
        outputs = []
        for each in x:
            output, state = step(each, state, *rest)
            outputs.append(output)
        return torch.stack(outputs)
    parameters, dt = rest[-2:]
    if step is lif_step:
        return _recurrent(x, state, rest)
    if step is iaf_feed_forward_step:
        return spikes_of(x, 1.0, state.v, _firing(parameters))
    if step in CURRENT_BASED:
        x = leaky_sum(x + _impulse(state.i, x), 1 - dt * _value(parameters.tau_syn_inv))
    rate, leak = dt * _value(parameters.tau_mem_inv), _value(parameters.v_leak)
    drive = (x if _is_zero(leak) else x + leak) * rate
    if step in INTEGRATORS:
        return leaky_sum(drive + _impulse(state.v * (1 - rate), x), 1 - rate)
    return spikes_of(drive, 1 - rate, state.v, _firing(parameters))


def _impulse(start: Tensor, x: Tensor) -> Tensor | float:
    """What has to be added to an input (T, ...) so that a sum that starts at rest starts with ``start``."""
    if not start.any():
        return 0.0
    impulse = torch.zeros_like(x)
    impulse[0] = start
    return impulse


def _recurrent(x: Tensor, state: Any, rest: tuple[Any, ...]) -> Tensor:
    input_weights, recurrent_weights, parameters, dt = rest
    decays = (1 - dt * _value(parameters.tau_syn_inv), 1 - dt * _value(parameters.tau_mem_inv))
    leak, firing = _value(parameters.v_leak), _firing(parameters, through_reset=False)
    assert firing.reset is not None
    firing = Firing(firing.threshold - leak, firing.reset - leak, firing.slope, firing.through_reset)
    current = torch.nn.functional.linear(x, input_weights)
    i, v, z = (part.to(current).expand_as(current[0]) for part in (state.i, state.v - leak, state.z))
    return recurrent_spikes(current, recurrent_weights, decays, (i, v, z), firing)


def _is_written_out(step: Any, rest: tuple[Any, ...]) -> bool:
    """Whether core has this step over whole sequences, with such parameters."""
    if step not in WRITTEN_OUT:
        return False
    parameters = rest[-2]
    if step not in INTEGRATORS and not _has_gradient(parameters.method):
        return False
    if step is lif_step:
        numbers = (parameters.tau_syn_inv, parameters.tau_mem_inv, parameters.v_leak, parameters.v_th)
        return all(not isinstance(_value(number), Tensor) for number in (*numbers, parameters.v_reset))
    return getattr(parameters, "reset_method", reset_value) in (reset_value, reset_subtract)


def _firing(parameters: Any, through_reset: bool = True) -> Firing:
    subtracts = getattr(parameters, "reset_method", reset_value) is reset_subtract
    reset = None if subtracts else _value(parameters.v_reset)
    return Firing(_value(parameters.v_th), reset, _slope(parameters.method, parameters.alpha), through_reset)


@cache
def _has_gradient(method: str) -> bool:
    with torch.enable_grad():
        return bool(threshold(torch.zeros(1, device="cpu", requires_grad=True), method, 1.0).requires_grad)


def _slope(method: str, alpha: Any) -> Slope:
    """The host's surrogate derivative; SuperSpike's, 1 / (|x| + 1)^2, in place."""
    if method == "super":
        return lambda x: x.abs_().add_(1).square_().reciprocal_()

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(threshold(x, method, alpha).sum(), x)
        return derivative

    return slope


def _value(parameter: Any) -> Parameter:
    """A parameter as a number where all neurons share it."""
    if not isinstance(parameter, Tensor):
        return float(parameter)
    parameter = parameter.detach()
    return float(parameter) if parameter.numel() == 1 else parameter


def _is_zero(value: Parameter) -> bool:
    return not value.any() if isinstance(value, Tensor) else value == 0
