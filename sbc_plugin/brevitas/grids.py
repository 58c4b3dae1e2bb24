"""The grid of a Brevitas layer: read once, checked to stay where it is, and written to."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.brevitas.held_scales import Held, hold, values_of
from sbc_plugin.brevitas.layers import Quantised
from sbc_plugin.brevitas.own_rounding import OwnRounding, SideBySide
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.custom_rounding import gptq_by_columns
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import GridMovedError, SettingsError
from sbc_plugin.settings import Quantize

TIE = 1e-4  # of a step: the two may round values so close to the middle to different sides


@dataclass(frozen=True, eq=False)
class BinaryGrid(Grid):
    """Codes 0 and 1 for minus and plus half of ``scale``: the grid of the weight moved up by half of ``scale``."""

    @property
    def code_range(self) -> tuple[int, int]:
        """0 and 1."""
        return 0, 1


def read_grid(layer: Quantised) -> Grid | OwnRounding:
    """The values that a layer's weight may take, with a scale for each weight, (rows, columns).

    A :class:`~sbc_plugin.core.quantization.grids.Grid` where one rounds exactly as the layer's quantizer does, else
    that quantizer itself. Its scales have to stay, see :func:`~sbc_plugin.brevitas.held_scales.hold`.
    """
    with torch.no_grad():
        quantised: Any = layer.quant_weight()
        grid = _integer_grid(layer, quantised)
        return grid if grid is not None and _rounds_alike(grid, layer) else OwnRounding(layer)


def _integer_grid(layer: Quantised, quantised: Any) -> Grid | None:
    if not hasattr(quantised, "bit_width") or not hasattr(quantised, "zero_point"):
        return None
    rows, bits = len(layer.weight), int(quantised.bit_width)
    scale, zero_point = (part.detach().expand(layer.weight.shape) for part in (quantised.scale, quantised.zero_point))
    scale, zero_point = scale.reshape(rows, -1), zero_point.reshape(rows, -1).to(torch.int32)
    if bits == 1:
        return BinaryGrid(2 * scale, zero_point, 1, symmetric=True)
    signed, narrow = bool(layer.weight_quant.is_signed), bool(layer.weight_quant.is_narrow_range)
    if not 2 <= bits <= 8 or (not signed and narrow) or (signed and bool(zero_point.any())):
        return None
    return Grid(scale, zero_point, bits, symmetric=signed, narrow=narrow)


def _rounds_alike(grid: Grid, layer: Quantised) -> bool:
    """Whether grid and quantizer agree on the weight, and on values a third of a step beside it."""
    weight, half = layer.weight.detach(), grid.scale / 2 if isinstance(grid, BinaryGrid) else 0.0
    for step in (0.0, 0.3, -0.3):
        probe = weight.flatten(1) + step * grid.scale
        theirs = values_of(layer, probe.view_as(weight)).flatten(1)
        position = (probe + half) / grid.scale
        tied = (position - position.floor() - 0.5).abs() < TIE
        other = (grid.round(probe + half) - half - theirs).abs() > grid.scale / 2
        if bool((other & ~tied).any()):
            return False
    return True


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
    grid = read_grid(layer)
    assert isinstance(grid, Grid)
    return grid


@dataclass(frozen=True)
class Columns:
    """How GPTQ goes through the columns; see :func:`~sbc_plugin.core.quantization.gptq.gptq`.

    Attributes:
        order: "descending" or "given".
        blocks: how many blocks of columns; None: of 128 columns each. It changes speed only.
    """

    order: str
    blocks: int | None = None


def solve(
    weight: Tensor, hessian: LayerHessian, grid: Grid | OwnRounding | SideBySide, mask: Tensor | None, columns: Columns
) -> Solution:
    """:func:`~sbc_plugin.core.quantization.gptq.gptq`, for all that :func:`read_grid` returns. Raises as it does.

    Raises:
        SettingsError: a mask for a binary grid, which has no zero.
    """
    binary = isinstance(grid, BinaryGrid)
    if binary and mask is not None and not mask.all():
        raise SettingsError("binary weights are never zero, so a mask cannot hold; use 'ternary' or 'int2'")
    if isinstance(grid, Grid):
        half = (grid.scale / 2).to(weight) if binary else 0.0
        block = 128 if columns.blocks is None else -(-weight.shape[1] // columns.blocks)
        new = gptq(weight + half, hessian, grid, mask, block=block, order=columns.order) - half
    else:
        new = gptq_by_columns(weight, hessian, grid, mask, order=columns.order)
    return _solution(weight, new, mask, hessian, grid)


def _solution(weight: Tensor, new: Tensor, mask: Tensor | None, hessian: LayerHessian, grid: Any) -> Solution:
    """With the loss, which is only reported, computed in float32: in float64 it would take a third of all the time."""
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device, torch.bool)
    loss = replace(hessian, matrix=hessian.matrix.float()).loss(weight, new)
    return Solution(new, kept, loss, grid if isinstance(grid, Grid) and not isinstance(grid, BinaryGrid) else None)


def rounded_to_nearest(layer: Quantised, weight: Tensor, hessian: LayerHessian, grid: Grid | OwnRounding) -> Solution:
    """What the layer's quantizer makes of the weight (rows, columns) that the layer has."""
    with torch.no_grad():
        return _solution(weight, values_of(layer).flatten(1).to(weight), None, hessian, grid)


