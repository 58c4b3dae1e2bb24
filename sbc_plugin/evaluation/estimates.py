"""What compression would take: a layer's solvers from its sizes, tuning from one step that is tried.

The figures stand for the default: to 90 % zeros and 4 bits, tuned.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration.counting import COLUMN, LAYER, Cost, Counter, KeptTensors
from sbc_plugin.calibration.forward import TRACED, Runner
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.memory import fitting_pieces, memory_left
from sbc_plugin.core.costs import solver_products
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import TUNED_SEQUENCES

PROBE = 512  # columns of the matrices with which this machine's speed is measured


@dataclass(frozen=True)
class TuningStep:
    """One step of tuning on one piece of data.

    Attributes:
        seconds: of a run and the gradients, without the optimiser.
        memory: bytes that the run keeps for the gradients.
        cost: of the step, counted.
        forward: of its run alone, counted.
        sequences: of the piece.
    """

    seconds: float
    memory: int
    cost: Cost
    forward: Cost
    sequences: int


def solver_seconds(layer: SpikingLayer, speed: float) -> float:
    """To prune a layer and to quantise it, once each.

    Args:
        layer: of which the sizes count.
        speed: of :func:`products_per_second`.
    """
    return LAYER + COLUMN * layer.columns + solver_products(layer.rows, layer.columns, layer.hessians) / speed


def products_per_second(device: torch.device) -> float:
    """Multiplications and additions of a matrix product in float64, of which solvers are made."""
    matrix = torch.ones(PROBE, PROBE, dtype=torch.float64, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits until the product is there
        best = min(best, time.perf_counter() - started)
    return PROBE**3 / best


def tuning_step(runner: Runner, layers: list[SpikingLayer], batch: Any) -> TuningStep | None:
    """Try a step of tuning on a piece of the batch, as large as memory allows; the model stays as it is.

    None where no gradient reaches a weight, or one sequence does not fit into memory.

    Args:
        runner: of the model.
        layers: whose weights would be tuned.
        batch: of calibration data.
    """
    few = next(iter(runner.pieces(batch, TRACED)))
    found, sequences = _tried(runner, layers, few), runner.sequences(few)
    if found is None or not sequences:
        return found
    pieces = fitting_pieces(TUNED_SEQUENCES, memory_left(), found.memory / sequences)
    if not pieces:
        return None
    return found if pieces <= sequences else _tried(runner, layers, next(iter(runner.pieces(batch, pieces))))


def _tried(runner: Runner, layers: list[SpikingLayer], piece: Any) -> TuningStep | None:
    weights = [part.tensor for layer in layers for part in layer.parts]
    counter, forward, seconds = Counter(), Cost(), float("inf")
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _asked_for_gradients(weights),
            layer_by_layer(runner, piece) as source,
        ):
            # The first one is counted, and sets up what the second finds ready, which therefore takes less time.
            for counted in (counter, nullcontext()):
                started = time.perf_counter()
                with counted, KeptTensors() as kept:
                    spikes, output = source.spikes(piece, keep=lambda step: step)
                    loss = sum((train.square().sum() for train in spikes.values()), torch.zeros((), device="cpu"))
                    first = output[0] if isinstance(output, tuple | list) and output else output
                    loss = loss + first.square().sum() if isinstance(first, Tensor) else loss
                    forward = counter.cost if counted is counter else forward
                    if not loss.requires_grad:
                        return None
                    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                seconds = min(seconds, time.perf_counter() - started)
    except RuntimeError:  # whatever stands in the way of gradients, compress says it
        return None
    if all(gradient is None for gradient in gradients):
        return None
    return TuningStep(seconds, kept.memory, counter.cost, forward, runner.sequences(piece))


@contextmanager
def _asked_for_gradients(weights: list[Tensor]) -> Iterator[None]:
    before = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)
