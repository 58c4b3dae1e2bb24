"""Tiny Norse networks of every kind, built from a seed, with what discovery has to find in each."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]

T, B = 6, 3
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0))
LIF = norse.LIFParameters(tau_mem_inv=torch.tensor(400.0), tau_syn_inv=torch.tensor(250.0))
REFRAC = norse.LIFRefracParameters(lif=LIF, rho_reset=torch.tensor(2.0))
LSNN = norse.LSNNParameters(tau_mem_inv=torch.tensor(400.0), tau_syn_inv=torch.tensor(250.0))
IAF = norse.IAFParameters(v_th=torch.tensor(2.0), v_reset=torch.tensor(0.0))
LI = norse.LIParameters(tau_mem_inv=torch.tensor(200.0), tau_syn_inv=torch.tensor(300.0))


@dataclass(frozen=True)
class Found:
    """What discovery has to say about one layer; ``note`` is a part of the note, "" for none at all."""

    name: str
    kind: str
    kernel: str
    layouts: str = "step"
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, how to run it, and its layers in order."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: tuple[Found, ...]
    forward: Forward | None = None

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        """The model, with weights that make it spike, in eval mode."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model = self.build()
        for name, parameter in model.named_parameters():
            fresh = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() >= 2:
                fresh = 3 * (fresh + 0.3) / parameter[0].numel() ** 0.5
            elif "bias" in name:
                fresh = 0.2 * fresh
            else:
                fresh = 1 + 0.3 * fresh
            parameter.data = fresh.to(dtype)
        for cell in model.modules():
            if getattr(cell, "autapses", True) is False:
                cell.recurrent_weights.data.fill_diagonal_(0.0)  # type: ignore[union-attr, operator]
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.1 + torch.rand(buffer.shape, generator=generator))
        return model.to(dtype).eval()

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        """Binary spikes."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(self.shape, generator=generator) < 0.4).to(dtype)

    def output(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The model's answer to one whole sequence, by the simplest loop."""
        with torch.no_grad():
            if self.forward is not None:
                return first(self.forward(model, batch))
            if isinstance(model, norse.SequentialState) and self.steps(model):
                return over_time(model, batch)
            return first(model(batch))

    @staticmethod
    def steps(model: nn.Module) -> bool:
        return any(
            isinstance(m, norse.module.snn.SNNCell | norse.module.snn.SNNRecurrentCell) for m in model.children()
        )


def first(output: Any) -> Any:
    """The output without its state."""
    return output[0] if isinstance(output, tuple) else output


def over_time(model: nn.Module, x: Tensor) -> Tensor:
    """Drive a step model over (T, B, ...)."""
    outputs, state = [], None
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


class Loop(nn.Module):
    """A module that loops over T itself: Linear, LIF, Linear, LIFBox; the readout is summed or kept for each step."""

    def __init__(self, readout: str = "sum") -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), norse.LIFCell(LIF)
        self.fc2, self.lif2 = nn.Linear(6, 4), norse.LIFBoxCell(BOX)
        self.out, self.readout = nn.Linear(4, 3), readout

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        outputs = []
        for step in x:
            z, s1 = self.lif1(self.fc1(step), s1)
            z, s2 = self.lif2(self.fc2(z), s2)
            outputs.append(self.out(z))
        return torch.stack(outputs).sum(0) if self.readout == "sum" else torch.stack(outputs)


class Residual(nn.Module):
    """SEW adds spikes behind the neuron; a membrane shortcut adds currents before it."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = (
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            norse.LIFBoxCell(BOX),
        )
        self.conv2, self.bn2, self.lif2 = (
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            norse.LIFBoxCell(BOX),
        )
        self.down = nn.Conv2d(2, 4, 1, bias=False) if shortcut == "membrane" else None
        self.fc, self.li, self.flatten = nn.Linear(64, 3), norse.LICell(LI), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = s3 = None
        outputs = []
        for step in x:
            z1, s1 = self.lif1(self.bn1(self.conv1(step)), s1)
            current = self.bn2(self.conv2(z1))
            if self.down is not None:
                z2, s2 = self.lif2(current + self.down(step), s2)
            else:
                z2, s2 = self.lif2(current, s2)
                z2 = z2 + z1
            v, s3 = self.li(self.fc(self.flatten(z2)), s3)
            outputs.append(v)
        return torch.stack(outputs)


class Twice(nn.Module):
    """One weight used twice a step, before two neurons; or one neuron module used at two places."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 5), nn.Linear(5, 5) if shared == "neuron" else None
        self.lif1 = norse.LIFCell(LIF)
        self.lif2 = norse.LIFCell(LIF) if shared == "weight" else None

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        outputs = []
        for step in x:
            z, s1 = self.lif1(self.fc1(step), s1)
            second = self.fc2 or self.fc1
            z, s2 = (self.lif2 or self.lif1)(second(z), s2)
            outputs.append(z)
        return torch.stack(outputs)


