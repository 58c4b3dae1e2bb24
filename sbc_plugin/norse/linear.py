"""Neurons made linear for the length of a block: every change of their input gets through to their output."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import tau
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.norse.neurons import tensor_of
from sbc_plugin.norse.steps import Step, intercept_steps


@contextmanager
def linear_neurons(model: nn.Module) -> Iterator[None]:
    """Inside the block each neuron multiplies its input by a gain, and by its input weights if it has some.

    It never fires. The gain lies between 0.7 and 1.3 and follows from the neuron's class and parameters, so that a
    channel which reaches another neuron than it should, or another place of its parameters, changes the output.
    """
    gains: dict[str, Tensor] = {}

    def passed(step: Step) -> tuple[Tensor, Any]:
        output = functional.linear(step.x, step.weights[0]) if step.weights else step.x
        if step.name not in gains:
            gains[step.name] = _gain(step.neuron, output)
        output = output * gains[step.name]
        return output, linear_state(step.state, output)

    with intercept_steps(model, passed):
        yield


def _gain(neuron: nn.Module, output: Tensor) -> Tensor:
    """A factor for each channel, of a shape that goes with the output; the same for equal classes and parameters."""
    kind = f"{type(neuron).__module__}.{type(neuron).__qualname__}, {float(neuron.dt):g}"  # type: ignore[arg-type]
    phase = output.new_tensor(tau * crc32(kind.encode()) / 2**32)
    for number, value in enumerate(_values(neuron.p)):
        size = torch.nan_to_num(value.detach().to(output), posinf=1e9, neginf=-1e9)
        # Logarithms, because time constants are hundreds and thresholds are tenths.
        phase = phase + (3.0 + 2**0.5 * number) * size.sign() * size.abs().log1p()
    return 1.0 + 0.3 * phase.sin()


def _values(parameters: Any) -> Iterator[Tensor]:
    """The numbers and tensors among a neuron's parameters, which are nested for refractory neurons."""
    if isinstance(parameters, tuple):
        for value in parameters:
            yield from _values(value)
    elif isinstance(parameters, Tensor | int | float):
        yield tensor_of(parameters)


def linear_state(state: Any, output: Tensor) -> Any:
    """A neuron's state with ``output`` as its membrane, current and spikes, also where the state is nested."""
    fields = getattr(state, "_fields", ())
    new = {name: output for name in ("v", "z", "i") if name in fields}
    if "lif" in fields:
        new["lif"] = linear_state(state.lif, output)
    return state._replace(**new) if new else state
