"""Bring the moments of every channel's current back to the dense network's, by forward passes alone.

An error in one layer changes the rates that the next layer receives, and so the currents whose mean and variance
BatchNorm holds and to which a bias was fitted. Both are moved so that mean and variance are the dense ones again, layer
by layer, each on what the compressed layers before it send. Source: docs/theory.md, equations 13 and 14.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import Runner, eval_mode, hooked
from sbc_plugin.layers import SpikingLayer

SEQUENCES = 256  # at least so many are run if there are so many, in whole batches
FURTHEST = 2.0  # factor on a channel's standard deviation

Norm: TypeAlias = nn.modules.batchnorm._BatchNorm
Biased: TypeAlias = nn.Linear | nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel, (channels,), float64, over batch, steps and positions."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Expected:
    """What the dense network shows.

    Attributes:
        moments: by name of the module, in the order in which they are called.
        batches: that they were taken on.
    """

    moments: dict[str, Moments]
    batches: list[Any]


def expected(runner: Runner, layers: list[SpikingLayer], data: Iterable[Any]) -> Expected:
    """The moments of everything that :func:`align` can move, from the first of the data.

    Args:
        runner: of the dense model.
        layers: of the model; those with a bias count, and all BatchNorms.
        data: batches of this rank's share; the moments are those of all ranks.
    """
    batches = _first_batches(runner, data, SEQUENCES)
    return Expected(_moments(runner, _modules(runner.model, layers), batches), batches)


def align(runner: Runner, wanted: Expected) -> None:
    """Move BatchNorms' running statistics and layers' biases, in place, one after the other.

    The batches run once for each of them.

    Args:
        runner: of the model, which holds the compressed weights.
        wanted: of the dense network.
    """
    for name, target in wanted.moments.items():
        module: Any = runner.model.get_submodule(name)
        now = _moments(runner, {name: module}, wanted.batches)[name]
        with torch.no_grad():
            if isinstance(module, Norm):
                _align_norm(module, now, target)
            else:
                module.bias += (target.mean - now.mean).to(module.bias)


def movable(model: nn.Module, layers: list[SpikingLayer]) -> list[Tensor]:
    """What :func:`align` changes: running statistics and biases."""
    tensors: list[Tensor] = []
    for module in _modules(model, layers).values():
        own = [module.running_mean, module.running_var] if isinstance(module, Norm) else [module.bias]
        tensors += [tensor.detach() for tensor in own if tensor is not None]
    return tensors


def _align_norm(norm: Norm, now: Moments, target: Moments) -> None:
    """Let the BatchNorm see ``(x - mean) sigma* / sigma + mean*`` in place of x, by its running statistics alone."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    known = (now.variance > 0) & (target.variance > 0)
    ratio = (target.variance / now.variance.where(known, 1.0)).sqrt().clamp(1 / FURTHEST, FURTHEST)
    ratio = ratio.where(known, 1.0).minimum(((variance + norm.eps) / norm.eps).sqrt())  # a variance is not negative
    norm.running_mean.copy_(mean / ratio + (now.mean - target.mean / ratio))
    norm.running_var.copy_(variance.where(ratio == 1, (variance + norm.eps) / ratio.square() - norm.eps))


def _modules(model: nn.Module, layers: list[SpikingLayer]) -> dict[str, Norm | Biased]:
    """What can be aligned, by name: BatchNorms that keep running statistics, and layers with a bias."""
    own = {id(part.module) for layer in layers for part in layer.parts if part.attribute == "weight"}
    modules: dict[str, Norm | Biased] = {}
    for name, module in model.named_modules():
        if (isinstance(module, Norm) and module.running_mean is not None) or (
            isinstance(module, Biased) and id(module) in own and module.bias is not None
        ):
            modules[name] = module
    return modules


def _moments(runner: Runner, modules: Mapping[str, Norm | Biased], batches: list[Any]) -> dict[str, Moments]:
    """What comes into each BatchNorm and out of each layer, in the order of their first calls."""
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, x: Tensor, axis: int) -> None:
        rows = x.detach().movedim(axis, -1).flatten(0, -2).double()
        new = [rows.sum(0), rows.square().sum(0), rows.new_tensor(len(rows))]
        sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new

    def hook(name: str, module: Norm | Biased) -> Any:
        if isinstance(module, Norm):
            return module.register_forward_pre_hook(lambda _, given: add(name, given[0], 1))
        axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
        return module.register_forward_hook(lambda _, given, output: add(name, output, axis))

    hooks = (hook(name, module) for name, module in modules.items())
    with torch.no_grad(), hooked(hooks), eval_mode(runner.model):
        for batch in batches:
            runner.run(runner.model, batch)
    means = {name: (total / count, squares / count) for name, (total, squares, count) in _of_all_ranks(sums).items()}
    return {name: Moments(mean, (square - mean.square()).clamp_min(0)) for name, (mean, square) in means.items()}


def _of_all_ranks(sums: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Sums over all ranks, in the order of the first that has any: one without a batch does not know what is called."""
    if ranks.count() == 1:
        return sums
    channels = next(filter(None, ranks.everyone({name: len(found[0]) for name, found in sums.items()})), {})
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    joint = {
        name: sums.get(name, [zero.new_zeros(count), zero.new_zeros(count), zero.clone()])
        for name, count in channels.items()
    }
    ranks.total([each for found in joint.values() for each in found])
    return joint


def _first_batches(runner: Runner, data: Iterable[Any], sequences: int) -> list[Any]:
    """The first batches, whole ones, until they hold so many sequences together, over all ranks in turns."""
    batches: list[tuple[int, Any]] = []
    sizes: dict[int, int] = {}
    for number, batch in ranks.numbered(data):
        batches.append((number, batch))
        sizes[number] = runner.sequences(batch)
        if sum(sizes.values()) >= sequences:
            break
    joint = {number: size for held in ranks.everyone(sizes) for number, size in held.items()}
    numbers = sorted(joint)
    before = dict(zip(numbers, accumulate((joint[number] for number in numbers), initial=0), strict=False))
    return [batch for number, batch in batches if before[number] < sequences]
