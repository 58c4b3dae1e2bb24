"""Trying one step of tuning on a few sequences: whether gradients can be taken, in what memory, and what a step costs.

Costs are counted, not timed, so that what follows from them is the same on every machine.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.counting import Cost, Counter, KeptTensors
from sbc_plugin.calibration.forward import TRACED, Runner
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.memory import fitting_pieces, memory_left
from sbc_plugin.compression.objective import distance_on, targets
from sbc_plugin.compression.tuning import gradients, no_gradient
from sbc_plugin.core.sizes import in_words
from sbc_plugin.errors import CompressionError
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import TUNED_SEQUENCES, Calibration


@dataclass(frozen=True)
class Trial:
    """One step of tuning on a few sequences.

    Attributes:
        reason: why no step can be taken, "" if one can.
        forward: cost of running a batch as large as the first.
        step: cost of a step on one piece.
        pieces: sequences of a piece.
    """

    reason: str = ""
    forward: Cost = field(default_factory=Cost)
    step: Cost = field(default_factory=Cost)
    pieces: int = TUNED_SEQUENCES


def tried(runner: Runner, layers: list[SpikingLayer], batch: Any, calibration: Calibration) -> Trial:
    """A step on the first sequences of a batch; the model stays as it is.

    Args:
        runner: of the dense model.
        layers: whose weights shall get gradients.
        batch: of calibration data.
        calibration: settings; what it takes the output for, and the memory, count.
    """
    piece = next(iter(runner.pieces(batch, TRACED)))
    sequences = runner.sequences(piece)
    try:
        aims = targets(runner, [piece], calibration.outputs == "classes")
        with torch.enable_grad(), gradients(runner.model, layers), layer_by_layer(runner, piece) as source:
            # A run of its own for the memory, because hooks on what is kept hide that it was changed in place.
            with KeptTensors() as kept:
                loss = distance_on(source, aims, aims.train[0])
            with Counter() as counter:
                loss = distance_on(source, aims, aims.train[0])
                forward = counter.cost
                if not loss.requires_grad:
                    return Trial(no_gradient(runner.model))
                loss.backward()
    except (CompressionError, RuntimeError) as error:  # whatever stands in the way, tuning was not asked for
        return Trial(str(error).partition("\n")[0])
    if not sequences:  # only the user's own forward can cut a batch
        return Trial("", forward, counter.cost)
    room, needed = memory_left(calibration.memory_bytes), kept.memory / sequences
    fit, held = fitting_pieces(TUNED_SEQUENCES, room, needed), runner.sequences(batch)
    reason = "" if fit else f"a step on one sequence takes {in_words(needed)}, and {in_words(room or 0)} are left"
    pieces = max(fit, 1)
    return Trial(reason, forward.on(held / sequences), counter.cost.on(min(pieces, held) / sequences), pieces)


def tried_by_all(runner: Runner, layers: list[SpikingLayer], batch: Any, calibration: Calibration) -> Trial:
    """The same on all ranks: what one cannot do none does, and pieces are as small as the smallest."""
    with ranks.alone():
        trial = tried(runner, layers, batch, calibration)
    found = ranks.everyone(trial)
    reason = next((each.reason for each in found if each.reason), "")
    return replace(found[0], reason=reason, pieces=min(each.pieces for each in found))
