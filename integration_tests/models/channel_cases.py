"""Small networks of every wiring, in float64, and the original that a pruned one has to equal."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from sbc_plugin.norse import copy_model
from sbc_plugin.torch_pruning.importance import edges

STEPS, BATCH = 6, 8
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0, dtype=torch.float64))
FAST = norse.LIFParameters(tau_mem_inv=torch.tensor(500.0, dtype=torch.float64))


class Plain(nn.Module):
    """Every kind of consumer that a plain network has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.side = nn.Conv2d(6, 8, 1, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.join = nn.Conv2d(12, 4, 3)
        self.last = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.first(x)).relu()).relu()
        y = (self.grouped(x) + self.side(x)).relu()
        x = torch.cat([self.up(y).relu(), nn.functional.interpolate(y, scale_factor=2)], dim=1)
        return self.last(self.join(x).relu().flatten(1))


class Sew(nn.Module):
    """A residual block that adds spikes, over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.spikes, self.more = norse.LIFBoxCell(BOX), norse.LIFBoxCell(BOX)
        self.last = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = second = None
        total = torch.zeros((), dtype=x.dtype)
        for step in x:
            a, first = self.spikes(self.stem(step), first)
            b, second = self.more(self.norm(self.block(a)), second)
            total = total + self.last((a + b).flatten(1))
        return total


def cells() -> nn.Module:
    return norse.SequentialState(
        nn.Conv2d(2, 8, 3, padding=1), norse.LIFBoxCell(BOX), nn.Conv2d(8, 6, 3), norse.LIFBoxCell(BOX), nn.Flatten(),
        nn.Linear(24, 10, bias=False), norse.LIFBoxCell(BOX), nn.Linear(10, 3, bias=False), norse.LIFBoxCell(BOX),
    )  # fmt: skip


def recurrent() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(32, 12), norse.LIFCell(FAST), norse.LIFRecurrentCell(12, 10, FAST), nn.Linear(10, 3), norse.LICell()
    )


def prepared(model: nn.Module) -> nn.Module:
    """In float64, driven hard enough to spike, with BatchNorm that does something, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 8.0 if not isinstance(model, Plain) and parameter.dim() > 1 else 1.0
            parameter.mul_(scale)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 2.0, generator=generator)
    return model.double().eval()


def images(n: int = BATCH, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def events(shape: tuple[int, ...] = (2, 4, 4), seed: int = 0) -> Tensor:
    drawn = torch.rand(STEPS, BATCH, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn < 0.4).double()


def run_steps(model: nn.Module, x: Tensor) -> Tensor:
    outputs, state = [], None
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Callable[[Tensor], Tensor], Any]] = {
    "plain": (Plain, images, lambda x: x, lambda m, x: m(x)),
    "cells": (cells, events, lambda x: x[0], run_steps),
    "sew": (Sew, events, lambda x: x, lambda m, x: m(x)),
    "recurrent": (recurrent, lambda: events((32,)), lambda x: x[0], run_steps),
}


def last_layer(model: nn.Module) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


class Kept:
    """Which inputs and outputs of each weight are left, in the numbers of the original."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.inputs: dict[tuple[str, str], list[int]] = {}
        self.outputs: dict[tuple[str, str], list[int]] = {}

    def cut(self, group: Any) -> None:
        for edge in edges(group):
            key = self.names[id(edge.module)], edge.attribute
            if edge.attribute == "weight":
                sizes = inputs_of(edge.module), outputs_of(edge.module)
            else:
                sizes = tuple(reversed(getattr(edge.module, edge.attribute).shape))
            side, size = (self.inputs, sizes[0]) if edge.reads else (self.outputs, sizes[1])
            left = side.setdefault(key, list(range(size)))
            gone = {left[i] for i in edge.indices.tolist()}
            side[key] = [i for i in left if i not in gone]


def inputs_of(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def outputs_of(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def masked_original(original: nn.Module, pruned: nn.Module, kept: Kept) -> nn.Module:
    """The original with the pruned network's weights where they came from, and 0 for inputs that are gone."""
    result = copy_model(original)
    old, new = dict(result.named_modules()), dict(pruned.named_modules())
    for name, attribute in kept.inputs.keys() | kept.outputs.keys():
        module = old[name]
        weight, smaller = getattr(module, attribute).data, getattr(new[name], attribute).data
        transposed, groups = isinstance(module, nn.ConvTranspose2d), getattr(module, "groups", 1)
        if transposed:
            weight, smaller = weight.transpose(0, 1), smaller.transpose(0, 1)
        inputs = kept.inputs.get((name, attribute), list(range(weight.shape[1] * groups)))
        outputs = kept.outputs.get((name, attribute), list(range(weight.shape[0])))
        local = [i for i in inputs if i < weight.shape[1]]
        gone = [i for i in range(weight.shape[1]) if i not in local]
        weight[:, gone] = 0.0
        weight[[i for i in range(len(weight)) if i not in outputs]] = 0.0  # attention reads them, and not by a layer
        weight[torch.tensor(outputs)[:, None], torch.tensor(local)] = smaller
        if isinstance(getattr(module, "bias", None), Tensor):
            module.bias.data.zero_()[outputs] = new[name].bias.data
    return result
