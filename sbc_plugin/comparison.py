"""``compare``: what compression did to the spikes, and what it saved; ``record_spikes``: one side of it, kept."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import check_batch, peek
from sbc_plugin.core.spikes import Operations, energy, synaptic_operations, van_rossum_distance
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.errors import CalibrationError
from sbc_plugin.layers import Forward, Part, library_of, neutral
from sbc_plugin.report import table

TAU_STEPS = 10.0  # time constant of the Van Rossum kernel, in time steps


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
class Cost:
    """What one model costs.

    Attributes:
        operations: effective synaptic operations a sequence.
        energy: joules a sequence, a proxy in 45 nm.
        packed_bytes: of the compressible weights.
        sparsity: fraction of zeros among them.
    """

    operations: Operations
    energy: float
    packed_bytes: int
    sparsity: float


@dataclass(frozen=True)
class Recording:
    """What a model did on some data, to compare several others with it; see :func:`record_spikes`.

    Attributes:
        batches: for each batch the spikes of every neuron module, name -> (T, B, ...), uint8.
        cost: of the model.
    """

    batches: tuple[dict[str, Tensor], ...]
    cost: Cost


@dataclass(frozen=True)
class Comparison:
    """Dense against compressed, on the same data.

    Attributes:
        neurons: a row each, in the order in which they run.
        dense: cost of the dense model.
        compressed: cost of the compressed model.
        sequences: how many were run.
    """

    neurons: list[NeuronComparison]
    dense: Cost
    compressed: Cost
    sequences: int

    @property
    def distance(self) -> float:
        """Mean relative spike distance over the neuron modules."""
        return sum(neuron.distance for neuron in self.neurons) / max(len(self.neurons), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self) | {"distance": self.distance}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

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
        for what, old, new, unit in (
            ("synaptic operations", _effective(before), _effective(after), "a sequence"),
            ("energy (45 nm proxy)", before.energy * 1e9, after.energy * 1e9, "nJ a sequence"),
            ("weights, packed", before.packed_bytes / 1000, after.packed_bytes / 1000, "kB"),
        ):
            ratio = f", {old / new:.1f} times less" if new else ""
            lines.append(f"{what}: {old:,.1f} -> {new:,.1f} {unit}{ratio}")
        return "\n".join(lines)


def _effective(cost: Cost) -> int:
    return cost.operations.acs + cost.operations.macs


@dataclass
class _Tally:
    difference: float = 0.0
    silence: float = 0.0
    spikes_dense: Tensor | float = 0.0
    spikes: Tensor | float = 0.0
    steps: int = 0


def record_spikes(model: nn.Module, data: Iterable[Any], *, forward: Forward | None = None) -> Recording:
    """Run a model once for many calls of :func:`compare`, which takes the recording in place of the dense model.

    A spike takes a byte for each neuron, step and sequence.

    Args:
        model: the dense one.
        data: iterable of batches; the same ones, in the same order, are to be given to ``compare``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.

    Raises:
        CalibrationError: no data.
        UnsupportedModelError: a model that is not spiking.
    """
    first, data = peek(data)
    watched = _Watched(model, first, forward)
    batches = tuple(watched.run(batch, number) for number, batch in enumerate(data))
    return Recording(batches, watched.cost(sum(_sequences(spikes) for spikes in batches)))


def compare(
    dense: nn.Module | Recording, compressed: nn.Module, data: Iterable[Any], *, forward: Forward | None = None
) -> Comparison:
    """Run both models on the same data and compare their spikes, synaptic operations, energy and size.

    Spike distance is the squared Van Rossum distance (docs/theory.md, equation 1) with a time constant of 10 steps.
    Operations count products of a nonzero weight and a nonzero input, in all Linear and convolution layers and
    recurrent cells; a product with a spike is an accumulate.

    Args:
        dense: before; or its recording on the same data.
        compressed: after; the same structure.
        data: iterable of batches, as for ``compress``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.

    Raises:
        CalibrationError: no data, other data than was recorded, or the models do not run the same neurons.
        UnsupportedModelError: a model that is not spiking.
    """
    first, data = peek(data)
    tallies: dict[str, _Tally] = {}
    before = _Replayed(dense) if isinstance(dense, Recording) else _Watched(dense, first, forward)
    after = _Watched(compressed, first, forward)
    sequences = 0
    for number, batch in enumerate(data):
        old, new = before.run(batch, number), after.run(batch, number)
        if old.keys() != new.keys():
            raise CalibrationError("the models do not run the same neurons; compare a model with its own compression")
        sequences += _sequences(old)
        for name in old:
            _tally(tallies.setdefault(name, _Tally()), old[name], new[name])
    rows = [_row(name, tally) for name, tally in tallies.items()]
    return Comparison(rows, before.cost(sequences), after.cost(sequences), sequences)


def _sequences(spikes: dict[str, Tensor]) -> int:
    return max((train.shape[1] for train in spikes.values()), default=0)


def _tally(tally: _Tally, before: Tensor, after: Tensor) -> None:
    before, after = before.float(), after.float()
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


class _Replayed:
    """A recording in the place of the model."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def run(self, batch: Any, number: int) -> dict[str, Tensor]:
        if number >= len(self.recording.batches):
            raise CalibrationError(f"only {number} batches were recorded; give the data that the recording was made of")
        return self.recording.batches[number]

    def cost(self, sequences: int) -> Cost:
        recorded = sum(_sequences(spikes) for spikes in self.recording.batches)
        if sequences != recorded:
            raise CalibrationError(f"{sequences} sequences were given and {recorded} recorded; give those recorded")
        return self.recording.cost


