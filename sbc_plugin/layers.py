"""The unit of work, :class:`SpikingLayer`, and the protocol that a host's module fulfils."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sbc_plugin.core.kernels import Kernel, delta
from sbc_plugin.core.matrix_form import MatrixForm, Pooling
from sbc_plugin.errors import UnsupportedModelError

Forward = Callable[[nn.Module, Any], Any]

SNN_LIBRARIES = {"norse": "sbc_plugin.norse"}
UNEVEN_GAIN = "a factor that differs within a row is left out of the ranking across rows"  # a layer's note


@dataclass(frozen=True)
class Part:
    """One weight of a layer: its module, the attribute that holds the tensor, and its matrix form.

    Attributes:
        name: e.g. "conv1" or "rnn.input_weights".
        module: that owns the weight.
        attribute: e.g. "weight".
        form: the weight and its input as matrices.
    """

    name: str
    module: nn.Module
    attribute: str
    form: MatrixForm

    @property
    def tensor(self) -> Tensor:
        """The weight itself, in its module's shape."""
        weight: Tensor = getattr(self.module, self.attribute)
        return weight


@dataclass(frozen=True)
class Site:
    """One place where a layer's output is integrated: the calls that get there share a causal filter.

    Attributes:
        neuron: name of the neuron; None for a readout.
        layout: of the inputs: "step" (one call a time step), "sequence" (T first), "merged" (T and batch in one axis)
            or "constant" (one call whose output is used at every step).
    """

    neuron: str | None
    layout: str


@dataclass(frozen=True)
class SpikingLayer:
    """One weight, or several that feed the same current, up to the neuron that integrates it.

    Attributes:
        name: of the weight, parts joined by " + ".
        kind: for the report, e.g. "Conv2d > LIFBoxCell".
        parts: the weights; their columns stand side by side.
        kernel: impulse response of the membrane, with one variant for each kind of row.
        variant: (rows,), the kernel's variant of each row.
        gain: (rows,), of what lies between weight and neuron (BatchNorm, constants); 1 where nothing does.
        pooling: average pooling between weight and neuron, on (batch, channels, *space).
        sites: in the order in which the weight's calls reach them.
        note: what was approximated on purpose, "" if nothing.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    kernel: Kernel
    variant: Tensor
    gain: Tensor
    pooling: Pooling | None = None
    sites: tuple[Site, ...] = field(default=())
    note: str = ""

    @classmethod
    def plain(cls, name: str, module: nn.Module, form: MatrixForm) -> "SpikingLayer":
        """One weight before no neuron: M = I, and nothing behind it."""
        variant = torch.zeros(form.rows, dtype=torch.long, device="cpu")
        gain = torch.ones(form.rows, dtype=torch.float64, device="cpu")
        part, site = Part(name, module, "weight", form), Site(None, "step")
        return cls(name, type(module).__name__, (part,), delta(), variant, gain, sites=(site,))

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return self.parts[0].form.rows

    @property
    def columns(self) -> int:
        """Inputs of one row, of all parts together."""
        return sum(part.form.columns for part in self.parts)

    @property
    def hessians(self) -> int | None:
        """How many Hessians the layer needs; None for a single one."""
        count = self.parts[0].form.groups * (self.kernel.variants or 1)
        return None if count == 1 else count

    @property
    def groups(self) -> Tensor:
        """(rows,), the Hessian of each row: ``variant * conv groups + conv group``."""
        convolution = self.parts[0].form.groups
        own = torch.arange(convolution, device=self.variant.device)
        return self.variant * convolution + own.repeat_interleave(self.rows // convolution)

    def weight(self) -> Tensor:
        """(rows, columns), a copy, detached."""
        return torch.cat([p.form.as_matrix(p.tensor.detach()) for p in self.parts], dim=1).clone()

    def write(self, weight: Tensor) -> None:
        """Put a new weight (rows, columns) into the model, in place, in the model's own type."""
        with torch.no_grad():
            for part, block in zip(self.parts, weight.split([p.form.columns for p in self.parts], dim=1), strict=True):
                part.tensor.copy_(part.form.as_weight(block, part.tensor.shape))


