"""What tuning aims at: the spikes that the dense network sent, and how far a compressed one is from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.hessians import check_batch
from sbc_plugin.core.distillation import divergence, sharpness
from sbc_plugin.core.spikes import van_rossum_distance
from sbc_plugin.evaluation.accuracy import result_of, scores_of
from sbc_plugin.evaluation.comparison import TAU_STEPS
from sbc_plugin.evaluation.operations import spikes_of
from sbc_plugin.layers import Forward, SNNLibrary, input_of

SEQUENCES = 32  # a step: more make steps dearer, not better
JUDGED = 5  # every fifth piece of the data is not fitted to, and decides whether the tuned weights stay


@dataclass(frozen=True)
class Observation:
    """What a model did on one batch.

    Attributes:
        spikes: name -> (T, B, ...), of each neuron module that spikes.
        readout: the model's output where it is no spike train, else None.
        scores: (B, C), the output summed over time; None where it has no such form, or is no classifier's.
    """

    spikes: dict[str, Tensor]
    readout: Tensor | None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Aims:
    """What the dense model did on the calibration data.

    Attributes:
        fitted: (piece of a batch, what the model did on it), of those that gradients are taken on.
        judged: likewise, of those that decide; the fitted ones where there are too few to spare any.
        sharpness: factor from scores to logits; None where the output is not to be compared as classes.
    """

    fitted: list[tuple[Any, Observation]]
    judged: list[tuple[Any, Observation]]
    sharpness: float | None


def observe(library: SNNLibrary, model: nn.Module, batch: Any, run: Forward, classes: bool = False) -> Observation:
    """Run one batch in eval mode and keep every neuron's spikes; gradients flow where they are enabled.

    Args:
        library: of the model.
        model: to run.
        batch: for ``run``.
        run: runs one whole sequence.
        classes: keep scores too, of :func:`sbc_plugin.evaluation.accuracy.scores_of`, where there are two classes or
            more.
    """
    spikes, output = spikes_of(library, model, batch, run, keep=lambda step: step)
    result = result_of(output)
    number = isinstance(result, Tensor) and not bool(((result == 0) | (result == 1)).all())
    scores = scores_of(result) if classes else None
    told_apart = scores is not None and scores.shape[1] > 1
    return Observation(spikes, result if number else None, scores if told_apart else None)


def targets(
    library: SNNLibrary, model: nn.Module, data: Iterable[Any], forward: Forward | None, classes: bool = False
) -> Aims:
    """Every batch, with what the model does on it while it is still dense; a spike takes a byte.

    Batches for the library's own forward are cut into pieces of at most ``SEQUENCES`` sequences.

    Args:
        library: of the model.
        model: dense.
        data: batches.
        forward: runs one whole sequence; None for the library's default.
        classes: the output scores classes, and these are an aim too.

    Raises:
        CalibrationError: an empty batch, or NaN or infinity in it.
    """
    run = forward or library.default_forward(model)
    found = []
    with torch.no_grad():
        for number, batch in enumerate(data):
            check_batch(batch, number)
            for piece in pieces(batch) if forward is None else [batch]:
                seen = observe(library, model, piece, run, classes)
                spikes = {name: value.to(torch.uint8) for name, value in seen.spikes.items()}
                found.append((piece, Observation(spikes, seen.readout, seen.scores)))
    scores = [seen.scores for _, seen in found if seen.scores is not None]
    judged = found[JUDGED - 1 :: JUDGED]
    fitted = [aim for number, aim in enumerate(found, 1) if number % JUDGED] if judged else found
    return Aims(fitted, judged or found, sharpness(torch.cat(scores)) if scores else None)


def pieces(batch: Any) -> tuple[Tensor, ...]:
    """A batch's input (T, B, ...) in pieces of a few sequences."""
    x = input_of(batch)
    x = x if x.layout == torch.strided else x.to_dense()
    x = x.clone() if x.is_inference() else x  # which no gradient can be taken through
    return x.split(SEQUENCES, dim=1) if x.dim() > 1 else (x,)


def distance(seen: Observation, target: Observation, sharpness: float | None = None) -> Tensor:
    """Squared Van Rossum distance of each neuron module relative to silence, summed over modules, a scalar.

    A readout that is no spike train adds its squared error, relative too; scores of classes, where ``sharpness`` is
    given, their divergence. Modules that the target leaves silent, and a readout that it leaves at 0, do not count.
    Source: docs/theory.md, equations 10 and 11.
    """
    terms = []
    for name, dense in target.spikes.items():
        silence = van_rossum_distance(dense, torch.zeros_like(dense), tau=TAU_STEPS, dt=1.0).sum()
        if silence > 0:
            terms.append(van_rossum_distance(seen.spikes[name], dense, tau=TAU_STEPS, dt=1.0).sum() / silence)
    if target.readout is not None and seen.readout is not None and target.readout.any():
        terms.append((seen.readout - target.readout).square().sum() / target.readout.square().sum())
    if sharpness is not None and target.scores is not None and seen.scores is not None:
        terms.append(divergence(target.scores, seen.scores, sharpness))
    return torch.stack(terms).sum() if terms else torch.zeros((), device="cpu")


def distance_on(
    library: SNNLibrary, model: nn.Module, aims: Aims, run: Forward, aim: tuple[Any, Observation]
) -> Tensor:
    """The :func:`distance` of the model from its target on one piece, a scalar; with gradients where enabled."""
    piece, target = aim
    return distance(observe(library, model, piece, run, aims.sharpness is not None), target, aims.sharpness)


def mean_distance(library: SNNLibrary, model: nn.Module, aims: Aims, run: Forward) -> float:
    """The mean :func:`distance` of the model from its targets over the judged pieces."""
    with torch.no_grad():
        found = [float(distance_on(library, model, aims, run, aim)) for aim in aims.judged]
    return sum(found) / len(found)
