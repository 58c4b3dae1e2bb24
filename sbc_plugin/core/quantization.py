"""GPTQ on a layer Hessian: columns are rounded one after the other, each error is pushed to the columns still free.

With a mask, masked weights become exactly zero in the same pass (joint pruning and quantisation). Grids are made in
:mod:`sbc_plugin.core.grids`.

Source: docs/theory.md, equations 3 to 5; Frantar et al. 2022, "GPTQ", arXiv 2210.17323.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sbc_plugin.core.grids import SMALLEST_SCALE, Grid, make_grid, round_to_nearest
from sbc_plugin.core.hessian import Solution, cholesky, damped, layer_loss, row_groups
from sbc_plugin.errors import CalibrationError, SettingsError

__all__ = ["Grid", "gptq", "make_grid", "refit_scale", "round_to_nearest"]


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    mask: Tensor | None = None,
    *,
    damping: float = 0.01,
    groups: Tensor | None = None,
    block: int = 128,
    order: str = "descending",
) -> Solution:
    """Round ``weight`` to ``grid`` column by column so that the layer's output stays close.

    Column j's error ``e = (w_j - q_j) / U_jj`` changes the columns k > j by ``- e U_jk``, where ``H^-1 = U^T U`` with U
    upper triangular. A column with ``H_jj = 0`` (an input that never spikes in calibration) is rounded to nearest.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns) or (groups, columns, columns), undamped; its dtype is computed in.
        grid: of this weight; its scales stay with their columns, whatever the order.
        mask: (rows, columns), True = kept; the others become 0 and their error is pushed as well. None keeps all.
            Refit the weight on its mask first and make the grid from that: this pass then makes up for rounding alone.
        damping: fraction of mean diag H added to the diagonal.
        groups: (rows,), the Hessian of each row; by default rows are dealt evenly.
        block: columns whose updates to all later columns are done in one matrix product; changes speed only.
        order: "descending" takes the columns with the largest H_jj first, "given" from left to right.

    Returns:
        The weight on the grid, in the dtype of ``weight``; its mask; its loss on the undamped Hessian.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: order or block out of range, or the grid does not fit the weight.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), bits=4, symmetric=True)
    >>> gptq(weight, hessian, grid).weight.tolist()  # the second input makes up for the first
    [[1.0, 0.0]]
    """
    rows, columns = weight.shape
    _check_width(hessian, columns)
    if order not in ("descending", "given"):
        raise SettingsError(f'order {order!r} is unknown; use "descending" or "given"')
    if block < 1:
        raise SettingsError(f"block={block}: at least one column is needed")
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device, torch.bool)
    start, allowed = weight.detach().to(hessian), kept.to(hessian.device)
    scale, zero_point = (part.to(hessian).expand(rows, columns) for part in grid.of_columns(columns))
    codes = torch.empty_like(start)
    owner = row_groups(rows, hessian, groups)
    for group, undamped in enumerate(hessian if hessian.dim() == 3 else hessian[None]):
        mine = (owner == group).nonzero()
        diagonal = undamped.diagonal()
        sequence = torch.arange(columns, device=hessian.device)
        if order == "descending":
            sequence = diagonal.argsort(descending=True, stable=True)
        live = sequence[diagonal[sequence] != 0]
        silent = sequence[diagonal[sequence] == 0]
        for chosen, factor in ((live, _push_factor(damped(undamped, damping), live, damping)), (silent, None)):
            # Transposed, for a column of the weight is then contiguous.
            part = tuple(tensor[mine, chosen].T.contiguous() for tensor in (start, scale, zero_point, allowed))
            codes[mine, chosen] = _round_columns(part, grid.code_range, factor, block).T
    new = grid.dequantise(codes.to(grid.scale.device, torch.int32)).to(weight)
    return Solution(weight=new, mask=kept, loss=layer_loss(start, new.to(hessian), hessian, groups), grid=grid)


def refit_scale(weight: Tensor, codes: Tensor, hessian: Tensor, grid: Grid, groups: Tensor | None = None) -> Grid:
    """The grid whose scales minimise the layer's loss while the codes stay: ``s_r = (c H w^T) / (c H c^T)``.

    Args:
        weight: (rows, columns), the weight before quantisation.
        codes: (rows, columns), integer codes on ``grid``.
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        grid: one scale for the tensor (then numerator and denominator are summed over rows) or one a row.
        groups: (rows,), the Hessian of each row; by default rows are dealt evenly.

    Returns:
        The grid with new scales; a scale stays where the codes have no output or the best scale is not positive.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: scales of column groups, or scales that have to stay powers of two.

    >>> grid = make_grid(torch.tensor([[1.0, 0.8]]), bits=2, scale="absmax")
    >>> refit_scale(torch.tensor([[1.0, 0.8]]), torch.tensor([[1, 1]]), torch.eye(2), grid).scale.tolist()
    [[0.8999999761581421]]
    """
    _check_width(hessian, weight.shape[1])
    if grid.power_of_two:
        raise SettingsError(
            'a refitted scale is no power of two; make the grid with scale="mse" or "absmax", or do not refit'
        )
    if grid.scale.shape[1] > 1:
        raise SettingsError(f"the grid has {grid.scale.shape[1]} scales a row, a refit takes one; do not refit")
    levels = (codes - grid.zero_point).to(hessian)
    pushed = torch.empty_like(levels)
    owner = row_groups(len(weight), hessian, groups)
    for group, part in enumerate(hessian if hessian.dim() == 3 else hessian[None]):
        pushed[owner == group] = levels[owner == group] @ part
    along = (pushed * weight.detach().to(hessian)).sum(1, keepdim=True)
    norm = (pushed * levels).sum(1, keepdim=True)
    if len(grid.scale) == 1:
        along, norm = along.sum(0, keepdim=True), norm.sum(0, keepdim=True)
    scale = (along / norm).to(grid.scale)
    return replace(grid, scale=scale.where(scale.isfinite() & (scale > SMALLEST_SCALE), grid.scale))


def _check_width(hessian: Tensor, columns: int) -> None:
    if hessian.shape[-1] != columns:
        found = f"Hessian has {hessian.shape[-1]} columns, weight has {columns}"
        raise CalibrationError(f"{found}; calibrate again after changing the model")


def _push_factor(hessian: Tensor, columns: Tensor, damping: float) -> Tensor:
    """Upper triangular U with ``U^T U = H^-1`` of these columns in this order."""
    backwards = columns.flip(0)
    # The Cholesky factor of the reversed matrix, reversed, is R with H = R R^T and R upper triangular: U = R^-1.
    upper = cholesky(hessian[backwards[:, None], backwards], damping).flip(0, 1)
    eye = torch.eye(len(columns), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
    return factor


def _round_columns(part: tuple[Tensor, ...], code_range: tuple[int, int], factor: Tensor | None, block: int) -> Tensor:
    """Codes of weight, scale, zero point, kept, each (columns, rows); errors go down by ``factor``, or nowhere."""
    weight, scale, zero_point, kept = part
    if factor is None:
        nearest = ((weight / scale).round() + zero_point).clamp(*code_range)
        return nearest.where(kept, zero_point)
    weight = weight.clone()
    codes, errors = torch.empty_like(weight), torch.empty_like(weight[:block])
    pivots = factor.diagonal().tolist()
    shifted, masked = bool(zero_point.any()), not bool(kept.all())
    for first in range(0, len(weight), block):
        last = min(first + block, len(weight))
        for column in range(first, last):
            value, step, code, error = weight[column], scale[column], codes[column], errors[column - first]
            torch.div(value, step, out=code).round_()
            if shifted:
                code.add_(zero_point[column])
            code.clamp_(*code_range)
            if masked:
                code.copy_(code.where(kept[column], zero_point[column]))
            torch.mul(code - zero_point[column] if shifted else code, step, out=error)
            torch.sub(value, error, out=error).div_(pivots[column])
            weight[column + 1 : last].addr_(factor[column, column + 1 : last], error, alpha=-1.0)
        weight[last:].addmm_(factor[first:last, last:].T, errors[: last - first], alpha=-1.0)
    return codes
