"""The grid of a Brevitas layer: read once, checked to stay where it is, and written to."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.brevitas.layers import Quantised
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import GridMovedError, SettingsError, UnsupportedModelError
from sbc_plugin.settings import Quantize


@dataclass(frozen=True, eq=False)
class BinaryGrid(Grid):
    """Codes 0 and 1 for minus and plus half of ``scale``: the grid of the weight moved up by half of ``scale``."""

    @property
    def code_range(self) -> tuple[int, int]:
        """0 and 1."""
        return 0, 1


def read_grid(layer: Quantised) -> Grid:
    """The values that a layer's weight may take, with a scale for each weight, (rows, columns).

    Raises:
        UnsupportedModelError: the quantizer makes no integers of 1 to 8 bits.
    """
    with torch.no_grad():
        quantised: Any = layer.quant_weight()
    if not hasattr(quantised, "bit_width") or not hasattr(quantised, "zero_point"):
        raise UnsupportedModelError("its weight quantizer makes no integers; use weight_quantizer('int4')")
    rows, bits = len(layer.weight), int(quantised.bit_width)
    scale, zero_point = (part.detach().expand(layer.weight.shape) for part in (quantised.scale, quantised.zero_point))
    scale, zero_point = scale.reshape(rows, -1), zero_point.reshape(rows, -1).to(torch.int32)
    if bits == 1:
        return BinaryGrid(2 * scale, zero_point, 1, symmetric=True)
    signed, narrow = bool(layer.weight_quant.is_signed), bool(layer.weight_quant.is_narrow_range)
    if not 2 <= bits <= 8 or (not signed and narrow) or (signed and bool(zero_point.any())):
        kind = f"{bits} bits, signed={signed}, narrow_range={narrow}"
        raise UnsupportedModelError(f"its weight quantizer has no grid of ours ({kind}); use weight_quantizer('int4')")
    return Grid(scale, zero_point, bits, symmetric=signed, narrow=narrow)


def check_fixed(layer: Quantised) -> None:
    """Refuse a quantizer that derives its scale or zero point from the weight at every call.

    Raises:
        GridMovedError: another weight gets another grid.
    """
    quantizer, weight = layer.weight_quant.tensor_quant, layer.weight.detach()
    with torch.no_grad():
        now, then = quantizer(weight), quantizer(weight / 2 + 1)
    if all(torch.equal(a, b) for a, b in zip(now[1:3], then[1:3], strict=True)):
        return
    bits, shape = int(now[3]), now[1].shape
    granularity = "Tensor" if now[1].numel() == 1 else "Channel" if now[1].numel() == len(weight) else "Group"
    if layer.weight_quant.is_groupwise:
        granularity = "Group"
    named = f"SBCInt{bits}WeightPer{granularity}Float"
    raise GridMovedError(
        f"its quantizer derives scales {tuple(shape)} from the weight at every call, so they move while the weight "
        f"changes; use {named} of sbc_plugin.brevitas, or weight_quantizer('int{bits}', "
        f"granularity={'group:32' if granularity == 'Group' else granularity.lower()!r})"
    )


def rule_of(layer: Quantised) -> Quantize | None:
    """The settings by which core makes the same kind of grid, None where it has none.

    That is so for quantizers of :func:`~sbc_plugin.brevitas.quantizers.weight_quantizer`, but for binary ones and for
    groups of a convolution, which are input channels of one kernel position.
    """
    rule = layer.weight_quant.quant_injector
    granularity = getattr(rule, "grid_granularity", None)
    if granularity is None or rule.bit_width == 1:
        return None
    if granularity == "group":
        granularity = f"group:{rule.group_size}" if layer.weight.dim() == 2 else None
    return None if granularity is None else Quantize(rule.bit_width, granularity, rule.grid_scale)


def set_scale(layer: Quantised, scale: Tensor, rule: Quantize) -> Grid:
    """Give a layer, whose quantizer is that of ``rule``, other scales: (rows, columns), one for each weight.

    Returns:
        The layer's grid, which then stays.

    Raises:
        UnsupportedModelError: the quantizer makes no integers.
    """
    read_grid(layer)  # the first call derives a scale from the weight, later ones do not
    value: Tensor = layer.weight_quant.tensor_quant.scaling_impl.value
    size = int(rule.granularity[6:]) if rule.granularity.startswith("group") else scale.shape[1]
    new = scale[:1, :1] if rule.granularity == "tensor" else scale[:, ::size]
    if rule.scale == "power_of_two":
        mantissa, exponent = torch.frexp(new)  # exact, as a logarithm need not be
        new = (exponent - 1).to(new)
        assert bool((mantissa == 0.5).all())
    with torch.no_grad():
        value.copy_(new.reshape(value.shape))
    return read_grid(layer)


def solve(weight: Tensor, hessian: LayerHessian, grid: Grid, mask: Tensor | None, *, order: str) -> Solution:
    """:func:`~sbc_plugin.core.quantization.gptq.gptq`, binary grids included. Raises as it does.

    The loss is only reported, so it is computed in float32: in float64 it would take a third of all the time.

    Raises:
        SettingsError: a mask for a binary grid, which has no zero.
    """
    binary = isinstance(grid, BinaryGrid)
    if binary and mask is not None and not mask.all():
        raise SettingsError("binary weights are never zero, so a mask cannot hold; use 'ternary' or 'int2'")
    half = (grid.scale / 2).to(weight) if binary else 0.0
    moved = gptq(weight + half, hessian, grid, mask, order=order)
    new = moved - half
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device, torch.bool)
    loss = replace(hessian, matrix=hessian.matrix.float()).loss(weight, new)
    return Solution(new, kept, loss, None if binary else grid)


def write(layer: Quantised, weight: Tensor, grid: Grid) -> None:
    """Put a weight (rows, columns) that lies on ``grid`` into a layer, and look whether Brevitas sees the same.

    Raises:
        GridMovedError: it sees other values; the layer has its old weight again.
    """
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(before.shape))
        quantised: Any = layer.quant_weight()
        scale = 2 * quantised.scale if isinstance(grid, BinaryGrid) else quantised.scale
        same_scale = torch.equal(scale.expand(before.shape).reshape(weight.shape), grid.scale.to(scale))
        off = (quantised.value.reshape(weight.shape) - weight).abs() / grid.scale.to(weight)
        if same_scale and off.max() < 0.5:
            return
        layer.weight.copy_(before)
    raise GridMovedError(
        f"after write-back {int((off >= 0.5).sum())} of {off.numel()} weights have other codes; the quantizer derived "
        "another scale: use weight_quantizer('int4') of sbc_plugin.brevitas"
    )
