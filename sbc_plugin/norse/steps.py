"""Watch every step of every neuron, through the one seam all Norse neurons have: ``.activation``.

Step mode and sequence mode both call ``neuron.activation(x, state, [w_in, w_rec,] p, dt)`` once a time step, so
swapping it sees everything; it is put back on any exit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from sbc_plugin.norse.neurons import NEURONS, RECURRENT


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
