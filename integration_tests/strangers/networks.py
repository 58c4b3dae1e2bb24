"""Seeded random spiking networks such as a stranger writes: small, of every wiring, called in every way.

``network(seed)`` always makes the same network. Its blocks come from :mod:`.blocks`; here they are put together, with a
readout, as a model that takes one step and a state, a whole sequence, or a whole sequence with the batch first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from integration_tests.strangers.blocks import BLOCKS, DENSE_BLOCKS
from integration_tests.strangers.more_blocks import MORE_BLOCKS, MORE_DENSE_BLOCKS
from integration_tests.strangers.parts import Block, Draw, Run, neuron, weighted


@dataclass(frozen=True)
class Stranger:
    """A network that nobody here wrote, in eval mode.

    Attributes:
        seed: that makes it again.
        model: a step model ``model(x, state) -> (output, state)``, or one that takes whole sequences.
        batch: (T, B, ...), spikes; (B, ...) of a model that shows a still input for steps of its own.
        forward: ``forward(model, batch)`` runs one whole batch; None where no such function is needed.
        steps: whether the model takes one step at a time.
        example: what ``model(example)`` takes: one step (B, ...), or a sequence; with the batch first if it wants that.
        native: the batch with its axes as the model takes them, for calls without ``forward``.
        batch_axis: of ``native``, which counts the sequences.
        readout: the last layer, whose outputs the user reads.
        heads: attention's layers with the number of their heads.
        dealt: layers whose channels a chunk deals to equal parts, with the number of parts.
        rigid: layers whose channels are dealt by fixed numbers or mixed, so that no channel of theirs can be cut.
        description: what it is made of, a line a block.
    """

    seed: int
    model: nn.Module
    batch: Tensor
    forward: Callable[[nn.Module, Any], Any] | None
    steps: bool
    example: Tensor
    native: Tensor
    batch_axis: int
    readout: nn.Module
    heads: dict[nn.Module, int] = field(default_factory=dict)
    dealt: dict[nn.Module, int] = field(default_factory=dict)
    rigid: list[nn.Module] = field(default_factory=list)
    description: str = ""

    def run(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The output of a model of this kind for a whole batch (T, B, ...)."""
        if self.forward is not None:
            output = self.forward(model, batch)
        elif self.steps:
            state, outputs = None, []
            for x in batch:
                y, *_, state = model(x, state)
                outputs.append(y)
            output = torch.stack(outputs)
        else:
            output = model(batch)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


class Readout(nn.Module):
    """Flattens or averages space, then blocks on features, then the layer that is read, and what follows it."""

    def __init__(self, draw: Draw, channels: int, size: int, sequence: bool) -> None:
        super().__init__()
        self.axes, self.mean = draw.axes, draw.axes > 0 and draw.chance(0.4)
        width = channels * (1 if self.mean else size**draw.axes)
        draw.axes, self.blocks = 0, nn.ModuleList()
        for _ in range(draw.integer(0, 1) if self.axes else draw.integer(1, 3)):
            block = draw.choice([*DENSE_BLOCKS, *(MORE_DENSE_BLOCKS if draw.more else ())])(draw, width, 1, sequence)
            self.blocks.append(block)
            width = block.channels
        self.layer = weighted(draw, width, draw.integer(2, 4))
        kinds = ["none", "none", "spikes", "membrane", "log softmax", "norm"]
        self.kind = draw.choice([*kinds, "cell"] if draw.more and not sequence else kinds)
        outputs = self.layer.weight.shape[0]
        self.last: nn.Module = nn.Identity()
        if self.kind == "spikes":
            self.last = neuron(draw, outputs, sequence)
        elif self.kind == "membrane":
            self.last = norse.LI() if sequence else norse.LICell()
        elif self.kind == "log softmax":
            self.last = nn.LogSoftmax(dim=-1)
        elif self.kind == "norm":
            self.last = nn.LayerNorm(outputs)
        elif self.kind == "cell":
            self.last = norse.LILinearCell(outputs, outputs)
        self.spikes = self.kind in ("spikes", "membrane", "cell")

    def run(self, x: Tensor, run: Run) -> Tensor:
        if self.axes:
            x = x.mean(tuple(range(-self.axes, 0))) if self.mean else x.flatten(-1 - self.axes)
        for block in self.blocks:
            x = block.run(x, run)  # type: ignore[operator]
        x = run.layer(self.layer, x)
        return run.spikes(self.last, x) if self.spikes else self.last(x)


