"""Tiny networks of every shape that a channel can travel through, for the tests of torch-pruning's graph."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LIF = norse.LIFParameters(v_th=torch.tensor(0.2))


def braille(name: str = "braille7_net") -> nn.Module:
    """The recurrent NIR graph; skips where the developers' data is absent."""
    if not (DATA / "load.py").exists():
        pytest.skip("the developers' data is not here")
    spec = importlib.util.spec_from_file_location("braille_load", DATA / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = getattr(module, name)()
    return net


def step_net() -> nn.Module:
    return norse.SequentialState(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        norse.LIFCell(LIF),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 3, bias=False),
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.linspace(100, 300, 5)[:, None, None])),
        nn.Flatten(),
        nn.Linear(20, 7),
        norse.LIFCell(norse.LIFParameters(tau_mem_inv=torch.linspace(100, 200, 7))),
        nn.Linear(7, 3),
        norse.LICell(),
    )


def lift_net() -> nn.Module:
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(2, 6, 3)),
        norse.LIF(norse.LIFParameters(tau_mem_inv=torch.linspace(100, 200, 6)[:, None, None])),
        norse.Lift(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(54, 7),
        norse.LIF(LIF),
        nn.Linear(7, 3),
        norse.LI(),
    )


class Loop(nn.Module):
    """Loops over time itself, and averages its readout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lif = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), norse.LIFCell(LIF)
        self.pool, self.fc1, self.lif1 = nn.MaxPool2d(2), nn.Linear(54, 7), norse.LIFCell(LIF)
        self.fc2, self.readout = nn.Linear(7, 3), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        s = s1 = s2 = None
        total = torch.zeros(())
        for step in x:
            z, s = self.lif(self.norm(self.conv(step)), s)
            z, s1 = self.lif1(self.fc1(self.pool(z).flatten(1)), s1)
            _, s2 = self.readout(self.fc2(z), s2)
            total = total + s2.v
        return total / len(x)


class Sew(nn.Module):
    """A spike-element-wise residual block and one with a membrane shortcut, then mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lif0 = nn.Conv2d(2, 6, 3, padding=1), norse.LIFCell(LIF)
        self.conv1, self.lif1 = nn.Conv2d(6, 6, 3, padding=1), norse.LIFCell(LIF)
        self.inner, self.lif2 = nn.Conv2d(6, 4, 1), norse.LIFCell(LIF)
        self.outer, self.short, self.lif3 = nn.Conv2d(4, 8, 1), nn.Conv2d(6, 8, 1), norse.LIFCell(LIF)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = s2 = s3 = None
        outputs = []
        for step in x:
            a, s0 = self.lif0(self.stem(step), s0)
            b, s1 = self.lif1(self.conv1(a), s1)
            a = a + b
            c, s2 = self.lif2(self.inner(a), s2)
            d, s3 = self.lif3(self.outer(c) + self.short(a), s3)
            outputs.append(self.fc(d.mean((2, 3))))
        return torch.stack(outputs)


class Concat(nn.Module):
    """Two branches side by side, flattened together, and their features side by side with a third's."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = norse.Lift(nn.Conv2d(2, 4, 3)), norse.Lift(nn.Conv2d(2, 6, 3))
        self.lif, self.mix = norse.LIF(LIF), norse.Lift(nn.Conv2d(10, 4, 1))
        self.lif2, self.side = norse.LIF(LIF), nn.Linear(128, 5)
        self.fc = nn.Linear(36 * 10 + 36 * 4 + 5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        both = torch.cat([self.left(x), self.right(x)], dim=2)
        z, _ = self.lif(both)
        y, state = self.lif2(self.mix(z))
        features = torch.cat([z.flatten(2), self.side(x.flatten(2)), y.flatten(2)], dim=-1)
        return self.fc(features), state


class Grouped(nn.Module):
    """A grouped convolution, and a depthwise with a pointwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lif = nn.Conv2d(2, 8, 3), norse.LIFCell(LIF)
        self.group, self.lif1 = nn.Conv2d(8, 8, 3, groups=2), norse.LIFCell(LIF)
        self.point, self.depth = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, groups=6)
        self.lif2, self.fc = norse.LIFCell(LIF), nn.Linear(24, 3)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        a, b, c = state or (None, None, None)
        z, a = self.lif(self.stem(x), a)
        z, b = self.lif1(self.group(z), b)
        z, c = self.lif2(self.depth(self.point(z)), c)
        return self.fc(z.flatten(1)), (a, b, c)


