"""Coordinate descent on the codes of a quantised weight: an exact improvement of what one pass of GPTQ leaves.

GPTQ never looks back: a column is rounded before the errors of later columns are known. Here every code is chosen
again, given all the others, until none changes. Source: docs/theory.md, equation 8.
"""

import torch
from torch import Tensor

from sbc_plugin.core.grids import Grid
from sbc_plugin.core.hessian import Solution, damped, layer_loss, row_groups
from sbc_plugin.errors import SettingsError


def descend(
    weight: Tensor,
    start: Tensor,
    hessian: Tensor,
    grid: Grid,
    mask: Tensor | None = None,
    *,
    damping: float = 0.01,
    groups: Tensor | None = None,
    sweeps: int = 20,
    block: int = 128,
) -> Solution:
    """Choose codes one at a time, each the best given the others, column after column and again from the start.

    With ``g = (w - q) H`` the best value of weight j alone is the grid point nearest to ``q_j + g_j / H_jj``, for the
    loss is a parabola in it; so no step raises a row's damped loss. A column with ``H_jj = 0`` stays as it is.

    Args:
        weight: (rows, columns), before quantisation.
        start: (rows, columns), on the grid and zero where masked, e.g. of :func:`~sbc_plugin.core.quantization.gptq`.
        hessian: (columns, columns) or (groups, columns, columns), undamped; its dtype is computed in.
        grid: of ``start``; its scales stay.
        mask: (rows, columns), True = kept; the others stay 0. None keeps all.
        damping: fraction of mean diag H added to the diagonal; with that of ``start``'s solver its loss never rises.
        groups: (rows,), the Hessian of each row; by default rows are dealt evenly.
        sweeps: the most visits to each column; a row is left alone once a sweep has changed nothing in it.
        block: columns whose effect on all others is brought up to date in one matrix product; changes speed only.

    Returns:
        The weight on the grid, in the dtype of ``weight``; its mask; its loss on the undamped Hessian.

    Raises:
        SettingsError: sweeps or block out of range, or the grid does not fit the weight.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), bits=4, symmetric=True)
    >>> descend(weight, torch.tensor([[1.0, 1.0]]), hessian, grid).weight.tolist()  # the first makes up for the second
    [[0.0, 1.0]]
    """
    if sweeps < 0 or block < 1:
        raise SettingsError(f"sweeps={sweeps}, block={block}: sweeps cannot be negative, and a block has a column")
    rows, columns = weight.shape
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device, torch.bool)
    target, codes = weight.detach().to(hessian), grid.codes(start).to(hessian)
    scale, zero_point = (part.to(hessian).expand(rows, columns) for part in grid.of_columns(columns))
    owner = row_groups(rows, hessian, groups)
    for group, undamped in enumerate(hessian if hessian.dim() == 3 else hessian[None]):
        matrix = damped(undamped, damping)
        moving = (owner == group).nonzero()[:, 0]
        for _ in range(sweeps):
            if not len(moving):
                break
            # Transposed, for a column of the weight is then contiguous.
            part = tuple(tensor[moving].T.contiguous() for tensor in (target, scale, zero_point, kept.to(codes.device)))
            before = codes[moving].T
            after = _sweep(part, before.contiguous(), matrix, undamped.diagonal() != 0, grid.code_range, block)
            codes[moving] = after.T
            moving = moving[(after != before).any(0)]
    new = grid.dequantise(codes.to(grid.scale.device, torch.int32)).to(weight)
    return Solution(weight=new, mask=kept, loss=layer_loss(target, new.to(hessian), hessian, groups), grid=grid)


def _sweep(
    part: tuple[Tensor, ...], codes: Tensor, hessian: Tensor, live: Tensor, code_range: tuple[int, int], block: int
) -> Tensor:
    """New codes (columns, rows) after one visit to each live column; ``part`` is weight, scale, zero point, kept."""
    weight, scale, zero_point, kept = part
    codes = codes.clone()
    values = (codes - zero_point) * scale
    # Afresh in each sweep, so that rounding errors of the updates do not pile up.
    gradient = hessian @ (weight - values)
    for first in range(0, len(codes), block):
        last = min(first + block, len(codes))
        inside = hessian[first:last, first:last]
        near = gradient[first:last].clone()
        moves = torch.zeros_like(near)
        for column in live[first:last].nonzero()[:, 0].tolist():
            at = first + column
            wanted = values[at] + near[column] / hessian[at, at]
            code = ((wanted / scale[at]).round() + zero_point[at]).clamp(*code_range).where(kept[at], codes[at])
            moves[column] = (code - codes[at]) * scale[at]
            near.addr_(inside[column], moves[column], alpha=-1.0)
            codes[at] = code
        gradient[last:].addmm_(hessian[last:, first:last], moves, alpha=-1.0)
    return codes
