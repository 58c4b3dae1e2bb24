"""``compare``: run two models on the same data; ``record_spikes``: one side of it, kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.core.spikes import TAU_STEPS, van_rossum_distance
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.evaluation.answers import Answered, AnswerTally
from sbc_plugin.evaluation.comparison import Comparison, LayerOperations, NeuronComparison
from sbc_plugin.evaluation.operations import OperationCounter, Recording, Replayed, sequences_of
from sbc_plugin.evaluation.runtime import RuntimeComparison
from sbc_plugin.layers import Forward


@dataclass
class _Tally:
    difference: float = 0.0
    silence: float = 0.0
    spikes_dense: Tensor | float = 0.0
    spikes: Tensor | float = 0.0
    steps: int = 0


@autocast_off()
def record_spikes(
    model: nn.Module, data: Iterable[Any], *, forward: Forward | None = None, batch_first: bool | None = None
) -> Recording:
    """Run a model once for many calls of :func:`compare`, which takes the recording in place of the dense model.

    A spike takes a byte for each neuron, step and sequence.

    Args:
        model: the dense one.
        data: iterable of batches; the same ones, in the same order, are to be given to ``compare``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.
        batch_first: as for ``compress``.

    Raises:
        CalibrationError: no data.
        UnsupportedModelError: a model that is not spiking.
    """
    first, data = peek(data)
    counter = OperationCounter(model, first, forward, batch_first)
    batches: list[dict[str, Tensor]] = []
    answers: list[Answered | None] = []
    for number, batch in enumerate(data):
        batches.append(counter.run(batch, number))
        answers.append(counter.answers)
    sequences = sum(map(sequences_of, batches))
    return Recording(tuple(batches), counter.cost(sequences), tuple(answers), counter.of_layers(sequences))


@autocast_off()
def compare(
    dense: nn.Module | Recording,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    forward: Forward | None = None,
    batch_first: bool | None = None,
    runtime: bool = False,
) -> Comparison:
    """Run both models on the same data and compare their spikes, synaptic operations, energy and size.

    Spike distance is the squared Van Rossum distance (docs/theory.md, equation 1) with a time constant of 10 steps.
    Where the output scores classes, answers are compared too, and with labels accuracies, with the 95 % interval of
    their difference (paired: both run the same sequences). Operations count products of a nonzero weight and a
    nonzero input, in all Linear and convolution layers and recurrent cells; a product with a spike is an accumulate.

    Args:
        dense: before; or its recording on the same data.
        compressed: after; the same structure.
        data: iterable of batches, as for ``compress``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.
        batch_first: as for ``compress``.
        runtime: whether both are also written as ONNX and timed in onnxruntime, on the first sequence.

    Raises:
        CalibrationError: no data, other data than was recorded, or the models do not run the same neurons.
        UnsupportedModelError: a model that is not spiking, or, with ``runtime``, that ONNX has no words for.
        SettingsError: ``runtime`` with a recording, or with a ``forward`` of one's own, which no file can hold.
        MissingPackageError: ``runtime`` without Brevitas.
    """
    first, data = peek(data)
    timed = _timed(dense, compressed, first, forward, batch_first) if runtime else None
    found = compare_outputs(dense, compressed, data, forward, lambda batch, before, after: None, batch_first)
    return replace(found, runtime=timed)


def _timed(
    dense: nn.Module | Recording, compressed: nn.Module, batch: Any, forward: Forward | None, batch_first: bool | None
) -> RuntimeComparison:
    if isinstance(dense, Recording):
        raise SettingsError("runtime=True times the dense model itself; give it in the place of its recording")
    if forward is not None:
        raise SettingsError("runtime=True writes the model as ONNX, without forward=; leave one of them out")
    measure = import_module("sbc_plugin.brevitas").measure_runtime
    return RuntimeComparison(measure(dense, batch, batch_first), measure(compressed, batch, batch_first))


def compare_outputs(
    dense: nn.Module | Recording,
    compressed: nn.Module,
    data: Iterable[Any],
    forward: Forward | None,
    on_batch: Callable[[Any, Any, Any], None],
    batch_first: bool | None = None,
) -> Comparison:
    """:func:`compare`, which also calls ``on_batch(batch, before, after)`` with both outputs of each batch.

    Raises:
        CalibrationError: as :func:`compare`.
        UnsupportedModelError: as :func:`compare`.
    """
    first, data = peek(data)
    tallies: dict[str, _Tally] = {}
    before = Replayed(dense) if isinstance(dense, Recording) else OperationCounter(dense, first, forward, batch_first)
    after = OperationCounter(compressed, first, forward, batch_first)
    sequences, answers = 0, AnswerTally()
    for number, batch in enumerate(data):
        old, new = before.run(batch, number), after.run(batch, number)
        if old.keys() != new.keys():
            raise CalibrationError("the models do not run the same neurons; compare a model with its own compression")
        on_batch(batch, before.output, after.output)
        answers.add(batch, before.answers, after.answers)
        sequences += sequences_of(old)
        for name in old:
            _tally(tallies.setdefault(name, _Tally()), old[name], new[name])
    rows = [_row(name, tally) for name, tally in tallies.items()]
    costs = before.cost(sequences), after.cost(sequences)
    old_layers, new_layers = before.of_layers(sequences), after.of_layers(sequences)
    layers = [LayerOperations(name, old_layers[name], new_layers[name]) for name in old_layers if name in new_layers]
    return Comparison(rows, *costs, sequences, answers.result(), layers)


def _tally(tally: _Tally, before: Tensor, after: Tensor) -> None:
    before, after = before.to(after.device).float(), after.float()  # a recording may lie elsewhere
    tally.difference += float(van_rossum_distance(before, after, tau=TAU_STEPS, dt=1.0).sum())
    tally.silence += float(van_rossum_distance(before, torch.zeros_like(before), tau=TAU_STEPS, dt=1.0).sum())
    tally.spikes_dense = tally.spikes_dense + before.sum((0, 1), dtype=torch.float64)
    tally.spikes = tally.spikes + after.sum((0, 1), dtype=torch.float64)
    tally.steps += before.shape[0] * before.shape[1]


def _row(name: str, tally: _Tally) -> NeuronComparison:
    distance = tally.difference / tally.silence if tally.silence else (float("inf") if tally.difference else 0.0)
    counts = [torch.as_tensor(count).flatten() for count in (tally.spikes_dense, tally.spikes)]
    rates = [float(count.mean()) / tally.steps for count in counts]
    dead = [float((count == 0).double().mean()) for count in counts]
    moved, total = float((counts[1] - counts[0]).abs().sum()), float(counts[0].sum())
    rate_distance = moved / total if total else (float("inf") if moved else 0.0)
    return NeuronComparison(name, distance, rates[0], rates[1], dead[0], dead[1], rate_distance)
