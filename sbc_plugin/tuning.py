"""Label-free tuning: gradient steps on the kept weights, towards the spikes that the dense network sent.

The objective of a layer (docs/theory.md, equation 2) leaves out resets, and what an error in one layer does to those
behind it. Tuning takes the distance of the spike trains themselves (equation 10), of all layers at once, through the
model's own surrogate gradients. Masks stay, and so do grids.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sbc_plugin.calibration import check_batch
from sbc_plugin.comparison import TAU_STEPS
from sbc_plugin.core.grids import Grid
from sbc_plugin.core.spikes import van_rossum_distance
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer, input_of, neutral

SEQUENCES = 32  # a step: more make steps dearer, not better
STEP = 0.05  # length of the first steps, as a fraction of the root mean square of the layer's kept weights


@dataclass(frozen=True)
class Observation:
    """What a model did on one batch.

    Attributes:
        spikes: name -> (T, B, ...), of each neuron module that spikes.
        readout: the model's output where it is no spike train, else None.
    """

    spikes: dict[str, Tensor]
    readout: Tensor | None


Aims = list[tuple[Any, Observation]]


def observe(library: SNNLibrary, model: nn.Module, batch: Any, run: Forward) -> Observation:
    """Run one batch in eval mode and keep every neuron's spikes; gradients flow where they are enabled."""
    steps: dict[str, list[Tensor]] = {}

    def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
        if spikes is not None:
            steps.setdefault(name, []).append(spikes)

    with neutral(model), library.watch_steps(model, on_step):
        output = run(model, batch)
    number = isinstance(output, Tensor) and not bool(((output == 0) | (output == 1)).all())
    return Observation({name: torch.stack(values) for name, values in steps.items()}, output if number else None)


def targets(library: SNNLibrary, model: nn.Module, data: Iterable[Any], forward: Forward | None) -> Aims:
    """Every batch, with what the model does on it while it is still dense; a spike takes a byte.

    Batches for the library's own forward are cut into pieces of at most ``SEQUENCES`` sequences.

    Raises:
        CalibrationError: an empty batch, or NaN or infinity in it.
    """
    run = forward or library.default_forward(model)
    found = []
    with torch.no_grad():
        for number, batch in enumerate(data):
            check_batch(batch, number)
            for piece in pieces(batch) if forward is None else [batch]:
                seen = observe(library, model, piece, run)
                spikes = {name: value.to(torch.uint8) for name, value in seen.spikes.items()}
                found.append((piece, Observation(spikes, seen.readout)))
    return found


def pieces(batch: Any) -> tuple[Tensor, ...]:
    """A batch's input (T, B, ...) in pieces of a few sequences."""
    x = input_of(batch)
    x = x if x.layout == torch.strided else x.to_dense()
    return x.split(SEQUENCES, dim=1) if x.dim() > 1 else (x,)


def distance(seen: Observation, target: Observation) -> Tensor:
    """Squared Van Rossum distance of each neuron module relative to silence, summed over modules, a scalar.

    A readout that is no spike train adds its squared error, relative too. Modules that the target leaves silent, and a
    readout that it leaves at 0, do not count. Source: docs/theory.md, equation 10.
    """
    terms = []
    for name, dense in target.spikes.items():
        silence = van_rossum_distance(dense, torch.zeros_like(dense), tau=TAU_STEPS, dt=1.0).sum()
        if silence > 0:
            terms.append(van_rossum_distance(seen.spikes[name], dense, tau=TAU_STEPS, dt=1.0).sum() / silence)
    if target.readout is not None and seen.readout is not None and target.readout.any():
        terms.append((seen.readout - target.readout).square().sum() / target.readout.square().sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())


def tune(
    library: SNNLibrary,
    model: nn.Module,
    layers: list[SpikingLayer],
    grids: Mapping[str, Grid],
    batches: Aims,
    steps: int,
    forward: Forward | None = None,
    progress: bool | None = False,
) -> tuple[float, float]:
    """Move the layers' nonzero weights, in place, so that the model's spikes come closer to the targets.

    If in the end they are no closer on the batches together, the weights are put back.

    Adam, one batch a step in turn, with a step length that falls to 0 along a cosine. A weight on a grid has a hidden
    one beside it: the gradient is taken at the rounded weight and moves the hidden one (straight-through estimator).

    Args:
        library: of the model.
        model: holds the compressed weights before, the tuned ones after.
        layers: to tune; weights that are zero stay zero.
        grids: by layer name, of those that are quantised; they stay.
        batches: of :func:`targets`.
        steps: how many, at least 1.
        forward: runs one whole sequence; None for the library's default.
        progress: show a progress bar; None = on a terminal.

    Returns:
        The mean :func:`distance` of a batch before and after.

    Raises:
        UnsupportedModelError: no gradient reaches any weight.
    """
    run = forward or library.default_forward(model)
    hidden = [layer.weight() for layer in layers]
    masks = [weight != 0 for weight in hidden]
    groups = [
        {"params": [weight], "lr": STEP * float(weight.square().sum() / mask.sum().clamp_min(1)) ** 0.5}
        for weight, mask in zip(hidden, masks, strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    disable = None if progress is None else not progress
    start, before = [layer.weight() for layer in layers], mean_distance(library, model, batches, run)
    with torch.inference_mode(False), torch.enable_grad(), gradients(model, layers):
        for step in tqdm(range(steps), desc="tuning", unit="step", leave=False, disable=disable):
            batch, target = batches[step % len(batches)]
            loss = distance(observe(library, model, batch, run), target)
            if not loss.requires_grad:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: no gradient reaches a weight, so tuning has nothing to go by; give the "
                    'neurons a surrogate gradient (method="super"), or use Calibration(tuning=0)'
                )
            loss.backward()
            for layer, weight, mask in zip(layers, hidden, masks, strict=True):
                weight.grad = taken_gradient(layer) * mask
            optimizer.step()
            schedule.step()
            for layer, weight, mask in zip(layers, hidden, masks, strict=True):
                grid = grids.get(layer.name)
                layer.write(weight if grid is None else grid.round(weight).where(mask, 0.0))
    after = mean_distance(library, model, batches, run)
    if not after < before:
        for layer, weight in zip(layers, start, strict=True):
            layer.write(weight)
    return before, after


def mean_distance(library: SNNLibrary, model: nn.Module, batches: Aims, run: Forward) -> float:
    """The mean :func:`distance` of the model from its targets over the batches."""
    with torch.no_grad():
        return sum(float(distance(observe(library, model, batch, run), aim)) for batch, aim in batches) / len(batches)


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
        blocks.append(gradient.reshape(layer.rows, part.form.columns))
        part.tensor.grad = None
    return torch.cat(blocks, dim=1)
