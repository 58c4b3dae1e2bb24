"""What tuning aims at: the spikes that the dense network sent, and how far a compressed one is from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.driver import result_of
from sbc_plugin.calibration.forward import Runner, Source
from sbc_plugin.calibration.precision import at_least_single
from sbc_plugin.calibration.shares import first_held
from sbc_plugin.calibration.spool import Chosen, Spool
from sbc_plugin.core.distillation import divergence, inverse_temperature
from sbc_plugin.core.spikes import TAU_STEPS, total_distance
from sbc_plugin.evaluation.answers import scores_of
from sbc_plugin.settings import TUNED_SEQUENCES

VALIDATION = 5  # every fifth piece is left out of fitting, and decides whether the tuned weights stay


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

    @cached_property
    def silence(self) -> dict[str, float]:
        """The squared Van Rossum distance of each neuron module from one that is silent, by name."""
        return {name: float(_from(train, torch.zeros((), device=train.device))) for name, train in self.spikes.items()}


Target = tuple[Any, Observation]  # a piece of a batch, and what the dense model did on it


@dataclass(frozen=True)
class Targets:
    """What the dense model did on the calibration data.

    Of several ranks each holds the pieces of its own share, and the rest is the same on all.

    Attributes:
        train: pieces that gradients are taken on.
        validation: pieces that decide; those of ``train`` where there are too few to spare any.
        inverse_temperature: factor from scores to logits; None where the output is not to be compared as classes.
        example: the first piece of all.
        readout: whether the output of a piece that decides is no spike train.
    """

    train: Sequence[Target]
    validation: Sequence[Target]
    inverse_temperature: float | None
    example: Any = None
    readout: bool = False

    @property
    def all(self) -> Iterable[Target]:
        """Every piece, once."""
        return self.train if self.validation is self.train else chain(self.train, self.validation)

    @property
    def terms(self) -> list[str]:
        """What :func:`distance` sums, in words."""
        others = ["error of the readout"] * self.readout + ["divergence of classes"] * (
            self.inverse_temperature is not None
        )
        return ["distance of spikes", *others]


def observe(source: Source, batch: Any, classes: bool = False) -> Observation:
    """Run one batch in eval mode and keep every neuron's spikes; gradients flow where they are enabled.

    Args:
        source: of the spikes.
        batch: one whole sequence for each of its sequences.
        classes: keep scores too, of :func:`sbc_plugin.evaluation.answers.scores_of`, where there are two classes or
            more.
    """
    spikes, output = source.spikes(batch, keep=at_least_single)
    result = _time_first(result_of(output), spikes)
    result = at_least_single(result) if isinstance(result, Tensor) else result
    number = isinstance(result, Tensor) and not bool(((result == 0) | (result == 1)).all())
    scores = scores_of(result) if classes else None
    sequences = next((len(train[0]) for train in spikes.values()), None)
    several = scores is not None and scores.shape[1] > 1 and sequences in (None, len(scores))
    return Observation(spikes, result if number else None, scores if several else None)


def _time_first(result: Any, spikes: dict[str, Tensor]) -> Any:
    """A result (B, T, ...) as (T, B, ...), where the steps and sequences of the spikes tell the one from the other."""
    train = next(iter(spikes.values()), None)
    if train is None or not isinstance(result, Tensor) or result.dim() < 3:
        return result
    steps, sequences = train.shape[:2]
    swapped = steps != sequences and result.shape[:2] == (sequences, steps)
    return result.transpose(0, 1) if swapped else result


def targets(
    runner: Runner,
    data: Iterable[Any],
    classes: bool = False,
    pieces: int = TUNED_SEQUENCES,
    limit: int | None = None,
) -> Targets:
    """Every batch, with what the model does on it while it is still dense; a spike takes a byte.

    Batches for the library's own forward are cut into pieces.

    Args:
        runner: of the dense model.
        data: batches of this rank's share.
        classes: the output scores classes, and these are a target too.
        pieces: the most sequences of a piece.
        limit: bytes of all pieces together that stay in memory; the rest goes to a file. None keeps all.

    Raises:
        CalibrationError: an empty batch, or NaN or infinity in it.
    """
    observed = Spool[Target](limit)
    known: list[_Known] = []
    with torch.no_grad():
        for number, batch in ranks.numbered(data):
            runner.check(batch, number)
            for place, piece in enumerate(runner.pieces(batch, pieces)):
                seen = observe(runner, piece, classes)
                spikes = {name: value.to(torch.uint8) for name, value in seen.spikes.items()}
                observed.append((piece, Observation(spikes, seen.readout, seen.scores)))
                known.append(_Known((number, place), seen.scores, seen.readout is not None))
    return _split(observed, known)


class _Known(NamedTuple):
    """What stays in memory of a piece."""

    place: tuple[int, int]  # its batch, and where in that
    scores: Tensor | None
    readout: bool


def _split(observed: Sequence[Target], known: list[_Known]) -> Targets:
    """Targets of this rank's pieces, dealt to fitting and deciding by their places among those of all ranks."""
    places = [each.place for each in known]
    order = {place: number for number, place in enumerate(sorted(chain(*ranks.everyone(places))))}
    deciding = [order[place] % VALIDATION == VALIDATION - 1 for place in places]
    train, validation = observed, observed
    if len(order) >= VALIDATION:
        train = Chosen(observed, [number for number, decides in enumerate(deciding) if not decides])
        validation = Chosen(observed, [number for number, decides in enumerate(deciding) if decides])
    else:
        deciding = [True] * len(known)
    scores = ranks.listed([each.scores for each in known if each.scores is not None])
    temperature = inverse_temperature(torch.cat(scores)) if scores else None
    readout = any(each.readout for each, decides in zip(known, deciding, strict=True) if decides)
    example = first_held([observed[0][0]] if known else [])
    return Targets(train, validation, temperature, example, any(ranks.everyone(readout)))


