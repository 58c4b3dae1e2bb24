"""Grids of a few bits: which values a quantised weight may take, and how the scale of a grid is chosen.

A grid value is ``(code - zero_point) * scale`` with an integer code. A scale belongs to the whole weight, to a row, or
to a group of consecutive columns of a row; so scales are ``(1, 1)``, ``(rows, 1)`` or ``(rows, columns / group size)``.
Weights of one layer that stand side by side ("parts": the input and the recurrent weight of a cell) share no scale.
Zero is always on the grid: pruned weights stay exactly zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError

# Fine near 1, where the best factor lies for 4 bits and more; down to 1/100 because at 2 bits one outlier may set the
# largest magnitude.
SHRINK_FACTORS = [step / 100 for step in range(100, 0, -1)]
# The same for every dtype, because a solver may compute in float32. Smaller weights are zeros for every purpose.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny

SPARSE_COLUMNS = 512  # from wider blocks of weights on, the search of scales leaves out most zeros


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that a quantised weight (rows, columns) may take.

    Attributes:
        scale: (1, 1), (rows, 1) or (rows, columns / group size), the distance of two neighbouring values; positive.
            With parts, their scales stand side by side: (1, parts), (rows, parts), ...
        zero_point: int32, shape of ``scale``, the code of 0.0; all zeros when ``symmetric``.
        bits: 2 to 8.
        symmetric: signed codes around 0, else codes from 0 to 2^bits - 1 around ``zero_point``.
        narrow: a symmetric grid leaves out the code -2^(bits - 1), so that -x is on the grid if x is (Brevitas'
            ``narrow_range``; 2 bits are then ternary). It means nothing if not ``symmetric``.
        power_of_two: every scale is a power of two, and has to stay one.
        widths: how many columns each scale has; None = all the same number.

    >>> grid = Grid(torch.tensor([[0.5]]), torch.tensor([[0]], dtype=torch.int32), bits=2, symmetric=True)
    >>> grid.code_range, grid.round(torch.tensor([[0.2, -0.4, 9.0]])).tolist()
    ((-1, 1), [[0.0, -0.5, 0.5]])
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool
    narrow: bool = True
    power_of_two: bool = False
    widths: tuple[int, ...] | None = None

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return _code_range(self.bits, self.symmetric, self.narrow)

    def of_columns(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each column, both broadcastable to (rows, columns).

        Raises:
            SettingsError: the grid's column groups do not divide ``columns``.
        """
        groups = self.scale.shape[1]
        if groups == 1 or (groups == columns and self.widths is None):
            return self.scale, self.zero_point
        if self.widths is None and columns % groups:
            raise SettingsError(f"{groups} column groups of the grid do not divide {columns} columns; make a new grid")
        widths = self.widths or (columns // groups,) * groups
        if sum(widths) != columns:
            raise SettingsError(f"the grid was made for {sum(widths)} columns, not for {columns}; make a new grid")
        repeats = torch.tensor(widths, device=self.scale.device)
        return self.scale.repeat_interleave(repeats, 1), self.zero_point.repeat_interleave(repeats, 1)

    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes (int32) of the grid values nearest to ``weight`` (rows, columns); ties go to even codes.

        Raises:
            SettingsError: the grid's column groups do not divide the columns.
        """
        scale, zero_point = self.of_columns(weight.shape[-1])
        low, high = self.code_range
        return ((weight / scale).round() + zero_point).clamp(low, high).to(torch.int32)

    def dequantise(self, codes: Tensor) -> Tensor:
        """``(codes - zero_point) * scale`` for ``codes`` (rows, columns), in the dtype of ``scale``.

        Raises:
            SettingsError: the grid's column groups do not divide the columns.
        """
        scale, zero_point = self.of_columns(codes.shape[-1])
        return (codes - zero_point) * scale

    def round(self, weight: Tensor) -> Tensor:
        """The grid values nearest to ``weight`` (rows, columns), in its dtype.

        Raises:
            SettingsError: the grid's column groups do not divide the columns.
        """
        return self.dequantise(self.codes(weight)).to(weight.dtype)


def make_grid(
    weight: Tensor,
    bits: int,
    *,
    granularity: str = "channel",
    scale: str = "mse",
    symmetric: bool = True,
    narrow: bool = True,
    mask: Tensor | None = None,
    hessian_diag: Tensor | None = None,
    parts: Sequence[int] | None = None,
) -> Grid:
    """Choose scales (and zero points) for ``weight`` (rows, columns).

    Args:
        weight: (rows, columns).
        bits: 2 to 8.
        granularity: "tensor" one scale, "channel" one a row, "group:32" one for every 32 consecutive columns of a row.
        scale: "absmax" is the smallest at which nothing clips; "mse" is shrunk from there to the least squared error of
            rounding (never above that of "absmax"); "power_of_two" is that of "absmax", rounded up to a power of two.
        symmetric: see :class:`Grid`.
        narrow: see :class:`Grid`.
        mask: (rows, columns), True = kept; masked weights do not count.
        hessian_diag: (columns,), or (rows, columns) where rows have Hessians of their own: "mse" weights the squared
            error of each column with it. None weights all alike.
        parts: columns of each weight, where several stand side by side; each gets scales of its own, as it would alone.

    Returns:
        A grid in float32 (float64 for a float64 weight). Where all weights are zero its scale is 1.

    Raises:
        SettingsError: bits, granularity or scale unknown or out of range, columns that groups do not divide, or a
            weight with NaN or infinity.

    >>> make_grid(torch.tensor([[0.5, -1.75], [0.0, 0.0]]), bits=4, scale="absmax").scale.tolist()
    [[0.25], [1.0]]
    """
    if parts is not None and len(parts) > 1:
        blocks_of = [
            (None,) * len(parts) if t is None else t.expand(weight.shape).split(list(parts), 1)
            for t in (mask, hessian_diag)
        ]
        grids = [
            make_grid(
                part, bits, granularity=granularity, scale=scale, symmetric=symmetric, narrow=narrow, mask=kept,
                hessian_diag=importance,
            )
            for part, kept, importance in zip(weight.split(list(parts), 1), *blocks_of, strict=True)
        ]  # fmt: skip
        return _side_by_side(grids, parts)
    low, high = _code_range(bits, symmetric, narrow)
    shape = _scale_shape(weight, granularity)
    if scale not in ("absmax", "mse", "power_of_two"):
        raise SettingsError(f'scale {scale!r} is unknown; use "absmax", "mse" or "power_of_two"')
    if not weight.isfinite().all():
        raise SettingsError("the weight holds NaN or infinity; repair the model before compressing it")
    kept = weight if mask is None else weight.where(mask, 0.0)
    blocks = kept.detach().to(torch.promote_types(weight.dtype, torch.float32)).reshape(*shape, -1)
    least, most = blocks.amin(-1).clamp(max=0.0), blocks.amax(-1).clamp(min=0.0)
    step = torch.maximum(most / high, least / low) if symmetric else (most - least) / high
    step = step.where(step > SMALLEST_SCALE, 1.0)
    if scale == "power_of_two":
        step = _next_power_of_two(step)
    zero_point = torch.zeros_like(step) if symmetric else (-least / step).round()
    if scale == "mse":
        importance = None
        if hessian_diag is not None:
            importance = hessian_diag.to(blocks).expand(weight.shape).reshape(blocks.shape)
        step = _least_error_scale(*_without_zeros(blocks, importance), step, zero_point, (low, high))
    return Grid(step, zero_point.to(torch.int32), bits, symmetric, narrow, power_of_two=scale == "power_of_two")


def round_to_nearest(weight: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
    """The grid value nearest to each weight (rows, columns), exactly 0 where ``mask`` is False; in the weight's dtype.

    >>> grid = make_grid(torch.tensor([[1.0, -0.4, 0.1]]), bits=2, scale="absmax")
    >>> round_to_nearest(torch.tensor([[1.0, -0.6, 0.1]]), grid).tolist()
    [[1.0, -1.0, 0.0]]

    Raises:
        SettingsError: the grid was made for another number of columns.
    """
    rounded = grid.round(weight)
    return rounded if mask is None else rounded.where(mask, 0.0)


def _side_by_side(grids: list[Grid], parts: Sequence[int]) -> Grid:
    widths = [
        (columns // grid.scale.shape[1],) * grid.scale.shape[1] for grid, columns in zip(grids, parts, strict=True)
    ]
    return replace(
        grids[0],
        scale=torch.cat([grid.scale for grid in grids], 1),
        zero_point=torch.cat([grid.zero_point for grid in grids], 1),
        widths=tuple(chain(*widths)),
    )


def _code_range(bits: int, symmetric: bool, narrow: bool) -> tuple[int, int]:
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SettingsError(f"bits={bits}: a grid has 2 to 8 bits, a whole number")
    if not symmetric:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def _scale_shape(weight: Tensor, granularity: str) -> tuple[int, int]:
    rows, columns = weight.shape
    kind, _, size = granularity.partition(":")
    if granularity == "tensor":
        return 1, 1
    if granularity == "channel":
        return rows, 1
    if kind != "group" or not size.isdecimal() or int(size) == 0:
        raise SettingsError(f'granularity {granularity!r} is unknown; use "tensor", "channel" or "group:32"')
    if columns % int(size):
        raise SettingsError(f"granularity {granularity!r}: {size} does not divide {columns} columns; use a divisor")
    return rows, columns // int(size)


def _next_power_of_two(scale: Tensor) -> Tensor:
    # By mantissa and exponent, because log2 of a number just above a power of two may round down to it.
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))


def _without_zeros(blocks: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Wide blocks (R, G, n) without most of their zeros, which no scale rounds with an error; importance likewise."""
    present = blocks != 0
    most = int(present.sum(-1).max()) if blocks.shape[-1] > SPARSE_COLUMNS else blocks.shape[-1]
    if most > blocks.shape[-1] // 2:
        return blocks, importance
    places = (~present).to(torch.uint8).argsort(dim=-1, stable=True)[..., : max(1, most)]
    return blocks.gather(-1, places), None if importance is None else importance.gather(-1, places)


def _least_error_scale(
    blocks: Tensor, importance: Tensor | None, start: Tensor, zero_point: Tensor, code_range: tuple[int, int]
) -> Tensor:
    """The scale (R, G) of least squared error for ``blocks`` (R, G, n), at fixed zero points.

    Each shrunk scale gives codes, and the scale that fits these codes best is ``sum(codes * w) / sum(codes^2)``.
    """
    offset = zero_point[..., None]

    def total(values: Tensor) -> Tensor:
        return values.sum(-1) if importance is None else (values * importance).sum(-1)

    def codes(scale: Tensor) -> Tensor:
        return ((blocks / scale[..., None]).round() + offset).clamp(*code_range) - offset

    def error(scale: Tensor) -> Tensor:
        return total((blocks - codes(scale) * scale[..., None]).square())

    best, least = start, error(start)
    for factor in SHRINK_FACTORS:
        fixed = codes(start * factor)
        fitted = total(fixed * blocks) / total(fixed.square())
        fitted = fitted.where(fitted > SMALLEST_SCALE, start)  # 0 / 0 where every code is zero
        reached = error(fitted)
        best, least = fitted.where(reached < least, best), torch.minimum(reached, least)
    return best
