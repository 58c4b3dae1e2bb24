"""``compare``: what compression did to the spikes, and what it saved; ``record_spikes``: one side of it, kept."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.core.spikes import TAU_STEPS, van_rossum_distance
from sbc_plugin.errors import CalibrationError
from sbc_plugin.evaluation.answers import Answered, Answers, AnswerTally, counted_sequences
from sbc_plugin.evaluation.operations import Cost, OperationCounter, Recording, Replayed, sequences_of
from sbc_plugin.evaluation.text import as_json, table
from sbc_plugin.layers import Forward

FEW_TIES = 0.02  # of sequences, below which ties say little about a network


@dataclass(frozen=True)
class NeuronComparison:
    """One spiking neuron module, dense against compressed.

    Attributes:
        name: in the model.
        distance: squared Van Rossum distance, summed over neurons, sequences and time, relative to the distance from
            the dense spikes to silence: 0 = the same spikes, 1 = no better than none. inf if only the compressed one
            spikes.
        rate_dense: spikes a neuron and time step.
        rate: the same of the compressed model.
        dead_dense: fraction of neurons that never spike.
        dead: the same of the compressed model.
        rate_distance: how far each neuron's rate moved, summed over neurons, relative to the sum of the dense rates;
            inf if only the compressed one spikes.
    """

    name: str
    distance: float
    rate_dense: float
    rate: float
    dead_dense: float
    dead: float
    rate_distance: float


@dataclass(frozen=True)
class LayerOperations:
    """What one layer computes.

    Attributes:
        name: in the model.
        dense: effective synaptic operations a sequence, of the dense model.
        compressed: the same of the compressed model.
    """

    name: str
    dense: int
    compressed: int


@dataclass(frozen=True)
class Comparison:
    """Dense against compressed, on the same data.

    Attributes:
        neurons: a row each, in the order in which they run.
        dense: cost of the dense model.
        compressed: cost of the compressed model.
        sequences: how many were run.
        answers: how often both answer alike, and with labels how often rightly; None where the output is no score of
            classes.
        layers: the operations of each layer, in the order in which they run.
    """

    neurons: list[NeuronComparison]
    dense: Cost
    compressed: Cost
    sequences: int
    answers: Answers | None = None
    layers: list[LayerOperations] = field(default_factory=list)

    @property
    def distance(self) -> float:
        """Mean relative spike distance over the neuron modules."""
        return sum(neuron.distance for neuron in self.neurons) / max(len(self.neurons), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self) | {"distance": self.distance}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON, in which NaN and infinity are texts, as JSON has no such numbers."""
        return as_json(self.to_dict(), indent)

    def __str__(self) -> str:
        """The table that people read."""
        heads = ["neurons", "", "spike distance", "rate before", "after", "dead before", "after"]
        rows = [
            [
                n.name,
                "",
                f"{n.distance:.4f}",
                f"{n.rate_dense:.4f}",
                f"{n.rate:.4f}",
                f"{n.dead_dense:.1%}",
                f"{n.dead:.1%}",
            ]
            for n in self.neurons
        ]
        before, after = self.dense, self.compressed
        lines = table(heads, rows)
        if self.layers:
            each = [[layer.name, "", f"{layer.dense:,}", f"{layer.compressed:,}"] for layer in self.layers]
            lines += table(["layer", "", "operations before", "after"], each)
        for what, old, new, places, unit in (
            ("synaptic operations", _effective(before), _effective(after), 0, "a sequence"),
            ("energy (45 nm proxy)", before.energy * 1e9, after.energy * 1e9, 1, "nJ a sequence"),
            ("weights, packed", before.packed_bytes / 1000, after.packed_bytes / 1000, 1, "kB"),
        ):
            ratio = f", {old / new:.1f} times less" if new else ""
            lines.append(f"{what}: {old:,.{places}f} -> {new:,.{places}f} {unit}{ratio}")
        lines.append(f"mean spike distance: {meaning_of(self.distance)}")
        if self.answers is not None:
            lines.append(_answers(self.answers, self.sequences))
            ties = max(self.answers.tied_dense, self.answers.tied)
            if ties > FEW_TIES:
                lines.append(
                    f"ties: several classes share the largest output in {self.answers.tied_dense:.1%} of sequences "
                    f"before and {self.answers.tied:.1%} after; of these the lowest class counts"
                )
        return "\n".join(lines)


def meaning_of(distance: float) -> str:
    """A spike distance with what it says.

    A spike that is missing from a train of spikes far apart costs its share of the distance to silence, and one that
    comes a step later costs ``2 (1 - exp(-1 / 10))`` of it. Source: docs/theory.md, equation 1.

    Args:
        distance: relative to silence, see :class:`NeuronComparison`.

    >>> meaning_of(0.07)
    '0.07: as if 7 % of the spikes were missing, or 37 % came a step late (0 the same spikes, 1 as far as silence)'
    >>> meaning_of(0.0), meaning_of(1.3)
    ('0: the same spikes', '1.3: further from the dense spikes than silence (0 the same spikes, 1 as far as silence)')
    """
    ends = "(0 the same spikes, 1 as far as silence)"
    if distance == 0:
        return "0: the same spikes"
    if not distance < 1:
        return f"{distance:.3g}: further from the dense spikes than silence {ends}"
    late = distance / (2 * (1 - math.exp(-1 / TAU_STEPS)))
    moved = f", or {_percent(late)} came a step late" if late < 1 else ""
    return f"{distance:.3g}: as if {_percent(distance)} of the spikes were missing{moved} {ends}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{share:.0%}".replace("%", " %")


def _answers(answers: Answers, sequences: int) -> str:
    if answers.check is None:
        return f"answers: {answers.agreement:.2%} of {counted_sequences(sequences)} have the same one; none has a label"
    check = answers.check
    return f"accuracy: {check.accuracy_dense:.2%} -> {check.accuracy:.2%}, {check.summary}"


def _effective(cost: Cost) -> int:
    return cost.operations.acs + cost.operations.macs


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

    Raises:
        CalibrationError: no data, other data than was recorded, or the models do not run the same neurons.
        UnsupportedModelError: a model that is not spiking.
    """
    return compare_outputs(dense, compressed, data, forward, lambda batch, before, after: None, batch_first)


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
