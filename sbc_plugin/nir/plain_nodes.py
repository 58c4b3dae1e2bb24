"""NIR's nodes without a state as modules of torch: matrices, convolutions, pooling, scaling, flattening."""

from collections.abc import Callable
from typing import Any

import nir
import numpy
import torch
from torch import nn
from torch.nn.utils import skip_init

from sbc_plugin.errors import CheckpointError, UnsupportedModelError
from sbc_plugin.nir.neuron_nodes import Gain, numbers

LARGEST = 2**31 - 1  # of a stride, a padding or another such number: what torch computes from them stays an int64


def plain_module(node: Any) -> nn.Module | None:
    """The module of a node without a state, in float32; None for a node of another kind.

    Raises:
        CheckpointError: values of another type or shape than the node has, or that are NaN or infinite.
        UnsupportedModelError: a matrix or convolution that torch does not have.
    """
    return next((make(node) for kind, make in _PLAIN.items() if isinstance(node, kind)), None)


def flatten(node: Any, whole: bool) -> nn.Module:
    """The module of a Flatten node, whose axes count without the batch; ``whole`` joins all of them.

    Raises:
        CheckpointError: an axis that is no whole number.
    """
    (first,), (last,) = _whole(node.start_dim, 1, -LARGEST), _whole(node.end_dim, 1, -LARGEST)
    return nn.Flatten() if whole else nn.Flatten(first + (first >= 0), last + (last >= 0))


def whole_numbers(value: Any) -> tuple[int, ...]:
    """The whole numbers of an array (n,) or a single one.

    Raises:
        CheckpointError: they are none, or beyond 2^31.
    """
    array = numbers(value)
    if array.ndim > 1 or not (array == numpy.floor(array)).all() or (abs(array) > LARGEST).any():
        raise CheckpointError(f"{_shown(value)} where whole numbers are needed; the file is damaged")
    return tuple(int(number) for number in array.flat)


def _whole(value: Any, axes: int, least: int) -> tuple[int, ...]:
    """One whole number for each axis, ``least`` or larger.

    Raises:
        CheckpointError: there are more or fewer, or others.
    """
    found = whole_numbers(value)
    if min(found, default=least) < least:
        raise CheckpointError(f"{_shown(value)} where numbers from {least} on are needed; the file is damaged")
    if len(found) not in (1, axes):
        raise CheckpointError(f"{_shown(value)} where {axes} whole numbers are needed; the file is damaged")
    return found * (axes // len(found))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."


def _values(array: Any) -> torch.Tensor:
    return torch.from_numpy(numbers(array, numpy.float32))


def _weight(node: Any) -> torch.Tensor:
    weight = _values(node.weight)
    if not weight.numel():
        raise CheckpointError(f"a weight of shape {tuple(weight.shape)} has no values")
    return weight


def _linear(node: Any) -> nn.Module:
    weight = _weight(node)
    if weight.dim() != 2:
        raise UnsupportedModelError(f"a weight of shape {tuple(weight.shape)} has no rule; use a matrix")
    bias = getattr(node, "bias", None)
    return _filled(skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _convolution(node: Any) -> nn.Module:
    weight = _weight(node)
    axes, (groups,) = 1 if isinstance(node, nir.Conv1d) else 2, _whole(node.groups, 1, least=1)
    if weight.dim() != axes + 2:
        raise CheckpointError(f"a weight of shape {tuple(weight.shape)} is none of a {type(node).__name__}")
    noted = node.metadata if isinstance(node.metadata, dict) else {}
    bias = None if isinstance(noted.get("bias"), str) and noted["bias"] == "none" else node.bias
    padding = node.padding if isinstance(node.padding, str) else _whole(node.padding, axes, least=0)
    try:
        module = skip_init(
            nn.Conv1d if axes == 1 else nn.Conv2d,
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_whole(node.stride, axes, least=1),
            padding=padding,
            dilation=_whole(node.dilation, axes, least=1),
            groups=groups,
            bias=bias is not None,
        )
    except ValueError as error:
        raise UnsupportedModelError(f"torch has no such convolution: {error}") from error
    return _filled(module, weight, bias)


def _filled(module: Any, weight: torch.Tensor, bias: Any) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            values = _values(bias)
            if values.shape != module.bias.shape:
                raise CheckpointError(
                    f"a bias of shape {tuple(values.shape)} for {len(module.bias)} outputs; the file is damaged"
                )
            module.bias.copy_(values)
    filled: nn.Module = module
    return filled


def _pooling(node: Any) -> nn.Module:
    kernel, stride = (_pair(value, least=1) for value in (node.kernel_size, node.stride))
    padding = _pair(node.padding, least=0)
    # An average over a divisor of 1 is a sum, and linear for autograd too; nn.LPPool2d is not.
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)


def _pair(value: Any, least: int) -> tuple[int, int]:
    first, second = _whole(value, 2, least)
    return first, second


def _gain(node: Any) -> nn.Module:
    return Gain(_values(node.scale))


_PLAIN: dict[type, Callable[[Any], nn.Module]] = {
    nir.Linear: _linear,
    nir.Affine: _linear,
    nir.Conv1d: _convolution,
    nir.Conv2d: _convolution,
    nir.SumPool2d: _pooling,
    nir.AvgPool2d: _pooling,
    nir.Scale: _gain,
}
