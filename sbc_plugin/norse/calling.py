"""How a model takes time, found out by calling it: a few small calls show which axis its neurons step along.

Names of arguments, attributes and classes say nothing about that; steps of neurons, and the states that they go on
from, do.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from norse.torch import Lift
from torch import Tensor, nn

from sbc_plugin.calibration.driver import Driver, first_result
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.norse.neurons import NEURONS, SEQUENCE
from sbc_plugin.norse.watched_calls import Call, Caller

FEW = 2  # entries of the first axes that the calls take, if the model accepts so few


def driver_of(model: nn.Module, x: Tensor, batch_first: bool | None = None) -> Driver:
    """The driver of a model for data like ``x``: (T, B, ...), (B, T, ...), or (B, ...) without a time axis.

    Args:
        model: is called on small parts of ``x``, or on all of it if it refuses those.
        x: the input of one batch, as :func:`~sbc_plugin.calibration.driver.as_input` gives it.
        batch_first: the data is (B, T, ...), or is not; None: it is as the model itself takes it, and (T, B, ...) for
            one that is called a step at a time.

    Raises:
        UnsupportedModelError: the model keeps its neurons' states from one call to the next.
    """
    if not any(isinstance(module, NEURONS) for module in model.modules()):
        return Driver()
    if x.dim() < 2 or not x.numel():
        return _guess(model, batch_first)
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        x = x.clone() if x.is_inference() else x
        caller = Caller(model)
        call, sample = None, x
        for sample in _samples(x):
            call = caller(sample)
            if call is not None:
                break
        if call is None:
            return _step_driver(caller, x, batch_first) or _guess(model, batch_first)
        _refuse_kept_states(caller, sample)
        others = [_resized(caller, sample, axis) for axis in (0, 1)]
        time = _time_axis(caller, call, others, sample)
        if time is None:
            if step := _step_driver(caller, x, batch_first):
                return step
            if not call.chained:
                return Driver()
            # The model repeats a still input over steps of its own: axis 0 counts the sequences.
            still = others[0] is not None and others[0].lengths != call.lengths
            if not still:
                return Driver()
            return Driver(batch_axis=0, output_axes=_axes_of_still(caller, call, others[0], sample), still=True)
    swapped = batch_first is not None and batch_first != (time == 1)
    return Driver(
        batch_axis=time if swapped else 1 - time,
        swapped=swapped,
        output_axes=_output_axes(call, others[time], others[1 - time], sample.shape[time]),
    )


def _samples(x: Tensor) -> Iterator[Tensor]:
    """Small parts of ``x`` to try, the smallest first; all of it in the end."""
    few = x[:FEW]
    if x.dim() > 2 and x.shape[1] > FEW:
        yield few[:, :FEW]
    yield few
    if len(x) > FEW:
        yield x


def state_items(model: nn.Module, x: Tensor) -> int:
    """How many results of a call on one step ``x`` (B, ...) are the state of the next; 0 for a model without steps."""
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        return _handed_on(Caller(model), x, x)[0]


def goes_on(model: nn.Module, x: Tensor) -> bool:
    """Whether a call of a sequence model on (T, B, ...) goes on from the state that the call before returned last."""
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        caller = Caller(model)
        first = caller(x[:1])
        results = None if first is None else first.results
        if not isinstance(results, tuple | list) or len(results) < 2:
            return False
        second = caller(x[:1], results[-1])
        return second is not None and bool(second.resumed)


def _resized(caller: Caller, x: Tensor, axis: int) -> Call | None:
    """A call on twice as many entries of an axis, or on one fewer; None if the model takes neither."""
    call = caller(torch.cat([x, x], axis))
    if call is None and x.shape[axis] > 1:
        call = caller(x.narrow(axis, 0, x.shape[axis] - 1))
    return call


def _time_axis(caller: Caller, call: Call, others: list[Call | None], x: Tensor) -> int | None:
    """The axis with whose length the number of steps grows; of a model of fixed length, the axis of that length.

    A still input may have as many features as it is shown for steps; its first step knows of all of them.
    """
    grows = [other is not None and other.steps != call.steps for other in others]
    if any(grows):
        return 0 if grows[0] else 1
    if call.chained:
        for axis in (0, 1):
            fixed = others[axis] is None and others[1 - axis] is not None
            if fixed and max(call.steps.values()) == x.shape[axis] and _comes_later(caller, call, x, axis):
                return axis
    return None


def _comes_later(caller: Caller, call: Call, x: Tensor, axis: int) -> bool:
    """Whether all neurons' first steps stay as they are when the last entry along an axis of ``x`` changes."""
    changed = x.clone()
    changed.select(axis, -1).add_(1)
    other = caller(changed)
    return other is None or all(torch.equal(first, other.firsts[name]) for name, first in call.firsts.items())


