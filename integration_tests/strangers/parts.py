"""What the blocks of :mod:`.blocks` are made of: random choices, ways of running, layers and neurons."""

import random
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Draw:
    """The random choices of one network.

    Attributes:
        axes: how many spatial axes it has.
        more: whether the rarer kinds may be drawn.
    """

    def __init__(self, seed: int, more: bool = False) -> None:
        self._random, self.more = random.Random(seed), more
        self.axes = self.choice([0, 0, 1, 2, 2, 2, 3])

    def choice(self, options: Any) -> Any:
        return self._random.choice(options)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def width(self) -> int:
        """An even number of channels."""
        return 2 * self.integer(2, 5)


class Run:
    """One call of a model: how layers and neurons are called, and the states before and after.

    Args:
        before: the states in the order in which neurons ran; None at the first step.
        sequence: whether tensors have a time axis in front of the batch.
    """

    def __init__(self, before: list[Any] | None, sequence: bool = False) -> None:
        self.before, self.sequence = before, sequence
        self.after: list[Any] = []

    def layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        result: Tensor
        if not self.sequence:
            result = layer(x)
            return result
        result = layer(x.flatten(0, 1))
        return result.unflatten(0, x.shape[:2])

    def spikes(self, cell: nn.Module, x: Tensor) -> Tensor:
        z, state = cell(x, self._state())
        self.after.append(state)
        result: Tensor = z
        return result

    def memory(self) -> Tensor | None:
        """What the block kept in this place of ``after`` at the step before."""
        value: Tensor | None = self._state()
        return value

    def _state(self) -> Any:
        return None if self.before is None else self.before[len(self.after)]


def neuron(draw: Draw, channels: int, sequence: bool, alike: bool = True) -> nn.Module:
    """A neuron for (B, channels, *space), with parameters that all channels share, or one for each.

    Args:
        draw: the random choices.
        channels: of its input.
        sequence: whether it takes (T, B, ...).
        alike: False draws a threshold of its own.
    """

    def parameter(low: float, high: float) -> Tensor:
        if draw.chance(0.25):
            values = low + (high - low) * torch.rand(channels)
            return values.reshape(channels, *[1] * draw.axes)
        return torch.tensor(low + (high - low) * (0.5 if alike else torch.rand(()).item()))

    kinds = ["lif", "iaf"] if sequence else ["lif", "box", "box", "iaf", "refractory"]
    kind, v_th = draw.choice(kinds), parameter(0.1, 0.4)
    if kind == "box":
        return norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=parameter(200, 800), v_th=v_th))
    if kind == "iaf":
        parameters = norse.IAFParameters(v_th=v_th)
        return norse.IAF(parameters) if sequence else norse.IAFCell(parameters)
    lif = norse.LIFParameters(tau_mem_inv=parameter(200, 800), tau_syn_inv=torch.tensor(400.0), v_th=v_th)
    if kind == "refractory":
        return norse.LIFRefracCell(norse.LIFRefracParameters(lif, rho_reset=torch.tensor(1)))
    return norse.LIF(lif) if sequence else norse.LIFCell(lif)


def weighted(draw: Draw, inputs: int, outputs: int, kernel: int | None = None, groups: int = 1) -> Any:
    """A Linear, or a convolution that keeps the size of space."""
    bias = draw.chance(0.7)
    if not draw.axes:
        return nn.Linear(inputs, outputs, bias=bias)
    kernel = kernel or draw.choice([1, 3, 3])
    dilation = draw.choice([1, 1, 2]) if kernel > 1 else 1
    padding = dilation * (kernel - 1) // 2
    return CONVOLUTIONS[draw.axes](
        inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias
    )


class Block(nn.Module):
    """One piece of a network.

    Attributes:
        channels: that it makes.
        size: of each spatial axis behind it.
    """

    def __init__(self, draw: Draw, inputs: int, size: int, sequence: bool) -> None:
        super().__init__()
        self.axes, self.size, self.channels = draw.axes, size, draw.width()
        self.build(draw, inputs, sequence)

    @property
    def description(self) -> str:
        layers = [f"{name} {_shape(part)}" for name, part in self.named_modules() if name and not list(part.children())]
        return f"{type(self).__name__}: {', '.join(layers)}"

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        raise NotImplementedError

    def run(self, x: Tensor, run: Run) -> Tensor:
        raise NotImplementedError

    def heads(self) -> dict[nn.Module, int]:
        """Layers that make queries, keys and values, with the number of heads."""
        return {}

    def dealt(self) -> dict[nn.Module, int]:
        """Layers whose channels a split deals to equal parts, with the number of parts."""
        return {}

    def rigid(self) -> list[nn.Module]:
        """Layers of which no channel can be cut."""
        return []


def _shape(part: nn.Module) -> str:
    weight = getattr(part, "weight", None)
    tensors = [v for v in getattr(part, "p", ()) if isinstance(v, Tensor) and v.numel() > 1]
    extra = f" {tuple(weight.shape)}" if isinstance(weight, Tensor) else " per channel" if tensors else ""
    return type(part).__name__ + extra
