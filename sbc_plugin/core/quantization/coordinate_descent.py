"""Coordinate descent on the codes of a quantised weight: an exact improvement of what one pass of GPTQ leaves.

GPTQ never looks back: a column is rounded before the errors of later columns are known. Here every code is chosen
again, given all the others, until none changes any more. Source: docs/theory.md, equation 8.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import SettingsError

FOLLOWED = 512  # from more columns on, and in float64, the gradient follows the codes through all sweeps


def descend(
    weight: Tensor,
    start: Tensor,
    hessian: LayerHessian,
    grid: Grid,
    mask: Tensor | None = None,
    *,
    sweeps: int = 20,
    block: int = 128,
) -> Solution:
    """Choose codes one at a time, each the best given the others, column after column and again from the start.

    With ``g = (w - q) H`` the best value of weight j alone is the grid point nearest to ``q_j + g_j / H_jj``, because
    the loss is a parabola in it; so no step raises a row's damped loss. Dead columns stay as they are.

    Args:
        weight: (rows, columns), before quantisation.
        start: (rows, columns), on the grid and zero where masked, e.g. of
            :func:`~sbc_plugin.core.quantization.gptq.gptq`.
        hessian: of the layer; if damped as for the solver of ``start``, the damped loss never rises above its.
        grid: of ``start``; its scales stay.
        mask: (rows, columns), True = kept; the others stay 0. None keeps all.
        sweeps: the most visits to each column; a row is done once a sweep has changed nothing in it.
        block: columns whose effect on all others is applied in one matrix product; changes speed only.

    Returns:
        The weight on the grid, in the dtype of ``weight``; its mask; its loss on the undamped Hessian.

    Raises:
        SettingsError: sweeps or block out of range, or the grid does not fit the weight.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), LayerHessian(torch.tensor([[2.0, 1.9], [1.9, 2.0]]))
    >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), bits=4, symmetric=True)
    >>> descend(weight, torch.tensor([[1.0, 1.0]]), hessian, grid).weight.tolist()  # the first makes up for the second
    [[0.0, 1.0]]
    """
    if sweeps < 0 or block < 1:
        raise SettingsError(f"sweeps={sweeps}, block={block}: sweeps cannot be negative, and a block has a column")
    rows, columns = weight.shape
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(weight.device, torch.bool)
    target, codes = weight.detach().to(hessian.matrix), grid.codes(start).to(hessian.matrix)
    scale, zero_point = (part.to(codes).expand(rows, columns) for part in grid.of_columns(columns))
    owner = hessian.owner(rows)
    for group, own in enumerate(hessian.each()):
        matrix, movable = own.damped(), kept.to(codes.device) & ~own.dead
        moving = (owner == group).nonzero()[:, 0]  # the rows in which the last sweep changed something
        before, part = codes[moving], _Part(target, scale, zero_point, movable).of(moving)
        gradient = part.gradient(before, matrix)
        for sweep in range(sweeps):
            if sweep and not _is_followed(
                matrix
            ):  # computed afresh, so that rounding errors of the updates do not pile up
                gradient = part.gradient(before, matrix)
            after = _sweep(before, part, matrix, gradient, grid.code_range, block)
            codes[moving] = after
            moved = (after != before).any(1)
            if not moved.any():
                break
            if not moved.all():
                moving, after, part, gradient = moving[moved], after[moved], part.of(moved), gradient[moved]
            before = after
    new = grid.dequantise(codes.to(grid.scale.device, torch.int32)).to(weight)
    return Solution(weight=new, mask=kept, loss=hessian.loss(target, new), grid=grid)


class _Part(NamedTuple):
    """What stays while the codes of some rows move, each (rows, columns)."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    movable: Tensor

    def of(self, rows: Tensor) -> "_Part":
        """These rows."""
        return _Part(*(tensor[rows] for tensor in self))

    def gradient(self, codes: Tensor, hessian: Tensor) -> Tensor:
        """``(w - q) H`` for these codes, (rows, columns)."""
        return (self.weight - (codes - self.zero_point) * self.scale) @ hessian