def _step_driver(caller: Caller, x: Tensor, batch_first: bool | None) -> Driver | None:
    """The driver of a model that goes on from what a call on one step returned last; None if it does not."""
    x = x.transpose(0, 1) if batch_first else x
    items, start = _handed_on(caller, x[0], x[1 % len(x)])
    if not items:
        return None
    return Driver(items, start, batch_axis=0 if batch_first else 1, swapped=bool(batch_first))


def _handed_on(caller: Caller, x: Tensor, following: Tensor) -> tuple[int, tuple[None, ...]]:
    """How many results of a step the next call goes on from, 0 if none; and what the first call takes besides."""
    start: tuple[None, ...] = ()
    call = caller(x)
    if call is None:
        start = (None,)
        call = caller(x, None)
    results = None if call is None else call.results
    if call is None or call.chained or not isinstance(results, tuple | list):
        return 0, start
    best, most = 0, 0
    for items in range(1, len(results)):
        first = caller(x, *start)  # once more, since some models write into the state that they are given
        second = None if first is None else caller(following, *first.results[-items:])
        if second is not None and len(second.resumed) > most:
            best, most = items, len(second.resumed)
    return best, start


def _refuse_kept_states(caller: Caller, x: Tensor) -> None:
    again = caller(x)
    if again is not None and again.resumed:
        kind, names = type(caller.model).__name__, ", ".join(sorted(again.resumed))
        raise UnsupportedModelError(
            f"{kind} keeps the states of its neurons ({names}) from one call to the next, so one batch would go on "
            "from the one before; pass `forward`, which resets them: def forward(model, batch): model.reset(); return "
            "model(batch)"
        )


def _output_axes(call: Call, longer: Call | None, wider: Call | None, steps: int = 0) -> tuple[int, ...]:
    """Where the output has (time, batch), or batch alone where time does not change its shape; () if unclear.

    Args:
        call: whose output.
        longer: the call on more steps; None where the model takes no other number of them.
        wider: the call on more sequences.
        steps: of the input; an output axis of that length is time where ``longer`` is None.
    """
    time, batch = _grown(call.results, longer), _grown(call.results, wider)
    output = first_result(call.results)
    if longer is None and steps and isinstance(output, Tensor):
        axes = [axis for axis, length in enumerate(output.shape) if length == steps and axis != batch]
        time = axes[0] if axes else None
    if batch is None or (time is None and batch > 0):
        return ()
    return (batch,) if time is None else (time, batch)


def _axes_of_still(caller: Caller, call: Call, wider: Call | None, x: Tensor) -> tuple[int, ...]:
    """As of :func:`_output_axes`; time is the axis along which the neurons' last step moves the last entry alone."""
    other = caller.with_other_ends(call, x)
    output, moved = first_result(call.results), None if other is None else first_result(other.results)
    batch = _grown(call.results, wider)
    if isinstance(output, Tensor) and isinstance(moved, Tensor) and output.shape == moved.shape and batch is not None:
        places = (output != moved).nonzero()
        for axis, length in enumerate(output.shape):
            if axis != batch and length > 1 and len(places) and (places[:, axis] == length - 1).all():
                return axis, batch
    return _output_axes(call, None, wider)


def _grown(results: Any, other: Call | None) -> int | None:
    before, after = first_result(results), None if other is None else first_result(other.results)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dim() != after.dim():
        return None
    grown = [axis for axis, (n, m) in enumerate(zip(before.shape, after.shape, strict=True)) if n != m]
    return grown[0] if len(grown) == 1 else None


def _guess(model: nn.Module, batch_first: bool | None) -> Driver:
    """For a model that fails whichever way it is called: its next call says why."""
    step = _holds_undriven_cells(model) and len(inspect.signature(model.forward).parameters) > 1
    return Driver(1 if step else None, batch_axis=0 if batch_first else 1, swapped=bool(batch_first))


def _holds_undriven_cells(model: nn.Module) -> bool:
    """Whether neurons of the model take a single step in each call, and no ``Lift`` calls them once a step."""
    driven = {id(part) for module in model.modules() if isinstance(module, Lift) for part in module.modules()}
    neurons = [module for module in model.modules() if isinstance(module, NEURONS) and id(module) not in driven]
    return bool(neurons) and not any(isinstance(neuron, SEQUENCE) for neuron in neurons)
