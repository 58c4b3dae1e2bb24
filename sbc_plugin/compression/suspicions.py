"""What a user should know of data and network before trusting a result: few or alike sequences, ties, silence, axes."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration.batches import holds_values
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.seen_data import Notes
from sbc_plugin.compression.sharing import Shared
from sbc_plugin.evaluation.answers import Answered, answered
from sbc_plugin.evaluation.report import LayerReport

LOGGER = logging.getLogger("sbc_plugin")
LOOKED_AT = 64  # sequences of the first batch
FEW = 32  # sequences
DIFFERENT = 0.5  # of the sequences have to be
SPREAD = 1e-3  # of the squares have to be differences from the mean sequence
TIED = 0.25  # of the sequences may be
SATURATED = 0.95  # spikes a neuron and step
NAMED = 10  # classes in a message


@dataclass(frozen=True)
class Look:
    """What the dense network does on the first sequences.

    Attributes:
        answers: by class; None where the output is no score of classes.
        rates: by name, spikes a neuron and step of each module that spikes.
        sequences: that were run.
    """

    answers: Answered | None
    rates: Mapping[str, float]
    sequences: int

    @classmethod
    def at(cls, runner: Runner, first: Any) -> "Look | None":
        """What a network does on the first batch; None where it does not run, which calibration will explain."""
        with suppress(Exception), torch.no_grad():
            piece = next(iter(runner.pieces(first, LOOKED_AT)))
            count = runner.sequences(piece)
            spikes, output = runner.spikes(piece, keep=_rate)
            answers = None if holds_values(first) else answered(output, count)
            return cls(answers, {name: float(rates.mean()) for name, rates in spikes.items()}, count)
        return None


def _rate(spikes: Tensor) -> Tensor:
    return (spikes != 0).double().mean()


def suspicions(look: Look | None, notes: Notes | None, rows: Iterable[LayerReport]) -> dict[str, str]:
    """What to be told, by what it is about: "calibration data", a layer or a module of neurons.

    Args:
        look: at the dense network.
        notes: of the data; None where it was not read.
        rows: of the report.
    """
    rows = list(rows)
    told: list[tuple[str, str]] = []
    sequences = min((row.sequences for row in rows), default=FEW)
    if 0 < sequences < FEW:
        told.append(("calibration data", f"{sequences} sequences are few: give {FEW} or more, better some hundred"))
    told += [
        (
            row.name,
            f"{row.samples:,} samples for {row.columns:,} inputs: what no sample shows is left to damping; give more "
            "sequences",
        )
        for row in rows
        if 0 < row.samples < row.columns
    ]
    if notes is not None:
        told += [("calibration data", each) for each in _of_data(notes, look)]
    if look is not None:
        told += _of_network(look)
    joined: dict[str, list[str]] = {}
    for name, text in told:
        joined.setdefault(name, []).append(text)
    found = {name: "; ".join(texts) for name, texts in joined.items()}
    for name, text in found.items():
        # Once, where many compressions of one network say the same.
        Shared(name, text).once("told", partial(LOGGER.warning, "%s: %s", name, text))
    return found


def _of_data(notes: Notes, look: Look | None) -> list[str]:
    told = []
    count, different = notes.sequences, len(notes.different)
    if count > 1 and different < DIFFERENT * count:
        told.append(f"only {different:,} of {count:,} sequences differ from each other; give others")
    elif count > 1 and notes.spread is not None and notes.spread < SPREAD:
        told.append(
            f"the sequences are almost the same: only {notes.spread:.1g} of their squares differs from their mean; "
            "give others"
        )
    if notes.miscounted:
        told.append(f"{notes.miscounted} batches have another number of labels than sequences: look at their axes")
    elif notes.labels and not notes.unlabelled:
        told += _of_labels(notes.labels, look)
    if _like_batch_first(notes.shapes):
        (steps, same), (last, _) = notes.shapes[0], notes.shapes[-1]
        told.append(
            f"all batches have {same} sequences, and {steps} steps but for the last, which has {last}: so do loaders "
            "of (B, T, ...); if yours is one, give batch_first=True, else leave it"
        )
    return told


def _of_labels(labels: set[int], look: Look | None) -> list[str]:
    classes = 0 if look is None or look.answers is None else look.answers.classes
    if classes < 2:
        return []
    if max(labels) >= classes or min(labels) < 0:
        return [f"labels go from {min(labels)} to {max(labels)}, and the network has {classes} outputs"]
    missing = [str(each) for each in range(classes) if each not in labels]
    if not missing:
        return []
    names = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    return [f"{len(missing)} of {classes} classes have no sequence: {names}; give some of each"]


def _like_batch_first(shapes: list[tuple[int, int]]) -> bool:
    """Whether batches differ in their steps as they would if these were sequences: the last has fewer than the rest."""
    if len(shapes) < 2:
        return False
    steps, sequences = zip(*shapes, strict=True)
    return len(set(sequences)) == 1 and len(set(steps[:-1])) == 1 and steps[-1] < steps[0]


def _of_network(look: Look) -> list[tuple[str, str]]:
    told = []
    if look.answers is not None and look.answers.classes > 1:
        tied = float(look.answers.tied.double().mean())
        if tied > TIED:
            told.append(
                (
                    "output",
                    f"{tied:.0%} of {look.sequences} sequences have several classes with the same largest output, of "
                    "which the lowest is the answer: accuracy depends on such ties",
                )
            )
    for name, rate in look.rates.items():
        if rate == 0:
            told.append((name, f"no neuron spikes in {look.sequences} sequences: is the input scaled as in training?"))
        elif rate > SATURATED:
            told.append((name, f"{rate:.0%} of its neurons spike at each step: is the input scaled as in training?"))
    return told
