"""Weight quantizers for Brevitas whose grid stays where it was set, so that a second-order method can lean on it.

Brevitas' standard quantizers derive the scale from the weight at every call, so it moves while the weight is being
changed. Here it is derived once, at the first call, by :func:`sbc_plugin.core.quantization.grids.make_grid`, and is a
parameter from then on. The scale of the grid is the parameter's own value (2 to its power, for powers of two), not a
fraction of it.
"""

from functools import cache
from itertools import product
from types import new_class
from typing import Any

import torch
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    StatsOp,
)
from brevitas.proxy import WeightQuantProxyFromInjector
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector
from brevitas.quant.solver.weight import WeightQuantSolver
from torch import Tensor, nn

from sbc_plugin.core.quantization.grids import make_grid
from sbc_plugin.errors import SettingsError
from sbc_plugin.settings import SCALES

BITS = {f"int{bits}": bits for bits in range(2, 9)} | {"ternary": 2, "binary": 1}
SUFFIXES = {"absmax": "Float", "mse": "FloatMSE", "power_of_two": "PowerOfTwo"}
GROUP_SIZE = 32
_NAMED_BITS, _NAMED_GRANULARITIES = (2, 3, 4, 8), ("tensor", "channel", f"group:{GROUP_SIZE}")


def _title(name: str, granularity: str, scale: str) -> str:
    """The class name of a quantizer, in Brevitas' manner; groups of the usual size do not say it."""
    kind, _, size = granularity.partition(":")
    grouped = "" if size in ("", str(GROUP_SIZE)) else size
    return f"SBC{name.capitalize()}WeightPer{kind.capitalize()}{grouped}{SUFFIXES[scale]}"


# Quantizers that this module and the package offer as attributes: name -> arguments of weight_quantizer.
NAMED = {
    _title(f"int{bits}", granularity, scale): (f"int{bits}", granularity, scale)
    for bits, granularity, scale in product(_NAMED_BITS, _NAMED_GRANULARITIES, SUFFIXES)
}


class GridScale(nn.Module):
    """The scale of each row of ``weight``: a (rows, columns) view, or (rows, groups, group size, ...) for groups.

    Args:
        bit_width: 2 to 8, or 1 for values of plus and minus one scale.
        grid_scale: "mse", "absmax" or "power_of_two".
        grid_granularity: "tensor", "channel" or "group".

    >>> GridScale(4, "absmax", "channel")(torch.tensor([[0.5, -1.75], [0.0, 0.0]])).tolist()
    [[0.25], [1.0]]
    """

    def __init__(self, bit_width: int, grid_scale: str, grid_granularity: str) -> None:
        super().__init__()
        self.bits, self.scale, self.granularity = bit_width, grid_scale, grid_granularity

    def forward(self, weight: Tensor) -> Tensor:
        """Scales, one a row or group, or a single one."""
        shape: tuple[int, ...] = ()
        if self.granularity == "group":
            weight = weight.movedim(2, -1)
            shape = weight.shape[:-1]
        rows = weight.reshape(1, -1) if self.granularity == "tensor" else weight.reshape(-1, weight.shape[-1])
        scales = _binary_scale(rows, self.scale) if self.bits == 1 else _scale(rows, self.bits, self.scale)
        return scales.reshape(shape).to(weight) if shape else scales.to(weight)


class UnitIntScaling(nn.Module):
    """The code by which a threshold is divided to get a scale: 1, for the threshold is the scale."""

    def __init__(self) -> None:  # Brevitas reads the arguments to inject from it
        super().__init__()

    def forward(self, bit_width: Tensor, signed: Any = None) -> Tensor:
        """One, as a tensor."""
        return torch.ones_like(bit_width)


def _scale(rows: Tensor, bits: int, scale: str) -> Tensor:
    return make_grid(rows.detach(), bits, granularity="channel", scale=scale).scale