class SNNLibrary(Protocol):
    """What a host's module offers to the rest of the package."""

    def find_layers(
        self, model: nn.Module, batch: Any, forward: Forward | None = None, temporal: bool = True
    ) -> tuple[list[SpikingLayer], dict[str, str]]:
        """The layers in the order in which they run, and what was left out: name -> reason."""

    def default_forward(self, model: nn.Module, batch: Any, batch_first: bool | None = None) -> Forward:
        """``forward(model, batch)`` for one whole sequence, of batches like this one."""

    def is_step_model(self, model: nn.Module, batch: Any) -> bool:
        """Whether a call of the model takes one time step and a state, and hands the state on."""

    def state_items(self, model: nn.Module, x: Tensor) -> int:
        """How many results of a call on one step ``x`` are the state of the next call; 0 where there is none."""

    def watch_steps(
        self, model: nn.Module, on_step: Callable[[str, Tensor, Tensor | None, Tensor | None], None]
    ) -> AbstractContextManager[None]:
        """``on_step(name, x, feedback, spikes)`` after each neuron step; ``spikes`` is None for integrators."""

    def layer_by_layer(
        self, model: nn.Module, steps: int, on_sequence: Callable[[str, Tensor], None]
    ) -> AbstractContextManager[None]:
        """Inside the block each neuron takes (steps * B, ...) for that many steps; ``on_sequence(name, spikes)``."""

    def copy_model(self, model: nn.Module) -> nn.Module:
        """An independent copy."""

    def is_neuron(self, module: nn.Module) -> bool:
        """Whether the module is one neuron, or a chain of neurons that the library treats as one."""

    def holds_weights(self, module: nn.Module) -> bool:
        """Whether the module is a neuron with weights of its own: ``input_weights``, perhaps ``recurrent_weights``."""

    def linear_neurons(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside the block each neuron only multiplies its input by a gain that follows from its parameters."""

    def linear_state(self, state: Any, output: Tensor) -> Any:
        """The state that a neuron of :meth:`linear_neurons` returns beside ``output``: its membrane is ``output``."""


class SpikingLibrary(SNNLibrary, Protocol):
    """A library with spiking neurons, whose states can be looked at."""

    def drop_surrogates(self, model: nn.Module) -> None:
        """Make neurons plain functions of tensors, in place, so that other tools can trace them."""

    def flat_step(self, model: nn.Module, x: Tensor) -> Any:
        """A module ``output, *after = step(x[t], *before)``; its ``initial`` names the states, with their values."""

    def record_states(self, model: nn.Module, batch: Any, forward: Forward | None = None) -> Mapping[str, Any]:
        """What every neuron did at every step: records with ``v_before``, ``v`` and ``spikes`` (T, B, ...), by name."""

    def thresholds(self, model: nn.Module) -> dict[str, Tensor]:
        """The threshold of every neuron that spikes, by name: a scalar, or a value a neuron."""


def library_of(model: nn.Module) -> SpikingLibrary:
    """The host module that knows this model's neurons; imported on demand.

    Raises:
        UnsupportedModelError: no module of the model belongs to a library that is known.
    """
    origins = {base.__module__.split(".")[0] for kind in set(map(type, model.modules())) for base in kind.__mro__}
    for library, adapter in SNN_LIBRARIES.items():
        if library in origins:
            return import_module(adapter)
    known = ", ".join(SNN_LIBRARIES)
    raise UnsupportedModelError(
        f"{type(model).__name__} holds no spiking neuron of a known library ({known}); neurons have to be modules: "
        "in the place of steps called by hand (norse.torch.functional) put cells, e.g. norse.torch.LIFCell()"
    )
