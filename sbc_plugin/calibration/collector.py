"""From what a layer receives, step by step, to filtered samples; of the past only the state of the filter is kept."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.core.kernels import CausalFilter
from sbc_plugin.core.matrix_form import MatrixForm
from sbc_plugin.errors import in_layer
from sbc_plugin.layers import Site, SpikingLayer

SEED = 20_250_603
CHUNK = 2**25  # elements of one block of samples: 128 MiB in float32
WAITING = 2**26  # elements of the samples that wait in all layers together, where this leaves each enough
ENOUGH = 256  # samples of a block whose product takes much longer than its sum

Emit = Callable[[list[Tensor]], None]


class Collector:
    """Filters one layer's inputs, with one state for each site and part, and emits each filtered step.

    Args:
        layer: whose inputs.
        emit: called with the filtered step of every part, (B, ...) or (variants, B, ...).

    Attributes:
        age: while ``emit`` runs, how many steps of its sequence the emitted step has seen, itself included.
        more: while ``emit`` runs, whether the next step follows at once, before another layer is listened to.
    """

    def __init__(self, layer: SpikingLayer, emit: Emit) -> None:
        self.layer, self.emit = layer, emit
        self.own = layer.parts[0].attribute != "weight"  # weights of the neuron itself
        self.joint = self.own or len(layer.parts) > 1
        self.begin()

    def begin(self) -> None:
        """A new batch: its sequences start from rest."""
        self.filters = [[CausalFilter(self.layer.kernel) for _ in self.layer.parts] for _ in self.layer.sites]
        self.ages = [0] * len(self.layer.sites)
        self.calls = self.sequences = self.age = 0
        self.more = False
        self.steps: dict[str, int] = {}
        self.latest: list[Tensor | None] = [None] * len(self.layer.parts)
        self.pending: list[tuple[Site, Tensor]] = []

    def hooks(self) -> Iterator[Any]:
        """Forward pre-hooks on the modules whose inputs are columns; a neuron's own weights by its steps."""
        for index, part in enumerate(self.layer.parts):
            if part.attribute == "weight":
                yield part.module.register_forward_pre_hook(self._hook(index))

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._on_input(index, _floating(inputs[0]))

        return hook

    def _on_input(self, index: int, x: Tensor) -> None:
        if self.joint:
            self.latest[index] = x
            return
        number = self.calls % len(self.layer.sites)
        site, causal = self.layer.sites[number], self.filters[number][0]
        self.calls += 1
        if site.layout == "step":
            self.sequences = self.sequences or len(x)
            self._emit(number, [causal.step(x)])
        elif site.layout == "sequence":
            self._whole(x)
        else:
            self.pending.append((site, x))

    def on_step(self, name: str, x: Tensor, feedback: Tensor | None) -> None:
        """A neuron stepped: count it, and take a joint layer's inputs if it is theirs."""
        self.steps[name] = self.steps.get(name, 0) + 1
        if name != self.layer.sites[0].neuron or not self.joint:
            return
        if self.own:
            values = (_floating(x), None if feedback is None else _floating(feedback))
            self.latest = list(values[: len(self.layer.parts)])
        given = next(value for value in self.latest if value is not None and value.dim() > 1)
        filtered = []
        for part, value, causal in zip(self.layer.parts, self.latest, self.filters[0], strict=True):
            # At the first step nothing has been fed back yet; a host may then send zeros without a batch axis.
            value = given.new_zeros(part.form.columns) if value is None else value
            filtered.append(causal.step(value.expand(*given.shape[:-1], part.form.columns)))
        self.sequences = len(given)
        self._emit(0, filtered)
        self.latest = [None] * len(self.layer.parts)

    def end(self) -> None:
        """The batch is over: filter the inputs that hold a whole sequence, now that the number of steps is known."""
        for site, x in self.pending:
            steps = self.steps.get(site.neuron or "", 1)
            if site.layout == "constant":
                x = x.expand(steps, *x.shape)
            self._whole(x if len(x) == steps else x.unflatten(0, (steps, -1)))
        self.pending = []

    def _whole(self, x: Tensor) -> None:
        causal = CausalFilter(self.layer.kernel)
        self.sequences = x.shape[1] if x.dim() > 2 else 1
        for self.age, step in enumerate(x, start=1):
            self.more = self.age < len(x)
            self.emit([causal.step(step)])

    def _emit(self, site: int, filtered: list[Tensor]) -> None:
        self.ages[site] += 1
        self.age = self.ages[site]
        self.emit(filtered)