def _binary_scale(rows: Tensor, scale: str) -> Tensor:
    """Of least squared error for codes -1 and 1: the mean magnitude."""
    magnitude = rows.detach().abs()
    size = magnitude.amax(1, keepdim=True) if scale == "absmax" else magnitude.mean(1, keepdim=True)
    size = size.where(size > 0, 1.0)
    return size.log2().round().exp2() if scale == "power_of_two" else size


def weight_quantizer(name: str, granularity: str = "channel", scale: str = "mse") -> type[ExtendedInjector]:
    """The quantizer class for ``weight_quant=`` of any Brevitas layer; the same class for the same arguments.

    Args:
        name: "int2" to "int8", symmetric without the lowest code; "ternary", which is "int2"; "binary".
        granularity: "tensor", "channel" (output channel) or "group:32" (32 input channels of one output channel).
        scale: "mse" (least squared error of the weights), "absmax" (nothing clips) or "power_of_two" (nothing clips).

    Raises:
        SettingsError: an unknown name, granularity or scale.

    >>> weight_quantizer("int4", granularity="channel", scale="absmax").__name__
    'SBCInt4WeightPerChannelFloat'
    """
    if name not in BITS:
        raise SettingsError(f"quantizer {name!r} is unknown; use one of {', '.join(map(repr, BITS))}")
    if scale not in SCALES:
        raise SettingsError(f"scale={scale!r} is unknown; use one of {', '.join(map(repr, SCALES))}")
    kind, _, size = granularity.partition(":")
    if kind not in ("tensor", "channel", "group") or (kind == "group") != (size.isdecimal() and int(size) > 0):
        raise SettingsError(f"granularity={granularity!r} is unknown; use 'tensor', 'channel' or 'group:32'")
    if name == "binary" and kind == "group":
        raise SettingsError("a binary quantizer has no groups in Brevitas; use granularity 'channel' or 'tensor'")
    return _class_of(name, granularity, scale)


@cache
def _class_of(name: str, granularity: str, scale: str) -> type[ExtendedInjector]:
    """The class of a quantizer: Brevitas reads from a class body what to put together."""
    kind, _, size = granularity.partition(":")
    settings: dict[str, Any] = {
        "bit_width": BITS[name],
        "bit_width_impl_type": BitWidthImplType.CONST,
        "quant_type": QuantType.BINARY if name == "binary" else QuantType.INT,
        "float_to_int_impl_type": FloatToIntImplType.ROUND,
        "narrow_range": True,
        "signed": True,
        "scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
        "scaling_per_output_type": getattr(ScalingPerOutputType, kind.upper()),
        "scaling_stats_op": StatsOp.MAX,  # decides the view that the next line's module is given
        "scaling_stats_impl": GridScale,
        "int_scaling_impl": UnitIntScaling,
        "zero_point_impl": ZeroZeroPoint,
        "grid_scale": scale,
        "grid_granularity": kind,
        "restrict_scaling_type": RestrictValueType.FP,
        "proxy_class": WeightQuantProxyFromInjector,
        "__module__": __name__,
    }
    if scale == "power_of_two":
        # The scale is a power of two already; rounding up its logarithm, one unit too high, would double it.
        settings |= {
            "restrict_scaling_type": RestrictValueType.POWER_OF_TWO,
            "restrict_value_float_to_int_impl": RoundSte,
        }
    if kind == "group":
        settings |= {"group_size": int(size), "proxy_class": GroupwiseWeightQuantProxyFromInjector}
    title = _title(name, granularity, scale)
    quantizer: type[ExtendedInjector] = new_class(title, (WeightQuantSolver,), {}, lambda body: body.update(settings))
    return quantizer


def __getattr__(name: str) -> type[ExtendedInjector]:
    """One of the quantizers in ``NAMED``: pickle and Brevitas look for a quantizer in its module, by its name.

    Raises:
        AttributeError: no quantizer of this name.
    """
    if name in NAMED:
        return weight_quantizer(*NAMED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMED})
