"""The blocks of :mod:`.networks`: each makes channels out of channels, with neurons of its own.

A block is written once and runs in two ways: step by step on (B, C, *space), where a neuron is a cell with a state, or
on a whole sequence (T, B, C, *space), where layers see time and batch as one axis.
"""

from collections.abc import Callable

import norse.torch as norse
import torch
from torch import Tensor, nn

from integration_tests.strangers.parts import CONVOLUTIONS, Block, Draw, Run, neuron, weighted

TRANSPOSED = (nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.Identity, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
LARGEST = (nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


class Chain(Block):
    """Layer, norm, neuron, pooling."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        groups = 2 if draw.axes and inputs % 2 == 0 and draw.chance(0.3) else 1
        self.layer = weighted(draw, inputs, self.channels, groups=groups)
        self.norm = NORMS[draw.axes](self.channels) if draw.chance(0.4) else nn.Identity()
        self.neuron, self.pool = neuron(draw, self.channels, sequence), nn.Identity()
        if draw.axes and self.size >= 4 and draw.chance(0.4):
            self.pool = draw.choice([AVERAGES, LARGEST])[draw.axes](2)
            self.size //= 2

    def run(self, x: Tensor, run: Run) -> Tensor:
        x = run.layer(self.norm, run.layer(self.layer, x))
        return run.layer(self.pool, run.spikes(self.neuron, x))


class Sew(Block):
    """A residual block that adds spikes, multiplies them, or joins them."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.stem, self.body = weighted(draw, inputs, self.channels), weighted(draw, self.channels, self.channels)
        self.first, self.second = neuron(draw, self.channels, sequence), neuron(draw, self.channels, sequence)
        self.join = draw.choice(["add", "and", "or"])

    def run(self, x: Tensor, run: Run) -> Tensor:
        x = run.spikes(self.first, run.layer(self.stem, x))
        y = run.spikes(self.second, run.layer(self.body, x))
        if self.join == "add":
            return x + y
        return x * y if self.join == "and" else x + y - x * y


class MembraneShortcut(Block):
    """Two layers on one neuron: their sum is its input."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.body, self.short = weighted(draw, inputs, self.channels), weighted(draw, inputs, self.channels, kernel=1)
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        return run.spikes(self.neuron, run.layer(self.body, x) + run.layer(self.short, x))


class Concat(Block):
    """Two branches of different widths, side by side; the neurons stand before or behind."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        left = draw.integer(2, 5)
        self.left, self.right = weighted(draw, inputs, left), weighted(draw, inputs, self.channels)
        self.together = draw.chance(0.4)
        if self.together:
            self.neuron = neuron(draw, left + self.channels, sequence)
        else:
            self.first, self.second = neuron(draw, left, sequence), neuron(draw, self.channels, sequence)
        self.channels += left

    def run(self, x: Tensor, run: Run) -> Tensor:
        a, b, axis = run.layer(self.left, x), run.layer(self.right, x), -1 - self.axes
        if self.together:
            return run.spikes(self.neuron, torch.cat([a, b], dim=axis))
        return torch.cat([run.spikes(self.first, a), run.spikes(self.second, b)], dim=axis)


class Chunk(Block):
    """The channels of one layer dealt to two neurons by halves that follow its size."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, half = weighted(draw, inputs, self.channels), self.channels // 2
        self.first, self.second = neuron(draw, half, sequence, alike=False), neuron(draw, half, sequence, alike=False)
        self.join = draw.choice(["cat", "add", "gate"])
        self.channels = self.channels if self.join == "cat" else half

    def run(self, x: Tensor, run: Run) -> Tensor:
        axis = -1 - self.axes
        u, v = run.layer(self.layer, x).chunk(2, dim=axis)
        if self.join == "gate":
            return run.spikes(self.first, 2 * u * torch.sigmoid(v))
        u, v = run.spikes(self.first, u), run.spikes(self.second, v)
        return torch.cat([u, v], dim=axis) if self.join == "cat" else u + v

    def dealt(self) -> dict[nn.Module, int]:
        return {self.layer: 2}


class Dealt(Block):
    """The channels of one layer dealt to two neurons by fixed numbers: by slice, split, narrow or index."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, self.half = weighted(draw, inputs, self.channels), self.channels // 2
        self.first = neuron(draw, self.half, sequence, alike=False)
        self.second = neuron(draw, self.half, sequence, alike=False)
        self.way = draw.choice(["slice", "split", "narrow", "index", "interleaved"])

    def run(self, x: Tensor, run: Run) -> Tensor:
        h, axis, half = run.layer(self.layer, x), -1 - self.axes, self.half
        if self.way == "split":
            u, v = h.split(half, dim=axis)
        elif self.way == "index":
            u, v = (h.index_select(axis, torch.arange(start, start + half)) for start in (0, half))
        elif self.way == "interleaved":
            u, v = (h.movedim(axis, 0)[start::2].movedim(0, axis) for start in (0, 1))
        else:
            u, v = h.narrow(axis, 0, half), h.narrow(axis, half, half)
        return torch.cat([run.spikes(self.first, u), run.spikes(self.second, v)], dim=axis)

    def rigid(self) -> list[nn.Module]:
        return [self.layer]


class Mask(Block):
    """Features times a mask of one channel, or times a gate of one number a channel."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, self.over_space = weighted(draw, inputs, self.channels), draw.chance(0.5)
        self.mask = weighted(draw, inputs, 1, kernel=1) if self.over_space else nn.Linear(inputs, self.channels)
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        space = tuple(range(-self.axes, 0))
        if self.over_space:
            gate = run.layer(self.mask, x)
        else:
            gate = run.layer(self.mask, x.mean(space) if space else x).reshape(*x.shape[: x.dim() - 1 - self.axes], -1)
            gate = gate[(..., *[None] * self.axes)]
        return run.spikes(self.neuron, 2 * torch.sigmoid(gate) * run.layer(self.layer, x))


class SharedLayer(Block):
    """One layer used twice, before two neurons."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.stem, self.layer = weighted(draw, inputs, self.channels), weighted(draw, self.channels, self.channels)
        self.neurons = nn.ModuleList(neuron(draw, self.channels, sequence, alike=False) for _ in range(3))

    def run(self, x: Tensor, run: Run) -> Tensor:
        x = run.spikes(self.neurons[0], run.layer(self.stem, x))
        for cell in self.neurons[1:]:
            x = run.spikes(cell, run.layer(self.layer, x))
        return x


class TwoNeurons(Block):
    """One layer before two neurons, whose spikes are added or put side by side."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer = weighted(draw, inputs, self.channels)
        self.first = neuron(draw, self.channels, sequence, alike=False)
        self.second = neuron(draw, self.channels, sequence, alike=False)
        self.beside = draw.chance(0.5)
        self.channels *= 2 if self.beside else 1

    def run(self, x: Tensor, run: Run) -> Tensor:
        h = run.layer(self.layer, x)
        a, b = run.spikes(self.first, h), run.spikes(self.second, h)
        return torch.cat([a, b], dim=-1 - self.axes) if self.beside else a + b


class Depthwise(Block):
    """A pointwise and a depthwise layer, with a neuron between them or not."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.point = weighted(draw, inputs, self.channels, kernel=1)
        self.depth = weighted(draw, self.channels, self.channels, kernel=3, groups=self.channels)
        self.neuron = neuron(draw, self.channels, sequence)
        self.between = neuron(draw, self.channels, sequence) if draw.chance(0.5) else None

    def run(self, x: Tensor, run: Run) -> Tensor:
        x = run.layer(self.point, x)
        x = x if self.between is None else run.spikes(self.between, x)
        return run.spikes(self.neuron, run.layer(self.depth, x))


class Upsampled(Block):
    """A transposed convolution, then a strided one."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        middle, bias = draw.width(), draw.chance(0.5)
        self.up = TRANSPOSED[draw.axes](inputs, middle, 2, stride=2, bias=bias)
        self.down = CONVOLUTIONS[draw.axes](middle, self.channels, 2, stride=2)
        self.first, self.second = neuron(draw, middle, sequence), neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        x = run.spikes(self.first, run.layer(self.up, x))
        return run.spikes(self.second, run.layer(self.down, x))


class Attention(Block):
    """Spiking attention of positions to each other, added to what came in."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.count, width = draw.choice([1, 2]), draw.width()
        axes, draw.axes = draw.axes, 0
        self.embed = nn.Linear(inputs, self.channels)
        self.query, self.key, self.value = (nn.Linear(self.channels, width) for _ in range(3))
        self.neurons = nn.ModuleList(neuron(draw, 1, sequence) for _ in range(5))
        self.out = nn.Linear(width, self.channels)
        draw.axes = axes

    def run(self, x: Tensor, run: Run) -> Tensor:
        space = x.shape[x.dim() - self.axes :]
        x = run.spikes(self.neurons[0], run.layer(self.embed, x.flatten(-self.axes).transpose(-1, -2)))
        parts = []
        for layer, cell in zip((self.query, self.key, self.value), self.neurons[1:], strict=False):
            spikes = run.spikes(cell, run.layer(layer, x))
            parts.append(spikes.reshape(*spikes.shape[:-1], self.count, -1).transpose(-2, -3))
        q, k, v = parts
        mixed = (q @ k.transpose(-1, -2) * 0.3) @ v
        x = x + run.spikes(self.neurons[4], run.layer(self.out, mixed.transpose(-2, -3).flatten(-2)))
        return x.transpose(-1, -2).unflatten(-1, space)

    def heads(self) -> dict[nn.Module, int]:
        return dict.fromkeys((self.query, self.key, self.value), self.count)


class Recurrent(Block):
    """A cell with recurrent weights of its own."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        kind = draw.choice(["LIFRecurrent", "LIFRefracRecurrent", "LSNNRecurrent"] if sequence else ["LIFRecurrent"])
        self.cell = getattr(norse, kind if sequence else kind + "Cell")(inputs, self.channels)

    def run(self, x: Tensor, run: Run) -> Tensor:
        return run.spikes(self.cell, x)


class Feedback(Block):
    """Spikes of the step before come back through a layer; a chain where there are no steps."""

    strength = 0.3

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, self.back = weighted(draw, inputs, self.channels), weighted(draw, self.channels, self.channels)
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        current = run.layer(self.layer, x)
        if run.sequence:
            return run.spikes(self.neuron, current)
        before = run.memory()
        current = current if before is None else current + self.strength * self.back(before)
        place = len(run.after)
        run.after.append(None)
        spikes = run.spikes(self.neuron, current)
        run.after[place] = spikes
        return spikes


class LearnedFactor(Block):
    """A parameter of no layer scales or shifts each channel."""

    def build(self, draw: Draw, inputs: int, sequence: bool) -> None:
        self.layer, self.times = weighted(draw, inputs, self.channels), draw.chance(0.5)
        shape = (self.channels, *[1] * draw.axes)
        self.factor = nn.Parameter(0.7 + 0.6 * torch.rand(shape) if self.times else 0.3 * torch.rand(shape))
        self.neuron = neuron(draw, self.channels, sequence)

    def run(self, x: Tensor, run: Run) -> Tensor:
        h = run.layer(self.layer, x)
        return run.spikes(self.neuron, h * self.factor if self.times else h + self.factor)


Maker = Callable[[Draw, int, int, bool], Block]
COMMON: list[Maker] = [Chain, Chain, Sew, MembraneShortcut, Concat, Chunk, Mask, SharedLayer, TwoNeurons, LearnedFactor]
COMMON += [Feedback]
BLOCKS: list[Maker] = [*COMMON, *COMMON, Depthwise, Depthwise, Upsampled, Upsampled, Attention, Attention, Dealt]
DENSE_BLOCKS: list[Maker] = [*COMMON, *COMMON, Recurrent, Recurrent, Dealt]