def _floating(x: Any) -> Tensor:
    """An input in floating point, without its graph; of a host's tensor with a scale, its values."""
    values: Tensor = x if isinstance(x, Tensor) else x.value
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def as_samples(layer: SpikingLayer, filtered: list[Tensor]) -> Iterator[Tensor]:
    """A filtered step as blocks of samples (groups, n, columns), the patches of a convolution bounded in memory."""
    variants = layer.kernel.variants
    with in_layer(layer.name):
        for piece in _pieces(layer.parts[0].form, filtered, axis=0 if variants is None else 1):
            blocks = []
            for part, x in zip(layer.parts, piece, strict=True):
                versions = [x] if variants is None else list(x)
                blocks.append(torch.cat([part.form.samples(version, layer.pooling) for version in versions]))
            yield torch.cat(blocks, dim=-1) if len(blocks) > 1 else blocks[0]


def _pieces(form: MatrixForm, filtered: list[Tensor], axis: int) -> Iterator[list[Tensor]]:
    patches = filtered[0].numel() * form.positions
    if not form.axes or patches <= CHUNK or filtered[0].dim() <= form.axes + 1 + axis:
        yield filtered
        return
    for piece in filtered[0].split(max(1, filtered[0].shape[axis] * CHUNK // patches), dim=axis):
        yield [piece]


def waiting(layers: int, columns: int) -> int:
    """Elements of the blocks in which a layer's samples are summed, where so many layers wait at the same time."""
    return min(CHUNK // 4, max(WAITING // max(layers, 1), ENOUGH * columns))


class Reservoir:
    """Gathers small blocks of samples (groups, n, columns) into large ones, keeping at most ``limit`` of each batch.

    Seeded random keys, one for each sample, decide which ones stay: those with the largest keys, so that all samples
    are equally likely.

    Args:
        sink: takes the large blocks.
        limit: the most samples of a batch; None = all.
        waiting: elements of a large block, see :func:`waiting`.
    """

    def __init__(self, sink: Callable[[Tensor], None], limit: int | None = None, waiting: int = CHUNK // 4) -> None:
        self.sink, self.limit, self.waiting = sink, limit, waiting
        self.ready: list[Tensor] = []
        self.batch: list[Tensor] = []
        self.keys = torch.empty(0, device="cpu")
        self.generator = torch.Generator("cpu").manual_seed(SEED + ranks.rank())

    def add(self, samples: Tensor, more: bool = False) -> None:
        """Take a block; ``more``: others follow at once, so that this layer alone may wait for a large block."""
        if self.limit is None:
            self.ready.append(samples)
            self._pass_on(CHUNK // 4 if more else self.waiting)
            return
        self.batch.append(samples)
        drawn = torch.rand(samples.shape[1], generator=self.generator, device="cpu")
        self.keys = torch.cat([self.keys, drawn])
        if len(self.keys) > self.limit:
            best = self.keys.topk(self.limit).indices.sort().values
            self.batch = [torch.cat(self.batch, dim=1)[:, best.to(samples.device)]]
            self.keys = self.keys[best]

    def end_batch(self, number: int) -> None:
        """The batch of this number is complete; this rank's next one draws from a seed of its own."""
        self.ready += self.batch
        self.batch, self.keys = [], torch.empty(0, device="cpu")
        self.generator.manual_seed(SEED + number + ranks.count())
        self._pass_on(self.waiting)

    def flush(self) -> None:
        """Pass on what is left."""
        self._pass_on(0)

    def _pass_on(self, threshold: int) -> None:
        if self.ready and sum(block.numel() for block in self.ready) >= threshold:
            self.sink(torch.cat(self.ready, dim=1))
            self.ready = []