class DirectCoding(nn.Module):
    """An image: one convolution, whose current drives the neuron at each of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 3, 3), norse.LIFBoxCell(BOX)
        self.fc = nn.Linear(27, 4)

    def forward(self, image: Tensor) -> Tensor:
        current, state, total = self.conv(image), None, torch.zeros(())
        for _ in range(T):
            z, state = self.lif(current, state)
            total = total + self.fc(z.flatten(1))
        return total / T


class Merged(nn.Module):
    """(T, B, ...) flattened to (T * B, ...) for the weights, as fast implementations do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.lif1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), norse.LIF(LIF)
        self.pool, self.fc, self.lif2 = nn.AvgPool2d(2), nn.Linear(16, 3), norse.LIF(LIF)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        current = self.pool(self.bn(self.conv(x.flatten(0, 1))))
        z, _ = self.lif1(current.unflatten(0, (steps, batch)))
        z, _ = self.lif2(self.fc(z.flatten(2)))
        return z


class Attention(nn.Module):
    """A spike-driven transformer block on (T, B, N, C): q, k, v of spikes, multiplied, projected."""

    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            self.add_module(name, nn.Linear(4, 4))
            self.add_module(f"lif_{name}", norse.LIF(LIF))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (getattr(self, f"lif_{n}")(getattr(self, n)(x))[0] for n in "qkv")
        mixed = q @ (k.mT @ v) * 0.5
        return x + self.lif_o(self.o(mixed))[0]  # type: ignore[operator]


class Concat(nn.Module):
    """Two branches side by side before one neuron, and before one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.lif = nn.Linear(5, 3), nn.Linear(5, 2), norse.LIFBoxCell(BOX)
        self.fc, self.lif2 = nn.Linear(10, 4), norse.LIFBoxCell(BOX)

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        outputs = []
        for step in x:
            z, s1 = self.lif(torch.cat([self.left(step), self.right(step)], dim=1), s1)
            z, s2 = self.lif2(self.fc(torch.cat([z, step], dim=1)), s2)
            outputs.append(z)
        return torch.stack(outputs)


class Lifted(nn.Module):
    """A cell lifted over time, its state dropped, for a sequence model."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.lift = norse.Lift(cell)

    def forward(self, x: Tensor) -> Tensor:
        return first(self.lift(x))


class Forgetful(nn.Module):
    """The neuron's state is thrown away at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 4), norse.LIFBoxCell(BOX)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.lif(3 * self.fc(step))[0] for step in x])


class OwnRecurrence(nn.Module):
    """A Linear that feeds the neuron's spikes back."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_rec, self.lif = nn.Linear(5, 4), nn.Linear(4, 4, bias=False), norse.LIFCell(LIF)

    def forward(self, x: Tensor) -> Tensor:
        z, state, outputs = x.new_zeros(x.shape[1], 4), None, []
        for step in x:
            z, state = self.lif(self.w_in(step) + self.w_rec(z), state)
            outputs.append(z)
        return torch.stack(outputs)


def braille() -> nn.Module | None:
    """The recurrent net of the developers' data, from NIR; None where it is not there."""
    import nir

    folder = Path(os.environ.get("SBC_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = folder / "braille" / "braille_noDelay_bias_zero.nir"
    if not file.exists():
        return None
    return imported(nir.read(file), dt=1e-4, reset_method=reset_value)


def imported(graph: Any, **settings: Any) -> nn.Module:
    """``from_nir``, which calls a function that nirtorch deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model: nn.Module = norse.from_nir(graph, **settings)
    return model