class _Watched:
    """A model with counters on its weights."""

    def __init__(self, model: nn.Module, batch: Any, forward: Forward | None) -> None:
        self.library, self.model = library_of(model), model
        self.forward = forward or self.library.default_forward(model)
        layers, _ = self.library.find_layers(model, batch, forward, temporal=False)
        self.parts = [part for layer in layers for part in layer.parts]
        self.operations = Operations()

    def run(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Each spiking neuron's spikes (T, B, ...), uint8, by name."""
        check_batch(batch, number)
        steps: dict[str, list[Tensor]] = {}
        cells = [part for part in self.parts if part.attribute != "weight"]

        def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
            if spikes is not None:
                steps.setdefault(name, []).append(spikes.detach().to(torch.uint8))
            for part in cells:
                if part.name.rpartition(".")[0] == name:
                    value = x if part.attribute == "input_weights" else feedback
                    if value is not None and value.dim() > 1:
                        self.count(part, value)

        with neutral(self.model), torch.no_grad(), self.counting(), self.library.watch_steps(self.model, on_step):
            self.forward(self.model, batch)
        return {name: torch.stack(spikes) for name, spikes in steps.items()}

    @contextmanager
    def counting(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                if part.attribute == "weight":
                    stack.callback(part.module.register_forward_pre_hook(self.counter(part)).remove)
            yield

    def counter(self, part: Part) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.count(part, inputs[0])

        return hook

    def count(self, part: Part, x: Tensor) -> None:
        weight = part.tensor.detach().reshape(part.form.rows, part.form.columns)
        pieces = x.split(max(1, len(x) // 8)) if part.form.convolution is not None else (x,)
        counted = (synaptic_operations(part.form.samples(piece), weight) for piece in pieces)
        self.operations = sum(chain([self.operations], counted), Operations())

    def cost(self, sequences: int) -> Cost:
        total, shares = self.operations, max(sequences, 1)
        a_sequence = Operations(total.acs // shares, total.macs // shares, total.dense // shares)
        weights = [p.tensor.detach().reshape(p.form.rows, p.form.columns) for p in self.parts]
        zeros = sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)
        return Cost(a_sequence, energy(total) / shares, sum(packed_bytes(weight) for weight in weights), zeros)
