"""GPTQ: columns are rounded one after the other, and each error is pushed to the columns that are still to come.

With a mask, masked weights become exactly zero in the same pass (joint pruning and quantisation). Grids are made in
:mod:`sbc_plugin.core.quantization.grids`.

Source: docs/theory.md, equations 3 to 5; Frantar et al. 2022, "GPTQ", arXiv 2210.17323.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian, cholesky
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import CalibrationError, SettingsError


def gptq(
    weight: Tensor,
    hessian: LayerHessian,
    grid: Grid,
    mask: Tensor | None = None,
    *,
    block: int = 128,
    order: str = "descending",
) -> Tensor:
    """Round ``weight`` to ``grid`` column by column so that the layer's output stays close.

    Column j's error ``e = (w_j - q_j) / U_jj`` changes the columns k > j by ``- e U_jk``, where ``H^-1 = U^T U`` with U
    upper triangular. A dead column (``H_jj = 0``: an input that never spikes in calibration) is rounded to nearest.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        grid: of this weight; its scales stay with their columns, whatever the order.
        mask: (rows, columns), True = kept; the others become 0 and their error is pushed as well. None keeps all.
            Refit the weight on its mask first, and make the grid from that: this pass then corrects rounding alone.
        block: columns whose errors reach all later columns in one matrix product; changes speed only.
        order: "descending" takes the columns with the largest H_jj first, "given" from left to right.

    Returns:
        The weight on the grid, in the dtype of ``weight``.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: order or block out of range, or the grid does not fit the weight.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), LayerHessian(torch.tensor([[2.0, 1.9], [1.9, 2.0]]))
    >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), bits=4, symmetric=True)
    >>> gptq(weight, hessian, grid).tolist()  # the second input makes up for the first
    [[1.0, 0.0]]
    """
    rows, columns = weight.shape
    check_problem(columns, hessian, order)
    if block < 1:
        raise SettingsError(f"block={block}: at least one column is needed")
    start = weight.detach().to(hessian.matrix)
    scale, zero_point = (part.to(start).expand(rows, columns) for part in grid.of_columns(columns))
    whole = _Part(
        start,
        scale,
        zero_point if bool(grid.zero_point.any()) else None,
        None if mask is None or bool(mask.all()) else mask.to(start.device, torch.bool),
    )
    codes = torch.empty_like(start)
    for mine, solved, dead, factor in row_groups(rows, hessian, order):
        codes[mine, solved] = _round_columns(whole.of(mine, solved), grid.code_range, factor, block).T
        codes[mine, dead] = _round_columns(whole.of(mine, dead), grid.code_range, None, block).T
    return grid.dequantise(codes.to(grid.scale.device, torch.int32)).to(weight)


def check_problem(columns: int, hessian: LayerHessian, order: str) -> None:
    """Refuse a Hessian that does not fit a weight of so many columns, and an order that is unknown.

    Raises:
        CalibrationError: the Hessian is of another width.
        SettingsError: the order is neither "descending" nor "given".
    """
    if hessian.columns != columns:
        found = f"Hessian has {hessian.columns} columns, weight has {columns}"
        raise CalibrationError(f"{found}; calibrate again after changing the model")
    if order not in ("descending", "given"):
        raise SettingsError(f'order {order!r} is unknown; use "descending" or "given"')


class RowGroup(NamedTuple):
    """Rows that share a Hessian, and the order of their columns.

    Attributes:
        rows: (n, 1).
        solved: (m,), the columns that are active, the one to be rounded first at the end.
        dead: the other columns, whose input was 0 in every sample.
        factor: (m, m), lower triangular V with ``V D V^T = H``, damped, of ``solved``, with a diagonal of ones. What is
            best for column j, given the errors of the columns k > j, is ``w_j + sum_k V_kj (w_k - q_k)``: GPTQ's push
            of errors by ``H^-1``, without an inverse.
    """

    rows: Tensor
    solved: Tensor
    dead: Tensor
    factor: Tensor


def row_groups(rows: int, hessian: LayerHessian, order: str) -> Iterator[RowGroup]:
    """One group of a weight's rows after the other, with all that rounding needs of its Hessian.

    Raises:
        SingularHessianError: the damped Hessian is not positive definite.
        SettingsError: the rows cannot be dealt to the Hessians.
    """
    owner = hessian.owner(rows)
    for group, (undamped, dead) in enumerate(zip(hessian.groups, hessian.dead, strict=True)):
        sequence = torch.arange(hessian.columns, device=undamped.device)
        if order == "descending":
            sequence = undamped.diagonal().argsort(descending=True, stable=True)
        # The last column comes first, because the Cholesky factor then is the one that the solver needs.
        solved = sequence[~dead[sequence]].flip(0)
        factor = _push_factor(undamped, solved, hessian.damping)
        yield RowGroup((owner == group).nonzero(), solved, sequence[dead[sequence]], factor)


class _Part(NamedTuple):
    """What rounding needs of some weights: all tensors of one shape."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None  # None = 0
    kept: Tensor | None  # None = all

    def of(self, rows: Tensor, columns: Tensor) -> "_Part":
        """These rows (n, 1) and columns (m,), as (m, n): a column of the weight is then contiguous."""

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows, columns].T.contiguous()

        zero_point, kept = (None if tensor is None else taken(tensor) for tensor in (self.zero_point, self.kept))
        return _Part(taken(self.weight), taken(self.scale), zero_point, kept)


def _push_factor(undamped: Tensor, columns: Tensor, damping: float) -> Tensor:
    """Lower triangular V with ``V D V^T = H``, damped, of these columns in this order, and a diagonal of ones."""
    chosen = undamped.index_select(0, columns).index_select(1, columns)
    chosen.diagonal().add_(damping * undamped.diagonal().mean())
    lower = cholesky(chosen, damping)
    return lower.div_(lower.diagonal().clone())


def _round_columns(part: _Part, code_range: tuple[int, int], factor: Tensor | None, block: int) -> Tensor:
    """Codes (columns, rows) of a part (columns, rows), the last column first; without a factor nothing is pushed."""
    weight, scale, zero_point, kept = part
    wanted, codes, errors = weight.clone(), torch.empty_like(weight), torch.empty_like(weight[:block])
    for last in range(len(weight), 0, -block):
        first = max(0, last - block)
        for column in range(last - 1, first - 1, -1):
            value, step, code, error = wanted[column], scale[column], codes[column], errors[column - first]
            # 1. The errors of this block's columns behind; those of earlier blocks are in `wanted` already.
            if factor is not None:
                behind = column + 1
                value.addmv_(errors[behind - first : last - first].T, factor[behind:last, column])
            # 2. The nearest code, or that of 0 where the weight is masked.
            torch.div(value, step, out=code).round_()
            if zero_point is not None:
                code.add_(zero_point[column])
            code.clamp_(*code_range)
            if kept is not None:
                code.copy_(code.where(kept[column], 0.0 if zero_point is None else zero_point[column]))
            # 3. The error that the columns before this one have to make up for.
            level = code if zero_point is None else code - zero_point[column]
            torch.addcmul(weight[column], level, step, value=-1, out=error)
        # 4. The block's errors reach all columns before it in one product.
        if factor is not None:
            wanted[:first].addmm_(factor[first:last, :first].T, errors[: last - first])
    return codes
