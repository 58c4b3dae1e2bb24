"""``compare``: what compression did to the spikes, and what it saved."""

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
from sbc_plugin.layers import Forward, Part, SNNLibrary, library_of, neutral
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
    """

    name: str
    distance: float
    rate_dense: float
    rate: float
    dead_dense: float
    dead: float


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        operations: effective synaptic operations a sequence.
        energy: joules a sequence, a proxy in 45 nm.
        packed_bytes: of the compressible weights.
    """

    operations: Operations
    energy: float
    packed_bytes: int


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


def compare(
    dense: nn.Module, compressed: nn.Module, data: Iterable[Any], *, forward: Forward | None = None
) -> Comparison:
    """Run both models on the same data and compare their spikes, synaptic operations, energy and size.

    Spike distance is the squared Van Rossum distance (docs/theory.md, equation 1) with a time constant of 10 steps.
    Operations count products of a nonzero weight and a nonzero input, in all Linear and convolution layers and
    recurrent cells; a product with a spike is an accumulate.

    Args:
        dense: before.
        compressed: after; the same structure.
        data: iterable of batches, as for ``compress``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.

    Raises:
        CalibrationError: no data, or the models do not run the same neurons.
        UnsupportedModelError: a model that is not spiking.
    """
    library = library_of(dense)
    first, data = peek(data)
    run = forward or library.default_forward(dense)
    tallies: dict[str, _Tally] = {}
    models = [_Watched(library, model, first, forward) for model in (dense, compressed)]
    sequences = 0
    for number, batch in enumerate(data):
        check_batch(batch, number)
        before, after = (model.run(batch, run) for model in models)
        if before.keys() != after.keys():
            raise CalibrationError(
                "the two models do not run the same neurons; compare a model with its own compression"
            )
        sequences += max((spikes.shape[1] for spikes in before.values()), default=0)
        for name in before:
            _tally(tallies.setdefault(name, _Tally()), before[name], after[name])
    rows = [_row(name, tally) for name, tally in tallies.items()]
    costs = [model.cost(sequences) for model in models]
    return Comparison(rows, costs[0], costs[1], sequences)


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
    return NeuronComparison(name, distance, rates[0], rates[1], dead[0], dead[1])


class _Watched:
    """A model with counters on its weights."""

    def __init__(self, library: SNNLibrary, model: nn.Module, batch: Any, forward: Forward | None) -> None:
        self.library, self.model = library, model
        layers, _ = library.find_layers(model, batch, forward, temporal=False)
        self.parts = [part for layer in layers for part in layer.parts]
        self.operations = Operations()

    def run(self, batch: Any, forward: Forward) -> dict[str, Tensor]:
        """Each spiking neuron's spikes (T, B, ...), uint8, by name."""
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
            forward(self.model, batch)
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
        size = sum(packed_bytes(p.tensor.detach().reshape(p.form.rows, p.form.columns)) for p in self.parts)
        return Cost(a_sequence, energy(total) / shares, size)
