"""What compression did to the spikes, and what it saved: :class:`Comparison`."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sbc_plugin.core.spikes import TAU_STEPS
from sbc_plugin.evaluation.answers import Answers, counted_sequences
from sbc_plugin.evaluation.operations import Cost
from sbc_plugin.evaluation.runtime import RuntimeComparison
from sbc_plugin.evaluation.text import as_json, table

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
        runtime: both in onnxruntime, where that was asked for.
    """

    neurons: list[NeuronComparison]
    dense: Cost
    compressed: Cost
    sequences: int
    answers: Answers | None = None
    layers: list[LayerOperations] = field(default_factory=list)
    runtime: RuntimeComparison | None = None

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
        if self.runtime is not None:
            lines.append(str(self.runtime))
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
