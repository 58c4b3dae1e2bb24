"""Synaptic operations, energy and size of a model, counted while it runs, or the recording of such a run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import Runner, StepSpikes
from sbc_plugin.core.spikes import Operations, energy, synaptic_operations
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.errors import CalibrationError
from sbc_plugin.evaluation.answers import Answered, answered
from sbc_plugin.layers import Forward, Part, SpikingLayer


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        operations: effective synaptic operations a sequence.
        energy: joules a sequence, a proxy in 45 nm.
        packed_bytes: of all weights, those that compression leaves alone included.
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
        answers: for each batch the answers; None where the output is no score of classes.
        layers: effective operations a sequence of each layer, by name.
    """

    batches: tuple[dict[str, Tensor], ...]
    cost: Cost
    answers: tuple[Answered | None, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)


def sequences_of(spikes: dict[str, Tensor]) -> int:
    """How many sequences one batch's spikes, name -> (T, B, ...), belong to."""
    return max((train.shape[1] for train in spikes.values()), default=0)


def weights_left_alone(model: nn.Module, layers: Iterable[SpikingLayer]) -> dict[str, Tensor]:
    """The weights of a model that no layer holds, by name: parameters of two axes or more, each once.

    Args:
        model: with its layers.
        layers: that compression knows; what lies inside their modules (scales of a quantizer) is no weight.
    """
    parts = [part for layer in layers for part in layer.parts]
    known = {id(part.tensor) for part in parts}
    known |= {id(p) for part in parts if part.attribute == "weight" for p in part.module.parameters()}
    known |= {id(p) for part in parts for inside in part.module.children() for p in inside.parameters()}
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in known
    }


class Replayed:
    """A recording in the place of the model, without its output; ``answers`` are those of its last run."""

    output = None

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.answers: Answered | None = None

    def run(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Each spiking neuron's spikes of the batch of this number, as they were recorded.

        Raises:
            CalibrationError: no such batch was recorded.
        """
        if number >= len(self.recording.batches):
            raise CalibrationError(f"only {number} batches were recorded; give the data that the recording was made of")
        self.answers = self.recording.answers[number] if self.recording.answers else None
        return self.recording.batches[number]

    def cost(self, sequences: int) -> Cost:
        """What the recorded model costs.

        Raises:
            CalibrationError: other data than was recorded was given.
        """
        recorded = sum(sequences_of(spikes) for spikes in self.recording.batches)
        if sequences != recorded:
            raise CalibrationError(f"{sequences} sequences were given and {recorded} recorded; give those recorded")
        return self.recording.cost

    def of_layers(self, sequences: int) -> dict[str, int]:
        """Effective operations a sequence of each layer, as they were recorded."""
        return self.recording.layers


class OperationCounter:
    """A model that counts the operations of its weights.

    Attributes:
        output: what its last run returned.
        answers: in that; None where it is no score of classes.
    """

    def __init__(
        self, model: nn.Module, batch: Any, forward: Forward | None = None, batch_first: bool | None = None
    ) -> None:
        self.runner = Runner.of(model, batch, forward, batch_first)
        layers, _ = self.runner.find_layers(batch, temporal=False)
        self.parts = [part for layer in layers for part in layer.parts]
        self._layer_of = {part.name: layer.name for layer in layers for part in layer.parts}
        self.others = weights_left_alone(self.runner.model, layers)
        self._by_layer = {layer.name: Operations() for layer in layers}
        self.output: Any = None
        self.answers: Answered | None = None

    def run(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Each spiking neuron's spikes (T, B, ...), uint8, by name."""
        self.runner.check(batch, number)
        spikes_of_steps = StepSpikes(lambda step: step.detach().to(torch.uint8))
        cells = [part for part in self.parts if part.attribute != "weight"]

        def on_step(name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
            spikes_of_steps(name, x, feedback, spikes)
            for part in cells:
                if part.name.rpartition(".")[0] == name:
                    value = x if part.attribute == "input_weights" else feedback
                    if value is not None and value.dim() > 1:
                        self._count(part, value)

        with torch.no_grad():
            self.output = self.runner(batch, hooks=self._hooks(), on_step=on_step)
        spikes = spikes_of_steps.stacked()
        self.answers = answered(self.output, sequences_of(spikes))
        return spikes

    def _hooks(self) -> Iterator[Any]:
        for part in self.parts:
            if part.attribute == "weight":
                yield part.module.register_forward_pre_hook(self._counter(part))

    def _counter(self, part: Part) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._count(part, inputs[0])

        return hook

    def _count(self, part: Part, x: Tensor) -> None:
        weight = part.form.as_matrix(part.tensor.detach())
        pieces = x.split(max(1, len(x) // 8)) if part.form.positions > 1 else (x,)
        counted = (synaptic_operations(part.form.samples(piece), weight) for piece in pieces)
        name = self._layer_of[part.name]
        self._by_layer[name] = sum(counted, self._by_layer[name])

    def cost(self, sequences: int) -> Cost:
        """What the model costs, after runs of so many sequences."""
        total, shares = sum(self._by_layer.values(), Operations()), max(sequences, 1)
        a_sequence = Operations(total.acs // shares, total.macs // shares, total.dense // shares)
        weights = [p.tensor.detach() for p in self.parts]
        weights += [weight.flatten(1) for weight in self.others.values()]
        zeros = sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)
        return Cost(a_sequence, energy(total) / shares, sum(packed_bytes(weight) for weight in weights), zeros)

    def of_layers(self, sequences: int) -> dict[str, int]:
        """Effective operations a sequence of each layer, by name, after runs of so many sequences."""
        return {name: (each.acs + each.macs) // max(sequences, 1) for name, each in self._by_layer.items()}
