"""Further blocks of :mod:`.networks`: rarer layers and neurons, norms in the middle, and spikes that come back."""

import norse.torch as norse
import torch
from torch import Tensor, nn

from integration_tests.strangers.blocks import AVERAGES, Chain, Feedback, Maker
from integration_tests.strangers.parts import Block, Draw, Run, neuron, weighted

TRANSPOSED = (nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Between(Block):
    """Two layers with a norm or a softmax between them, and one neuron behind."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        middle = draw.width()
        self.first, self.second = weighted(draw, inputs, middle), weighted(draw, middle, self.channels)
        self.kind = draw.choice(["layer norm", "group norm", "softmax", "none"])
        self.norm: nn.Module = nn.Identity()
        if self.kind == "layer norm":
            self.norm = nn.LayerNorm(middle)
        elif self.kind == "group norm":
            self.norm = nn.GroupNorm(2, middle)
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        h, axis = run.layer(self.first, x), -1 - self.axes
        if self.kind == "layer norm":
            h = self.norm(h.movedim(axis, -1)).movedim(-1, axis)
        elif self.kind == "group norm":
            h = run.layer(self.norm, h)
        elif self.kind == "softmax":
            h = h.softmax(axis)
        return run.spikes(self.neuron, run.layer(self.second, h))


class Transposing(Block):
    """A transposed convolution that keeps the size of space, of one group or two."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        groups = 2 if inputs % 2 == 0 and draw.chance(0.5) else 1
        dilation, bias = draw.choice([1, 2]), draw.chance(0.5)
        self.up = TRANSPOSED[draw.axes](
            inputs, self.channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=bias
        )
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        return run.spikes(self.neuron, run.layer(self.up, x))


class OverTime(Block):
    """Norse's ``LConv2d`` or a convolution in its ``Lift``, where there is a whole sequence of images; else a chain."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.own = draw.chance(0.5) and draw.axes == 2
        if self.own:
            self.layer: nn.Module = norse.LConv2d(inputs, self.channels, 3, padding=1)
        else:
            self.layer = norse.Lift(weighted(draw, inputs, self.channels))
        self.sequence = sequence
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        h = self.layer(x if self.sequence else x[None])
        return run.spikes(self.neuron, h if self.sequence else h[0])


class PooledCurrent(Block):
    """A layer, average pooling, and only then the neuron."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer = weighted(draw, inputs, self.channels)
        self.pool: nn.Module = nn.Identity()
        if draw.axes and self.size >= 4:
            self.pool = AVERAGES[draw.axes](2)
            self.size //= 2
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        return run.spikes(self.neuron, run.layer(self.pool, run.layer(self.layer, x)))


class Matrix(Block):
    """A parameter of no layer is the weight, behind a layer that is one."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, self.matrix = weighted(draw, inputs, 4), nn.Parameter(torch.randn(4, self.channels))
        self.first, self.second = neuron(draw, 4, sequence), neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        z, axis = run.spikes(self.first, run.layer(self.layer, x)), -1 - self.axes
        return run.spikes(self.second, (z.movedim(axis, -1) @ self.matrix).movedim(-1, axis))


class Recurrence(Feedback):
    """Spikes come back through a layer in full strength."""

    strength = 1.0


class OddNeuron(Block):
    """Neurons that adapt, or that are not linear below their threshold."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer = weighted(draw, inputs, self.channels)
        kind = draw.choice(["LSNN", "LIFEx", "LIFAdEx"])
        self.neuron = getattr(norse, kind if sequence else kind + "Cell")()

    def run(self, x: Tensor, run: Run) -> Tensor:
        return run.spikes(self.neuron, run.layer(self.layer, x))


COMMON: list[Maker] = [Chain, Between, Between, Matrix, Recurrence, OddNeuron]
MORE_BLOCKS: list[Maker] = [*COMMON, Transposing, Transposing, OverTime, OverTime, PooledCurrent]
MORE_DENSE_BLOCKS: list[Maker] = [*COMMON, Recurrence]