class Network(nn.Module):
    """Blocks and a readout; each way of calling them is a class of its own.

    Args:
        draw: the random choices.
        inputs: channels that come in.
        size: of each spatial axis.
    """

    sequence = False

    def __init__(self, draw: Draw, inputs: int, size: int) -> None:
        super().__init__()
        self.option, channels = draw.chance(0.4), inputs
        self.blocks = nn.ModuleList()
        for _ in range(draw.integer(1, 3) if draw.axes else 0):
            makers = [*BLOCKS, *(MORE_BLOCKS if draw.more else ())]
            block = draw.choice(makers)(draw, channels, size, self.sequence)
            self.blocks.append(block)
            channels, size = block.channels, block.size
        self.readout = Readout(draw, channels, size, self.sequence)

    def once(self, x: Tensor, run: Run) -> Tensor:
        """The output for one call of each block."""
        for block in self.blocks:
            x = block.run(x, run)  # type: ignore[operator]
        return self.readout.run(x, run)

    def loop(self, x: Tensor) -> list[Tensor]:
        """The output of each step of a sequence (T, B, ...)."""
        after, outputs = None, []
        for step in x:
            run = Run(after)
            outputs.append(self.once(step, run))
            after = run.after
        return outputs


class Step(Network):
    """Takes one step and a state, and returns the output and the next state."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        run = Run(state)
        return self.once(x, run), run.after


class TwoOutputs(Step):
    """Returns a second output between the first and the state."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y, after = super().forward(x, state)
        return y, 2 * y, after


class Sequence(Network):
    """Neurons take the whole sequence; some return their states as well."""

    sequence = True

    def forward(self, x: Tensor) -> Any:
        run = Run(None, sequence=True)
        y = self.once(x, run)
        return (y, run.after) if self.option else y


class SequenceWithState(Network):
    """Takes a whole sequence and, if it is given one, a state to begin with."""

    sequence = True

    def forward(self, x: Tensor, state: Any = None) -> Any:
        run = Run(state, sequence=True)
        return self.once(x, run), run.after


class Loop(Network):
    """Loops over time itself, and returns all outputs or their sum."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack(self.loop(x))
        return outputs.sum(0) if self.option else outputs


class BatchFirst(Network):
    """Takes (B, T, ...) and loops over time itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.loop(x.transpose(0, 1)), dim=1)


class BatchFirstSum(Network):
    """Takes (B, T, ...) and returns the sum over time, (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.loop(x.transpose(0, 1))).sum(0)


class Still(Network):
    """Shows an input (B, ...) without a time axis for a few steps, and returns the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.loop(x.expand(6, *x.shape))).mean(0)


def _batch_first(model: nn.Module, batch: Tensor) -> Tensor:
    output: Tensor = model(batch.transpose(0, 1))
    return output.transpose(0, 1) if isinstance(model, BatchFirst) else output


KINDS = [Step, Step, Sequence, Loop, BatchFirst]
MORE_KINDS = [*KINDS, TwoOutputs, SequenceWithState, BatchFirstSum, Still]


def network(seed: int, more: bool = False) -> Stranger:
    """The network of a seed, with a batch that drives it. torch's random state is left as it was.

    Args:
        seed: makes it again.
        more: also draw from the rarer blocks and ways of calling; another network for the same seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw = Draw(seed, more)
        size = {0: 1, 1: 6, 2: 5, 3: 3}[draw.axes]
        inputs, length, samples = draw.integer(2, 6) if draw.axes else draw.integer(6, 12), draw.integer(5, 10), 4
        axes = draw.axes
        model = draw.choice(MORE_KINDS if more else KINDS)(draw, inputs, size).eval()
        _drive(model)
        dtype = torch.float64 if draw.chance(0.3) else torch.float32
        model.to(dtype)
        batch = (torch.rand(length, samples, *(inputs, *[size] * axes)) < 0.5).to(dtype)
    steps, batch_first = isinstance(model, Step), isinstance(model, BatchFirst | BatchFirstSum)
    batch = batch[0] if isinstance(model, Still) else batch
    native = batch.transpose(0, 1) if batch_first else batch
    blocks: list[Block] = [*model.blocks, *model.readout.blocks]  # type: ignore[list-item]
    lines = [
        f"{type(model).__name__}, {axes} spatial axes, {dtype}, {len(batch)} steps",
        *(block.description for block in blocks),
    ]
    lines.append(f"readout: {model.readout.kind}")
    return Stranger(
        seed=seed,
        model=model,
        batch=batch,
        forward=_batch_first if batch_first else None,
        steps=steps,
        example=batch[0] if steps else native,
        native=native,
        batch_axis=0 if batch_first or isinstance(model, Still) else 1,
        readout=model.readout.layer,
        heads={layer: count for block in blocks for layer, count in block.heads().items()},
        dealt={layer: count for block in blocks for layer, count in block.dealt().items()},
        rigid=list(chain.from_iterable(block.rigid() for block in blocks)),
        description="\n".join(lines),
    )


@torch.no_grad()
def _drive(model: nn.Module) -> None:
    """Weights that make neurons spike, and norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0.0, 0.3)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
            module.weight.uniform_(0.7, 1.5)
            module.bias.uniform_(0.0, 0.5)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            fan_in = parameter.shape[0] if "up." in name else parameter[0].numel()
            parameter.copy_(3.0 * (torch.randn(parameter.shape) + 0.05) / fan_in**0.5)
            if name.endswith("recurrent_weights"):
                parameter.fill_diagonal_(0.0)
