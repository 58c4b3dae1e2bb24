"""Neurons made linear for the length of a block: every change of their input gets through to their output."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.norse.steps import Step, intercept_steps


@contextmanager
def linear_neurons(model: nn.Module) -> Iterator[None]:
    """Inside the block each neuron passes its input on, times its input weights if it has some, and never fires."""

    def passed(step: Step) -> tuple[Tensor, Any]:
        output = functional.linear(step.x, step.weights[0]) if step.weights else step.x * 1.0
        return output, linear_state(step.state, output)

    with intercept_steps(model, passed):
        yield


def linear_state(state: Any, output: Tensor) -> Any:
    """A neuron's state with ``output`` as its membrane, current and spikes, also where the state is nested."""
    fields = getattr(state, "_fields", ())
    new = {name: output for name in ("v", "z", "i") if name in fields}
    if "lif" in fields:
        new["lif"] = linear_state(state.lif, output)
    return state._replace(**new) if new else state