class _Block(NamedTuple):
    """What the visit to a block of columns works on, each (rows, columns)."""

    codes: Tensor
    values: Tensor  # of the codes, where their turn is still to come
    gradient: Tensor  # (w - q) H for the codes as they are now
    scale: Tensor
    zero_point: Tensor
    movable: Tensor  # of the codes that may move, those whose turn is still to come


def _is_followed(hessian: Tensor) -> bool:
    """Whether the gradient is updated from sweep to sweep; few columns are multiplied afresh in no time."""
    return len(hessian) > FOLLOWED and hessian.dtype == torch.float64


def _sweep(
    codes: Tensor, part: _Part, hessian: Tensor, gradient: Tensor, code_range: tuple[int, int], block: int
) -> Tensor:
    """New codes (rows, columns) after one visit to each column, block after block.

    Args:
        codes: (rows, columns), before.
        part: what stays.
        hessian: (columns, columns), damped.
        gradient: (rows, columns), for ``codes``. It is overwritten by that for the new codes, in the columns that are
            still to be visited or, if it is followed, in all.
        code_range: smallest and largest code.
        block: columns of a block.
    """
    _, scale, zero_point, movable = part
    values, new = (codes - zero_point) * scale, codes.clone()
    for first in range(0, codes.shape[1], block):
        last = min(first + block, codes.shape[1])
        seen = _Block(*(x[:, first:last] for x in (codes, values, gradient, scale, zero_point, movable)))
        new[:, first:last] = _visit(seen, hessian[first:last, first:last], code_range)
        moves = (new[:, first:last] - codes[:, first:last]) * scale[:, first:last]
        if not _is_followed(hessian):
            gradient[:, last:].addmm_(moves, hessian[first:last, last:], alpha=-1.0)
            continue
        rows = moves.any(1).nonzero()[:, 0]  # late sweeps move few codes
        gradient.index_add_(0, rows, moves[rows] @ hessian[first:last], alpha=-1.0)
    return new


def _visit(block: _Block, hessian: Tensor, code_range: tuple[int, int]) -> Tensor:
    """New codes (rows, columns) of a block of columns, each visited once, in order.

    A code that stays changes nothing for those behind it, so each row goes straight to its next code that moves.

    Args:
        block: the codes and what they depend on.
        hessian: of these columns.
        code_range: smallest and largest code.
    """
    new, rows = block.codes.clone(), torch.arange(len(block.codes), device=block.codes.device)
    place = torch.arange(block.codes.shape[1], device=block.codes.device)
    while True:
        codes, values, gradient, scale, zero_point, movable = block
        # 1. The best code at every place, given all the others (equation 8), and the first place of each row where it
        #    is another than now.
        best = (values + gradient / hessian.diagonal()).div_(scale).round_().add_(zero_point).clamp_(*code_range)
        moves, at = ((best != codes) & movable).max(1)
        # 2. Rows without such a place are done. They are stored and dropped once they are half.
        count = int(moves.sum())
        if count <= len(rows) // 2:
            new[rows] = codes
            if not count:
                return new
            rows, at, best = rows[moves], at[moves], best[moves]
            codes, values, gradient, scale, zero_point, movable = (tensor[moves] for tensor in block)
            moves = moves[moves]
        # 3. One code of each row moves; the gradient follows, and what lies before it stays from now on.
        at = at[:, None]
        old = codes.gather(1, at)
        code = best.gather(1, at).where(moves[:, None], old)
        step = (code - old) * scale.gather(1, at)
        gradient = torch.addcmul(gradient, hessian[at[:, 0]], step, value=-1.0)
        block = _Block(codes.scatter(1, at, code), values, gradient, scale, zero_point, movable & (place > at))
