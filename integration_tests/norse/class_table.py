"""What becomes of each class of neurons that ``norse.torch`` exports, and of its layers, measured.

A small network is built around each class, as its user would. What the table says of it follows from runs: the Hessian
is compared with membranes that never reset, the cut network with the dense one with zeros, and the file's network with
the model. Every answer is compared in float64.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import torch
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from integration_tests.models.brute_force import TRANSPOSED, Simulation
from integration_tests.strangers.channels import TOLERANCE, difference, masked
from integration_tests.strangers.networks import Stranger
from sbc_plugin import calibrate
from sbc_plugin.errors import CompressionError
from sbc_plugin.nir import trace
from sbc_plugin.norse import default_forward, find_layers
from sbc_plugin.torch_pruning import get_pruner

T, B, N, H = 10, 3, 5, 6
HEAD = ["class", "called", "Hessian", "channels", "NIR"]


class Steps(nn.Module):
    """Takes one step (B, N) and a state."""

    def __init__(self, *modules: nn.Module, scale: float = 4.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.chain = norse.SequentialState(*modules)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(scale * (torch.randn(parameter.shape) + 0.4) / parameter[0].numel() ** 0.5)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.chain(x, state)


class Whole(Steps):
    """Takes a whole sequence (T, B, N)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.chain(x)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Row:
    """One class in one network.

    Attributes:
        name: of the class.
        called: "step", "sequence", or either with "recurrent".
        model: that holds it, in eval mode and float64.
        batch: (T, B, ...) of spikes.
        place: of the layer whose Hessian is compared.
    """

    name: str
    called: str
    model: nn.Module
    batch: Tensor
    place: int = 0

    def cells(self) -> list[str]:
        """The words of the row."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return [f"`{self.name}`", self.called, *map(self._word, (self.hessian, self.channels, self.nir))]

    def _word(self, measured: Callable[[], str]) -> str:
        try:
            return measured()
        except CompressionError as error:
            return f"refused: {str(error).partition(';')[0]}"

    def hessian(self) -> str:
        """ "exact", with respect to membranes that never reset, or what the report notes."""
        run = default_forward(self.model, self.batch)
        layers, skipped = find_layers(self.model, self.batch, run)
        found = calibrate(self.model, [self.batch])
        layer = layers[self.place]
        if layer.note or skipped:
            notes = [layer.note, *(f"`{name.rpartition('.')[2]}`: {reason}" for name, reason in skipped.items())]
            return "; ".join(filter(None, notes))
        simulation = Simulation(self.model, lambda: run(self.model, self.batch))
        membranes = [site.neuron or "" for site in layer.sites]

        def collect(seen: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]) -> Tensor:
            return torch.cat([value.flatten() for name in dict.fromkeys(membranes) for value in seen[0][name]])

        samples = collect(simulation.membranes()).numel() // layer.rows
        module = layer.parts[0].module
        transposed = module if isinstance(module, TRANSPOSED) else None
        tensors = [part.tensor.data for part in layer.parts]
        expected = simulation.hessian(tensors, 0, collect, transposed) / samples
        error = float((found[layer.name].hessian() - expected).norm() / expected.norm())
        return "exact" if error < 1e-10 else f"wrong by {error:.1g}"

    def channels(self) -> str:
        """ "exact": after a cut the network is the dense one with zeros."""
        dense, model = copy.deepcopy(self.model), copy.deepcopy(self.model)
        readout = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        example = self.batch[0] if self.called.startswith("step") else self.batch
        arguments = {"pruning_ratio": 0.4, "ignored_layers": [readout], "calibration_data": [self.batch]}
        pruner = get_pruner("sbc", model, example, **arguments)
        pruner.step()
        if not pruner.pruning_history():
            return f"left whole: {'; '.join(pruner.left_whole.values())}"
        stranger = Stranger(0, model, self.batch, None, isinstance(model, Steps), example, self.batch, 1, readout)
        run = default_forward(dense, self.batch)
        with torch.no_grad():
            expected = run(masked(stranger, dense, pruner.pruning_history()).double(), self.batch)
            error = difference(expected, run(model, self.batch))
        return "exact" if error <= TOLERANCE else f"wrong by {error:.1g}"

    def nir(self) -> str:
        """ "exact": the network of the file answers as the model; or that NIR has no node for the class."""
        try:
            network = trace(self.model, self.batch).double()
        except CompressionError as error:
            if "has no counterpart in NIR" in str(error) or "no node of NIR" in str(error):
                return "no node"
            raise
        with torch.no_grad():
            expected = default_forward(self.model, self.batch)(copy.deepcopy(self.model).float().double(), self.batch)
            error = difference(expected, default_forward(network, self.batch)(network, self.batch))
        return "exact" if error <= 2e-5 else f"wrong by {error:.1g}"


def spikes(*shape: int) -> Tensor:
    """(T, B, *shape), float64."""
    return (torch.rand(T, B, *shape, generator=torch.Generator().manual_seed(1)) < 0.6).double()


def rows() -> list[Row]:
    """One row for each exported class of neurons, and for the layers that Norse adds to torch's."""
    found = []
    for name in dir(norse):
        cls = getattr(norse, name)
        if isinstance(cls, type) and issubclass(cls, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
            found.append(_neuron(name, cls))
    for cell in (norse.CobaLIFCell(N, H),):  # its step is not in `.activation`
        model = Steps(cell, nn.Linear(H, H), norse.LIFCell(), nn.Linear(H, 3), norse.LICell(), scale=9.0)
        found.append(Row(type(cell).__name__, "step, recurrent", model.eval().double(), spikes(N)))
    model = Steps(nn.Linear(N, H), norse.LIFCell(), norse.LILinearCell(H, 3))
    found.append(Row("LILinearCell", "step", model.eval().double(), spikes(N), place=-1))
    over_time = Whole(norse.LConv2d(2, 3, 3), norse.LIF(), nn.Flatten(2), nn.Linear(12, 3), norse.LI())
    found.append(Row("LConv2d", "sequence", over_time.eval().double(), spikes(2, 4, 4)))
    lifted = Whole(norse.Lift(nn.Conv2d(2, 3, 3)), norse.LIF(), nn.Flatten(2), norse.Lift(nn.Linear(12, 3)), norse.LI())
    found.append(Row("Lift", "sequence", lifted.eval().double(), spikes(2, 4, 4)))
    for axes, cls in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1):
        up = Steps(cls(2, 3, 2), norse.LIFCell(), nn.Flatten(), nn.Linear(3 * 4**axes, 3), norse.LICell())
        found.append(Row(cls.__name__, "step", up.eval().double(), spikes(2, *[3] * axes)))
    return found


def _neuron(name: str, cls: Any) -> Row:
    given, scale = ((norse.tonic_spiking,), 90.0) if name.startswith("Izhikevich") else ((), 4.0)
    sequence, recurrent = issubclass(cls, SNN | SNNRecurrent), issubclass(cls, SNNRecurrent | SNNRecurrentCell)
    readout, place = norse.LI() if sequence else norse.LICell(), 0
    if name.startswith("LI") and not name.startswith("LIF"):  # a readout needs spikes before it
        first: list[nn.Module] = [nn.Linear(N, H), norse.LIF() if sequence else norse.LIFCell()]
        readout, place = cls(), -1
    else:
        first = [cls(N, H, *given)] if recurrent else [nn.Linear(N, H), cls(*given)]
    model = (Whole if sequence else Steps)(*first, nn.Linear(H, 3), readout, scale=scale)
    called = f"{'sequence' if sequence else 'step'}{', recurrent' * recurrent}"
    return Row(name, called, model.eval().double(), spikes(N), place)


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
