"""Label-free tuning: gradient steps on the kept weights, towards the spikes that the dense network sent.

The objective of a layer (docs/theory.md, equation 2) leaves out resets, and what an error in one layer does to those
behind it. Tuning takes the distance of the spike trains themselves (equation 10), of all layers at once, through the
model's own surrogate gradients; and, of a classifier, how its classes differ (equation 11). Masks stay, and so do
codes: of a quantised layer the scales move.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.precision import at_least_single
from sbc_plugin.compression.journal import Steps
from sbc_plugin.compression.objective import Targets, distance_on, mean_distance
from sbc_plugin.core.adam import Adam
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import SpikingLayer

STEP = 0.05  # length of the first steps, as a fraction of the root mean square of the layer's kept weights
SCALE_STEP = 0.003  # length of a scale's first steps, as a fraction of the scale
PROBED = 15  # steps after which the distance is looked at,
FAR, SHORTER = 3.0, 0.25  # and if it is so many times as large as before, they were too long: all begins again, shorter
PARTS = (1.0, 0.5, 0.25)  # fractions of the way that the steps went; each is tried, the largest first
SEED = 20_250_603  # of the order in which pieces are taken


@dataclass(frozen=True)
class Tuned:
    """What tuning has brought.

    Attributes:
        before: the mean :func:`~sbc_plugin.compression.objective.distance` of a validation piece before it.
        after: the same after it; equal where nothing was gained.
        grids: by layer name, of those that are quantised, with their scales as they are now.
    """

    before: float
    after: float
    grids: Mapping[str, Grid]


def tune(
    runner: Runner,
    layers: list[SpikingLayer],
    grids: Mapping[str, Grid],
    aims: Targets,
    steps: int,
    steps_of: Callable[[Adam], Iterable[int]] = Steps,
) -> Tuned:
    """Move the layers' nonzero weights, in place, so that the model's spikes come closer to the targets.

    Of a quantised layer only the scales move: codes stay, and so do scales that have to be powers of two. If in the
    end the spikes are no closer on the validation pieces together, half of the way is tried, then a quarter; if that
    brings nothing, all is put back.

    Adam, one piece a step in seeded random order, with a step length that falls to 0 along a cosine. Of several ranks,
    each takes one of its own pieces in a step. The step goes down the mean of their gradients, each weighted by how
    many pieces its rank has, so that every piece of the data counts the same. Where the first steps lead far away, as
    they do where errors come back through recurrent weights, the weights are put back and the other steps are shorter.

    Args:
        runner: of the model, which holds the compressed weights before and the tuned ones after.
        layers: to tune; weights that are zero stay zero.
        grids: by layer name, of those that are quantised.
        aims: of :func:`~sbc_plugin.compression.objective.targets`.
        steps: how many, at least 1. From a distance of 0 no step is taken.
        steps_of: the steps that are still to be taken, by number; may bring Adam to where an earlier run was.

    Raises:
        UnsupportedModelError: no gradient reaches any weight.
    """
    start, before = [layer.weight() for layer in layers], mean_distance(runner, aims)
    if before == 0:
        return Tuned(before, before, grids)
    # 1. Steps down the gradient, one piece each.
    order = _shuffled(len(aims.train), steps)
    share = share_of(len(aims.train))
    with torch.enable_grad(), gradients(runner.model, layers), layer_by_layer(runner, aims.example) as source:
        movable = [_movable(layer, grids.get(layer.name)) for layer in layers]
        adam = Adam([each.moved for each in movable], [each.step for each in movable], steps)
        left = steps_of(adam)
        if adam.taken:
            _write(movable)
        for step in left:
            if order:
                loss = distance_on(source, aims, aims.train[order[step]])
                if not loss.requires_grad:
                    raise UnsupportedModelError(f"{no_gradient(runner.model)}, or use Calibration(tuning=0)")
                loss.backward()
            adam.step(mean_gradients([each.gradient(taken_gradient(each.layer)) for each in movable], share))
            _write(movable)
            if adam.taken == PROBED and mean_distance(runner, aims) > FAR * before:
                adam.begin_again([each.origin for each in movable], SHORTER)
                _write(movable)
        ranks.spread([each.moved for each in movable])
    # 2. The whole way, half of it, or a quarter: the first that brings the validation pieces closer stays.
    for part in PARTS:
        _write(movable, part)
        if (after := mean_distance(runner, aims)) < before:
            moved = {each.layer.name: each.grid(part) for each in movable if isinstance(each, _Scales)}
            return Tuned(before, after, {**grids, **moved})
    # 3. Nothing does: everything is put back.
    for layer, weight in zip(layers, start, strict=True):
        layer.write(weight)
    return Tuned(before, before, grids)


def no_gradient(model: nn.Module) -> str:
    """What to say of a model whose spikes have no gradient."""
    return (
        f"{type(model).__name__}: no gradient reaches a weight, so tuning has nothing to go by; give the neurons a "
        'surrogate gradient (method="super")'
    )


@dataclass(frozen=True)
class _Weights:
    """The weights of a layer that are not zero, which move one by one: (kept,), at these places of (rows * columns)."""

    layer: SpikingLayer
    start: Tensor
    moved: Tensor
    places: Tensor

    @property
    def origin(self) -> Tensor:
        """What moved comes from."""
        return self.start

    @property
    def step(self) -> float:
        return STEP * float(self.start.square().mean().sqrt()) if self.start.numel() else 0.0

    def gradient(self, gradient: Tensor) -> Tensor:
        """By what moves, from that by the layer's weight (rows, columns)."""
        return gradient.flatten().index_select(0, self.places)

    @torch.no_grad()
    def weight(self, part: float = 1.0) -> Tensor:
        weight = self.start.new_zeros(self.layer.rows, self.layer.columns)
        weight.view(-1).index_copy_(0, self.places, torch.lerp(self.start, self.moved, part))
        return weight


