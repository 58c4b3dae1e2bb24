"""Watch every step of every neuron, through the seam that Norse's neurons have: ``.activation``.

Step mode and sequence mode both call ``neuron.activation(x, state, [w_in, w_rec,] p, dt)`` once a time step, so
swapping it sees everything; it is put back on any exit. Cells that compute their step in ``forward(x, state)`` and have
no activation (``LILinearCell``, ``LIFMCRecurrentCell``) are watched there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from sbc_plugin.norse.neurons import NEURONS, RECURRENT, own_weights


class Step(NamedTuple):
    """One call of a neuron's step function.

    Attributes:
        name: of the neuron in ``model.named_modules()``.
        neuron: the module.
        x: input, (B, ...).
        state: the state before the step; None if the cell makes its first one itself.
        weights: of the neuron's own: (), (input weights,) or (input weights, recurrent weights).
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

    def watched(name: str, neuron: nn.Module, original: Any) -> Any:
        watch = _watched if seam_of(neuron) == "activation" else _watched_forward
        return watch(name, neuron, original, on_step)

    with replaced_steps(model, watched):
        yield


@contextmanager
def replaced_steps(model: nn.Module, replacement: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """Put ``replacement(name, neuron, step)`` in the place of each neuron's step function, inside the block."""
    saved: list[tuple[nn.Module, str, Any, bool]] = []
    try:
        for name, neuron in model.named_modules():
            if isinstance(neuron, NEURONS):
                seam = seam_of(neuron)
                original = getattr(neuron, seam)
                saved.append((neuron, seam, original, seam in vars(neuron)))
                setattr(neuron, seam, replacement(name, neuron, original))
        yield
    finally:
        for neuron, seam, original, own in saved:
            if own:
                setattr(neuron, seam, original)
            else:
                delattr(neuron, seam)


def seam_of(neuron: nn.Module) -> str:
    """The attribute that holds a neuron's step: "activation", or "forward" of a cell that has none."""
    return "forward" if getattr(neuron, "activation", None) is None else "activation"


def _watched_forward(name: str, neuron: nn.Module, original: Any, on_step: Callable[[Step], tuple[Tensor, Any]]) -> Any:
    weights = tuple(getattr(neuron, attribute) for attribute in own_weights(neuron))

    def forward(input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        def run(x: Tensor, parameters: Any = None, state: Any = state) -> tuple[Tensor, Any]:
            result: tuple[Tensor, Any] = original(x, state)
            return result

        return on_step(Step(name, neuron, input_tensor, state, weights, run))

    return forward


def _watched(name: str, neuron: nn.Module, original: Any, on_step: Callable[[Step], tuple[Tensor, Any]]) -> Any:
    recurrent = isinstance(neuron, RECURRENT)

    def activation(x: Tensor, state: Any, *rest: Any) -> tuple[Tensor, Any]:
        weights, (parameters, dt) = (rest[:2], rest[2:]) if recurrent else ((), rest)

        def run(x: Tensor, parameters: Any = parameters, state: Any = state) -> tuple[Tensor, Any]:
            result: tuple[Tensor, Any] = original(x, state, *weights, parameters, dt)
            return result

        return on_step(Step(name, neuron, x, state, weights, run))

    return activation