def solve_moving(
    layer: Quantised, held: Held, weight: Tensor, hessian: LayerHessian, columns: Columns
) -> tuple[Solution, Grid | OwnRounding]:
    """A solution on scales that follow the weight while it is being solved, as ``gptq_mode`` does it, and then stay.

    Errors that are pushed to weights let some grow and others shrink, and these scales follow.

    Args:
        layer: whose quantizer holds its scale; it holds the new one afterwards. The weight is as it was.
        held: what the quantizer was.
        weight: (rows, columns), the target.
        hessian: of the layer.
        columns: how to go through them.

    Returns:
        The solution, and the grid that it lies on.

    Raises:
        SingularHessianError: the damped Hessian is not positive definite.
        GridMovedError: the quantizer does not hold the scales of the new weight.
    """
    before, constant = layer.weight.detach().clone(), held.undo()
    try:
        rounded = gptq_by_columns(weight, hessian, OwnRounding(layer), order=columns.order)
        with torch.no_grad():
            layer.weight.copy_(rounded.reshape(before.shape))
            hold(layer)
            grid, new = read_grid(layer), values_of(layer).flatten(1).to(weight)
    except BaseException:
        constant.undo()
        raise
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)
    return _solution(weight, new, None, hessian, grid), grid


def write(layer: Quantised, weight: Tensor, grid: Grid | OwnRounding) -> None:
    """Put a weight (rows, columns) that lies on ``grid`` into a layer, and look whether Brevitas sees the same.

    A quantizer that rounds otherwise than to nearest may turn its own results into others. Its layer then gets what it
    turned into them.

    Raises:
        GridMovedError: it sees other values; the layer has its old weight again.
    """
    before = layer.weight.detach().clone()
    candidates = [weight] if isinstance(grid, Grid) else [weight, grid.wanted]
    off = torch.zeros_like(weight)
    with torch.no_grad():
        for candidate in candidates:
            layer.weight.copy_(candidate.reshape(before.shape))
            off = _steps_off(layer, weight, grid)
            if off.max() < 0.5:
                return
        layer.weight.copy_(before)
    raise GridMovedError(
        f"after write-back {int((off >= 0.5).sum())} of {off.numel()} weights have other codes; the quantizer derived "
        "another scale: use weight_quantizer('int4') of sbc_plugin.brevitas"
    )


def _steps_off(layer: Quantised, weight: Tensor, grid: Grid | OwnRounding) -> Tensor:
    """How far each weight (rows, columns) is from what the layer's quantizer makes of it, in steps of the grid."""
    value = values_of(layer).reshape(weight.shape)
    if not isinstance(grid, Grid):
        return (value != weight).to(weight)
    quantised: Any = layer.quant_weight()
    scale = 2 * quantised.scale if isinstance(grid, BinaryGrid) else quantised.scale
    moved = scale.expand(layer.weight.shape).reshape(weight.shape) != grid.scale.to(scale)
    off = (value - weight).abs() / grid.scale.to(weight)
    return torch.where(moved, off.clamp_min(0.5), off)