@dataclass(frozen=True)
class _Scales:
    """Scales of a quantised layer that move, by a factor ``exp(moved)``; codes stay."""

    layer: SpikingLayer
    moved: Tensor
    start: Grid
    codes: Tensor
    step: float

    @property
    def origin(self) -> Tensor:
        """What moved comes from."""
        return torch.zeros_like(self.moved, requires_grad=False)

    def grid(self, part: float = 1.0) -> Grid:
        return replace(self.start, scale=(self.start.scale * (part * self.moved).exp()).detach())

    def gradient(self, gradient: Tensor) -> Tensor:
        """By what moves, from that by the layer's weight (rows, columns)."""
        return torch.autograd.grad(self._weight(), self.moved, gradient)[0]

    @torch.no_grad()
    def weight(self, part: float = 1.0) -> Tensor:
        return self._weight(part)

    def _weight(self, part: float = 1.0) -> Tensor:
        grid = replace(self.start, scale=self.start.scale * (part * self.moved).exp())
        return at_least_single(grid.dequantise(self.codes).to(self.layer.parts[0].tensor.dtype))


def _write(movable: Sequence[_Weights | _Scales], part: float = 1.0) -> None:
    """Put what moves into the model, so much of its way."""
    for each in movable:
        each.layer.write(each.weight(part))


def _movable(layer: SpikingLayer, grid: Grid | None) -> _Weights | _Scales:
    weight = at_least_single(layer.weight())  # half precision would round small steps away
    if grid is None:
        places = weight.flatten().nonzero().squeeze(1)
        kept = weight.flatten().index_select(0, places)
        return _Weights(layer, kept, kept.clone(), places)
    factors = torch.zeros_like(grid.scale, requires_grad=True)
    return _Scales(layer, factors, grid, grid.codes(weight), 0.0 if grid.power_of_two else SCALE_STEP)


def share_of(pieces: int) -> float:
    """This rank's part of all ranks' pieces."""
    (together,) = ranks.sums(pieces)
    return pieces / together


def mean_gradients(found: list[Tensor], weight: float) -> list[Tensor]:
    """The ranks' gradients, summed with their weights.

    Args:
        found: of this rank's piece, by what moves.
        weight: of this rank; those of all ranks sum to 1.
    """
    if ranks.count() == 1:
        return found
    weighted = [gradient * weight for gradient in found]
    ranks.total(weighted)
    return weighted


def _shuffled(pieces: int, steps: int) -> list[int]:
    """Which piece each step takes: all in a seeded random order, then all in another; [] where there is none."""
    if not pieces:
        return []
    generator = torch.Generator().manual_seed(SEED)
    rounds = [torch.randperm(pieces, generator=generator, device="cpu") for _ in range(-(-steps // pieces))]
    chosen: list[int] = torch.cat(rounds)[:steps].tolist()
    return chosen


@contextmanager
def gradients(model: nn.Module, layers: list[SpikingLayer]) -> Iterator[None]:
    """Let the layers' weights, and nothing else, collect gradients inside the block; then all is as it was."""
    tuned = [part.tensor for layer in layers for part in layer.parts]
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *tuned]}.values()
    before = [(tensor, tensor.requires_grad, tensor.grad) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(any(tensor is weight for weight in tuned)).grad = None
        yield
    finally:
        for tensor, required, gradient in before:
            tensor.requires_grad_(required).grad = gradient


def taken_gradient(layer: SpikingLayer) -> Tensor:
    """The layer's gradient (rows, columns), taken off its weights; zero where none arrived."""
    blocks = []
    for part in layer.parts:
        gradient = torch.zeros_like(part.tensor) if part.tensor.grad is None else part.tensor.grad
        blocks.append(part.form.as_matrix(at_least_single(gradient)))
        part.tensor.grad = None
    return torch.cat(blocks, dim=1)
