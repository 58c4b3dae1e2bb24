"""What settings leave open (``None``), filled in: the combination that kept most accuracy, where it can run.

Measured in docs/results.md: weights of silent neurons first, one or two rounds of pruning as the calibration data say,
then label-free tuning.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sbc_plugin.compression.layer import scales_move
from sbc_plugin.compression.objective import distance_on, pieces, targets
from sbc_plugin.compression.tuning import gradients, no_gradient
from sbc_plugin.errors import CompressionError
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer
from sbc_plugin.settings import Prune, Quantize

STEPS, SCALE_STEPS = 200, 100  # of tuning: where weights move; where only scales can
FINE = 4  # bits from which on tuned scales bring nothing


def steps_for(method: str, prune: Prune | None, quantize: Quantize | None) -> int:
    """How many steps of tuning a compression takes that does not say; 0 for baselines and where nothing gains.

    Args:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: as given.
        quantize: as given.
    """
    if method != "sbc" or (prune is not None and not prune.refit):
        return 0
    if prune is not None and prune.sparsity > 0:
        return STEPS
    return SCALE_STEPS if quantize is not None and quantize.bits < FINE and scales_move(quantize) else 0


def filled(prune: Prune, steps: int, order: str) -> Prune:
    """``prune`` with what it leaves open, given the steps of tuning that follow and the order of layers.

    Rounds stay open where both one and two are to be tried. In sequential order there is one: a layer that the first
    has silenced could not be solved in the second.
    """
    single = steps > 0 and prune.pattern == "unstructured"
    return replace(
        prune,
        rounds=prune.rounds if single and order == "one-shot" else prune.rounds or 1,
        silent_first=single if prune.silent_first is None else prune.silent_first,
    )


def obstacle(
    library: SNNLibrary,
    model: nn.Module,
    layers: list[SpikingLayer],
    batch: Any,
    forward: Forward | None,
    classes: bool,
) -> str:
    """Why gradients of the model's spikes cannot be taken, "" if they can; the model stays as it is.

    Args:
        library: of the model.
        model: dense.
        layers: whose weights shall get gradients.
        batch: of calibration data; its first piece is run.
        forward: runs one whole sequence; None for the library's default.
        classes: the output scores classes.
    """
    piece = pieces(batch)[0] if forward is None else batch
    run = forward or library.default_forward(model)
    try:
        aims = targets(library, model, [piece], forward, classes)
        with torch.enable_grad(), gradients(model, layers):
            loss = distance_on(library, model, aims, run, aims.fitted[0])
            if not loss.requires_grad:
                return no_gradient(model)
            loss.backward()
    except (CompressionError, RuntimeError) as error:  # whatever stands in the way, tuning was not asked for
        return str(error).partition("\n")[0]
    return ""