def distance(seen: Observation, target: Observation, inverse_temperature: float | None = None) -> Tensor:
    """Squared Van Rossum distance of each neuron module relative to silence, summed over modules, a scalar.

    A readout that is no spike train adds its squared error, relative too; scores of classes, where
    ``inverse_temperature`` is given, add their divergence. Modules that are silent in the target, and a readout that is
    0 there, do not count. Source: docs/theory.md, equations 10 and 11.
    """
    terms = []
    for name, dense in target.spikes.items():
        if (silence := target.silence[name]) > 0:
            terms.append(_from(seen.spikes[name], dense) / silence)
    if target.readout is not None and seen.readout is not None and target.readout.any():
        terms.append((seen.readout - target.readout).square().sum() / target.readout.square().sum())
    if inverse_temperature is not None and target.scores is not None and seen.scores is not None:
        terms.append(divergence(target.scores, seen.scores, inverse_temperature))
    return torch.stack(terms).sum() if terms else torch.zeros((), device="cpu")


def _from(spikes: Tensor, others: Tensor) -> Tensor:
    return total_distance(spikes, others, tau=TAU_STEPS, dt=1.0)


def distance_on(source: Source, aims: Targets, target: Target) -> Tensor:
    """The :func:`distance` of the model from its target on one piece, a scalar; with gradients where enabled."""
    piece, wanted = target
    return distance(observe(source, piece, aims.inverse_temperature is not None), wanted, aims.inverse_temperature)


def expected_losses(source: Source, aims: Targets) -> Tensor | None:
    """Of each calibration sequence, how much likelier the dense model's answer is than the compressed model's.

    ``p[c] - p[c']``, where p are the dense model's class probabilities, c its answer and c' the other's. The mean is
    the accuracy that is expected to be lost, judged by the dense model alone, without labels. Source: docs/theory.md,
    equation 12.

    Args:
        source: of the compressed model's spikes.
        aims: what the dense model did.

    Returns:
        (n,), float64, from 0 to 1, of all ranks' sequences; None where nothing is compared as classes.
    """
    if aims.inverse_temperature is None:
        return None
    losses = []
    with torch.no_grad():
        for piece, wanted in aims.all:
            scores = observe(source, piece, classes=True).scores
            if wanted.scores is not None and scores is not None:
                likely = (aims.inverse_temperature * wanted.scores.double()).softmax(1)
                losses.append(likely.amax(1) - likely.gather(1, scores.argmax(1, keepdim=True)).squeeze(1))
    losses = ranks.listed(losses)
    return torch.cat(losses) if losses else None


def upper_bound(losses: Tensor) -> float:
    """Of their mean, as far as so few tell: two standard errors more, and one sequence that is wrong.

    >>> upper_bound(torch.zeros(100, dtype=torch.float64))
    0.01
    """
    count = len(losses)
    return float(losses.mean() + (2 * losses.std(correction=0) + count**-0.5) / count**0.5)


def mean_distance(runner: Runner, aims: Targets) -> float:
    """The mean :func:`distance` of the model from its targets over the validation pieces of all ranks."""
    with torch.no_grad():
        distances = [float(distance_on(runner, aims, target)) for target in aims.validation]
    summed, pieces = ranks.sums(sum(distances), len(distances))
    return summed / pieces