def recurrent_net() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(12, 8),
        norse.LIFRecurrent(8, 6, p=LIF),
        nn.Linear(6, 7),
        norse.LSNNRecurrent(7, 5),
        nn.Linear(5, 6),
        norse.LIFRefracRecurrent(6, 4),
        nn.Linear(4, 3),
    )


def recurrent_cells() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(12, 8),
        norse.LIFRecurrentCell(8, 6, p=norse.LIFParameters(tau_mem_inv=torch.linspace(100, 300, 6))),
        nn.Linear(6, 3),
        norse.LICell(),
    )


class Transformer(nn.Module):
    """One block of spiking attention without normalisation over channels, over tokens (T, B, N, C)."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = 2, fused
        self.embed = nn.Linear(6, 12)
        self.position = nn.Parameter(torch.randn(5, 12) / 4)
        if fused:
            self.qkv = nn.Linear(12, 24)
        else:
            self.query, self.key, self.value = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 8)
        self.lif_q, self.lif_k, self.lif_v = norse.LIF(LIF), norse.LIF(LIF), norse.LIF(LIF)
        self.out, self.lif = nn.Linear(8, 12), norse.LIF(LIF)
        self.up, self.lif_up, self.down = nn.Linear(12, 10), norse.LIF(LIF), nn.Linear(10, 12)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        if self.fused:
            qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.heads, -1)
            parts = [part.transpose(2, 3) for part in qkv.unbind(3)]
        else:
            parts = [
                layer(x).view(*x.shape[:3], self.heads, -1).transpose(2, 3)
                for layer in (self.query, self.key, self.value)
            ]
        q, k, v = (lif(part)[0] for lif, part in zip((self.lif_q, self.lif_k, self.lif_v), parts, strict=True))
        attended = (q @ k.transpose(-2, -1) * 0.25) @ v
        x = x + self.out(attended.transpose(2, 3).flatten(3))
        x = x + self.down(self.lif_up(self.up(self.lif(x)[0]))[0])
        return self.fc(x.mean(2))


@dataclass(frozen=True)
class Case:
    """A model, the shape of one time step, and whether it takes one step at a time."""

    make: Callable[[], nn.Module]
    step: tuple[int, ...]
    steps: bool = False

    def example(self, length: int) -> Tensor:
        shape = self.step if self.steps else (length, *self.step)
        return torch.rand(shape, generator=torch.Generator().manual_seed(1))

    def sequence(self, length: int) -> Tensor:
        return (torch.rand((length, *self.step), generator=torch.Generator().manual_seed(2)) > 0.4).float()


CASES = {
    "step": Case(step_net, (2, 2, 8, 8), steps=True),
    "lift": Case(lift_net, (2, 2, 8, 8)),
    "loop": Case(Loop, (2, 2, 8, 8)),
    "sew": Case(Sew, (2, 2, 6, 6)),
    "concat": Case(Concat, (2, 2, 8, 8)),
    "grouped": Case(Grouped, (2, 2, 8, 8), steps=True),
    "recurrent": Case(recurrent_net, (2, 12)),
    "recurrent cells": Case(recurrent_cells, (2, 12), steps=True),
    "nir": Case(braille, (3, 12), steps=True),
    "transformer": Case(Transformer, (2, 5, 6)),
    "fused transformer": Case(lambda: Transformer(fused=True), (2, 5, 6)),
}


def make(name: str) -> nn.Module:
    """The model, with weights that make its neurons spike, in eval mode."""
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data = 3 * (torch.randn(parameter.shape) + 0.3) / parameter[0].numel() ** 0.5
    for cell in model.modules():
        if getattr(cell, "autapses", True) is False:
            cell.recurrent_weights.data.fill_diagonal_(0.0)  # type: ignore[union-attr, operator]
        if isinstance(cell, nn.BatchNorm2d):
            for tensor in (cell.running_mean, cell.weight, cell.bias):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
    return model
