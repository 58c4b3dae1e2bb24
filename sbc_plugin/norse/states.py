"""The nested state of a Norse model as a flat list of named tensors, for formats that know nothing else."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from sbc_plugin.calibration.driver import Driver
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.errors import UnsupportedModelError, in_layer
from sbc_plugin.norse.calling import goes_on
from sbc_plugin.norse.forward import default_forward
from sbc_plugin.norse.neurons import NEURONS
from sbc_plugin.norse.steps import Step, intercept_steps

# Whose step is a function of tensors that a tracer can follow, once gradients are out of the way.
PLAIN_STEPS = (
    *(norse.LIFBoxCell, norse.LIBoxCell, norse.LIFCell, norse.LIF, norse.LIFRefracCell, norse.IAFCell, norse.IAF),
    *(norse.LICell, norse.LI, norse.LSNNCell, norse.LSNN),
    *(norse.LIFExCell, norse.LIFEx, norse.LIFAdExCell, norse.LIFAdEx),
    *(norse.LIFRecurrentCell, norse.LIFRecurrent, norse.LIFRefracRecurrentCell, norse.LIFRefracRecurrent),
    *(norse.LSNNRecurrentCell, norse.LSNNRecurrent, norse.LILinearCell),
)

ROUNDED_ALIKE = 0.99  # fraction of outputs; a membrane that rounding lifts over its threshold changes a spike


class FlatStep(nn.Module):
    """One time step with flat states: ``output, *after = step(x, *before)``, for x (B, ...).

    Attributes:
        model: that runs; in step mode, or in sequence mode with a state.
        step: ``output, state = step(x, state)`` runs it; None is the state before the first step.
        initial: name -> value of the state before the first step, of one sequence, (...). "1.v" is v of neuron "1";
            what no neuron holds is called by its place in the model's state, and begins as zeros.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[Tensor, Any], tuple[Tensor, Any]],
        initial: Mapping[str, Tensor],
        template: Any,
        names: list[str | None],
    ) -> None:
        super().__init__()
        self.model, self.step, self.initial = model, step, dict(initial)
        self._template, self._names = template, names  # of each leaf of the template, None for those without effect

    def forward(self, x: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """Output and states after the step, in the order of ``initial``."""
        given = dict(zip(self.initial, before, strict=True))
        leaves = [tensor for _, tensor in _leaves(self._template)]
        values = [tensor if name is None else given[name] for name, tensor in zip(self._names, leaves, strict=True)]
        output, state = self.step(x, _rebuilt(self._template, iter(values)))
        after = dict(zip(self._names, (tensor for _, tensor in _leaves(state)), strict=True))
        return output, *(after[name] for name in self.initial)


def drop_surrogates(model: nn.Module) -> None:
    """Make every neuron a plain function of tensors, in place: a step in the forward pass, no surrogate gradient.

    Raises:
        UnsupportedModelError: a neuron whose step is not known to be one.
    """
    neurons = {name: module for name, module in model.named_modules() if isinstance(module, NEURONS)}
    for name, neuron in neurons.items():
        with in_layer(name):
            # a cell whose weights a back end makes keeps the step of its plain class
            if getattr(neuron, "plain_class", type(neuron)) not in PLAIN_STEPS:
                known = ", ".join(cls.__name__ for cls in PLAIN_STEPS)
                raise UnsupportedModelError(f"{type(neuron).__name__} is not known to export; known are {known}")
    for neuron in neurons.values():
        neuron.p = _constants(neuron.p)
        if isinstance(neuron, norse.LILinearCell):
            neuron.forward = _started(neuron, neuron.forward)
        else:
            neuron.state_fallback = _constant_start(neuron, neuron.state_fallback)


def flat_step(model: nn.Module, x: Tensor) -> FlatStep:
    """One time step of a model with its state as named tensors, checked to give what the model itself gives.

    Args:
        model: that takes a state and hands it on, in step or in sequence mode.
        x: a sequence (T, B, ...).

    Raises:
        UnsupportedModelError: a model that keeps its state to itself, or whose state is not made of tensors.
    """
    driver = default_forward(model, x)
    one_step = _one_step(model, x, driver)
    seen: dict[int, tuple[str, Tensor]] = {}
    alive: list[Any] = []  # so that no id is given twice

    def on_step(step: Step) -> tuple[Tensor, Any]:
        output, state = step.run(step.x)
        alive.append(state)
        first = _first_state(step.neuron, step.x) if step.state is None else step.state
        for (path, after), (_, before) in zip(_leaves(state), _leaves(first), strict=True):
            seen.setdefault(id(after), (".".join((step.name, *path)).lstrip("."), before.detach()))
        return output, state

    with eval_mode(model), torch.no_grad():
        with intercept_steps(model, on_step):
            _, template = one_step(x[0], None)
        names: list[str | None] = []
        initial: dict[str, Tensor] = {}
        for path, leaf in _leaves(template):
            place = ".".join(path)
            place = f"state.{place}" if place.isdigit() else place  # no name of a tensor is a number
            name, before = seen.get(id(leaf), (place, torch.zeros_like(leaf)))
            name = place if name in initial else name
            names.append(name)
            initial[name] = before.expand(leaf.shape)
        step = FlatStep(model, one_step, initial, template, names)
        for name in _without_effect(step, x[0]):
            names[names.index(name)] = None
            del step.initial[name]
        _check_same(step, x, driver(model, x))
        for name, value in step.initial.items():
            step.initial[name] = _of_one_sequence(name, value, x.shape[1])
    return step


def _one_step(model: nn.Module, x: Tensor, driver: Driver) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """``output, state = step(x, state)`` of a model in step mode, or in sequence mode with a state.

    Raises:
        UnsupportedModelError: it hands on no state, or has several outputs.
    """
    if driver.state_items is None:
        if not goes_on(model, x):
            raise UnsupportedModelError(
                f"{type(model).__name__} hands on no state, so it has no single step; give steps=T for whole sequences"
            )

        def sequence(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            output, state = model(x[None], state)
            return output[0], state

        return sequence
    items = driver.state_items

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        given = driver.start if state is None else (state if items > 1 else (state,))
        results = model(x, *given)
        outputs = list(results[:-items])
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise UnsupportedModelError(
                f"a step of {type(model).__name__} returns several outputs, and one is exported; wrap the model in one "
                "that returns (output, state)"
            )
        return outputs[0], tuple(results[-items:]) if items > 1 else results[-1]

    return step


def _leaves(state: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The tensors of a state and where they stand in it.

    Raises:
        UnsupportedModelError: something else stands there.
    """
    if isinstance(state, Tensor):
        yield path, state
    elif state is not None:
        for key, value in _items(state):
            yield from _leaves(value, (*path, key))


def _items(state: Any) -> list[tuple[str, Any]]:
    if hasattr(state, "_asdict"):
        return list(state._asdict().items())
    if isinstance(state, Mapping):
        return [(str(key), value) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return [(str(index), value) for index, value in enumerate(state)]
    if dataclasses.is_dataclass(state):
        return [(entry.name, getattr(state, entry.name)) for entry in dataclasses.fields(state)]
    raise UnsupportedModelError(f"the model's state holds a {type(state).__name__}; it has to be made of tensors")


def _rebuilt(template: Any, values: Iterator[Tensor]) -> Any:
    """The template with other tensors, in the order of :func:`_leaves`."""
    if isinstance(template, Tensor):
        return next(values)
    if template is None:
        return None
    parts = [(key, _rebuilt(value, values)) for key, value in _items(template)]
    if isinstance(template, Mapping):
        return dict(zip(template, (value for _, value in parts), strict=True))
    if isinstance(template, list | tuple) and not hasattr(template, "_asdict"):
        return type(template)(value for _, value in parts)
    return type(template)(**dict(parts))


def _without_effect(step: FlatStep, x: Tensor) -> list[str]:
    """States that change neither output nor any state after: a graph module keeps the last output of every node."""
    ones = {name: torch.ones_like(value) for name, value in step.initial.items()}
    normal = step(x, *ones.values())
    return [
        name
        for name, value in ones.items()
        if value.is_floating_point()
        and all(
            torch.equal(a, b)
            for a, b in zip(normal, step(x, *(ones | {name: torch.full_like(value, torch.nan)}).values()), strict=True)
        )
    ]


def _check_same(step: FlatStep, x: Tensor, whole: Tensor) -> None:
    """Compare with the model, step by step, bit for bit; and with what it gives on the whole sequence.

    The latter may run its matrix products on other shapes, which rounds otherwise on some processors.

    Raises:
        UnsupportedModelError: they differ.
    """
    states, state = tuple(step.initial.values()), None
    for number, one in enumerate(x):
        output, *after = step(one, *states)
        states = tuple(after)
        expected, state = step.step(one, state)
        close = torch.isclose(output, whole[number], rtol=1e-4, atol=1e-5).double().mean()
        if not torch.equal(output, expected) or close < ROUNDED_ALIKE:
            held = ", ".join(step.initial)
            raise UnsupportedModelError(
                f"with its state as the tensors {held} the model answers otherwise at step {number}; "
                "states that are not a neuron's have to begin as zeros: change them, or give steps=T"
            )


def _of_one_sequence(name: str, value: Tensor, batch: int) -> Tensor:
    if value.dim() == 0 or len(value) != batch or not torch.equal(value, value[:1].expand_as(value)):
        raise UnsupportedModelError(
            f"state {name!r} of shape {tuple(value.shape)} is not the same for each of {batch} sequences; give steps=T"
        )
    return value[0].clone()


def _constants(parameters: Any) -> Any:
    """The parameters without gradients, which a trace cannot hold, and with a plain step as threshold function."""
    values: dict[str, Any] = {
        name: value.detach() for name, value in parameters._asdict().items() if isinstance(value, Tensor)
    }
    if hasattr(parameters, "lif"):
        values["lif"] = _constants(parameters.lif)
    if hasattr(parameters, "method"):
        values["method"] = "heaviside"
    return parameters._replace(**values)


def _constant_start(neuron: Any, original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A neuron's first state without gradients. IAF's is its own v_reset, and made to ask for them: it gets a copy."""

    def start(x: Tensor) -> Any:
        parameters = neuron.p
        neuron.p = type(parameters)(*(p.clone() if isinstance(p, Tensor) else p for p in parameters))
        try:
            state = original(x)
        finally:
            neuron.p = parameters
        return _rebuilt(state, (tensor.detach() for _, tensor in _leaves(state)))

    return start


def _started(cell: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """The step of a cell that makes its first state itself, which is made without gradients here."""

    def forward(x: Tensor, state: Any = None) -> Any:
        return original(x, _first_state(cell, x) if state is None else state)

    return forward


def _first_state(cell: Any, x: Tensor) -> Any:
    """The first state of a Linear and LI in one: its membrane rests."""
    current = x.new_zeros(x.shape[0], len(cell.input_weights))  # a tracer keeps shape[0] open, and not len()
    rest = cell.p.v_leak.detach() if isinstance(cell.p.v_leak, Tensor) else cell.p.v_leak
    return norse.LIState(v=current + rest, i=current)
