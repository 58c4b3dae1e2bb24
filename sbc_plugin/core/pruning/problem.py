"""One layer's pruning problem as the solvers see it: damped, in pattern order, without what costs nothing to remove.

A weight on a dead column (``H_jj = 0``: an input that never spikes in calibration) costs nothing to remove, nor does a
weight that is 0 already (a forbidden self-connection, an earlier pruning). So these are given up first, the smallest
first if the budget is smaller than their number, and the rest of the budget is left to the solver. Removing them moves
no other weight: ``H`` is positive semidefinite, so the row of a dead column is 0 too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.patterns import (
    Pattern,
    check_pattern,
    parse_pattern,
    pattern_order,
    pattern_zeros,
    ranks,
    smallest,
)
from sbc_plugin.errors import CalibrationError, SettingsError


@dataclass(frozen=True)
class Problem:
    """What is left for a solver once the weights that cost nothing are given up.

    Attributes:
        weight: (rows, columns), 0 on dead columns.
        hessian: (groups, columns, columns), damped, with 1 on the diagonal of dead columns.
        owner: (rows,), the Hessian of each row.
        candidates: (rows, columns), True where the solver may remove a weight; a whole block or nothing of it.
        zeros: how many of them the solver has to remove.
        pattern: its groups or blocks are contiguous columns here.
        columns: (columns,), the place of each column in the layer.
        removed: (rows, all columns of the layer), the weights that are given up already.
        damping: the fraction of the mean diagonal that ``hessian`` contains.
    """

    weight: Tensor
    hessian: Tensor
    owner: Tensor
    candidates: Tensor
    zeros: int
    pattern: Pattern
    columns: Tensor
    removed: Tensor
    damping: float

    @property
    def capacity(self) -> Tensor:
        """How many weights each group of N:M has still to give, (rows, columns // M)."""
        taken = self.removed[:, self.columns].view(len(self.weight), -1, self.pattern.size).sum(-1)
        return self.pattern.size - self.pattern.kept - taken

    def mask(self, removed: Tensor) -> Tensor:
        """The layer's mask (rows, all columns), True = kept, from what a solver removed, (rows, columns)."""
        whole = self.removed.clone()
        whole[:, self.columns] |= removed
        return ~whole


def check_shapes(weight: Tensor, hessian: LayerHessian) -> None:
    """Make sure that ``hessian`` belongs to ``weight`` (rows, columns).

    Raises:
        CalibrationError: it does not, or the weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    if hessian.matrix.dim() not in (2, 3) or hessian.matrix.shape[-2:] != (columns, columns):
        found = tuple(hessian.matrix.shape)
        raise CalibrationError(
            f"the weight has {columns} columns, its Hessian has shape {found}; calibrate again after changing the model"
        )
    if not weight.isfinite().all():
        raise CalibrationError(f"the weight ({rows} x {columns}) holds NaN or infinity; repair the model first")


def check_zeros(zeros: int, rows: int, columns: int, pattern: Pattern) -> None:
    """Make sure that a mask of (rows, columns) under ``pattern`` can have ``zeros`` zeros.

    Raises:
        SettingsError: there are fewer weights, or N:M implies another number.
    """
    if not 0 <= zeros <= rows * columns:
        raise SettingsError(f"{zeros} zeros asked for in a layer of {rows} x {columns} = {rows * columns} weights")
    possible = pattern_zeros(pattern, rows, columns, zeros)
    if pattern.kind == "n:m" and zeros != possible:
        raise SettingsError(
            f'pattern "{pattern}" has {possible} zeros in {rows} x {columns} weights, not the {zeros} asked for'
        )


def pose(
    weight: Tensor, hessian: LayerHessian, zeros: int, *, pattern: str = "unstructured", positions: int = 1
) -> Problem:
    """Damp, order the columns by the pattern, and give up the weights that cost nothing.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        zeros: zeros the layer shall have; blocks round it down, N:M fixes it.
        pattern: see :func:`sbc_plugin.core.pruning.patterns.parse_pattern`.
        positions: kernel positions, so that column = channel * positions + position.

    Raises:
        CalibrationError: weight and Hessian do not belong together.
        SettingsError: zeros, pattern, damping or ``row_groups`` do not fit the layer.
    """
    # 1. The request has to fit the layer.
    check_shapes(weight, hessian)
    parsed = parse_pattern(pattern)
    rows, columns = weight.shape
    check_pattern(parsed, columns, positions)
    check_zeros(zeros, rows, columns, parsed)
    zeros = pattern_zeros(parsed, rows, columns, zeros)
    # 2. Columns in the order of the pattern. The Hessian follows last, when its columns are known.
    owner, damped, dead = hessian.owner(rows), hessian.positive_definite(), hessian.dead
    order = pattern_order(parsed, columns, positions, damped.device)
    weight, dead = weight.to(damped)[:, order], dead[:, order]
    # 3. The weights whose removal costs something; of a block all if it costs anything.
    costly = ~dead[owner] & (weight != 0)
    candidates = costly
    if parsed.kind == "block":
        candidates = costly.view(rows, -1, parsed.size).any(-1).repeat_interleave(parsed.size, dim=1)
    # 4. The others are given up, as far as the budget and the pattern allow.
    given_up, zeros = give_up(weight, candidates, zeros, parsed)
    removed = torch.empty_like(given_up)
    removed[:, order] = given_up
    # 5. Columns that are dead for every row are left out; groups and blocks have to stay whole.
    if parsed.kind == "unstructured":
        order = (~dead).any(0).nonzero()[:, 0]
        weight, costly, candidates = weight[:, order], costly[:, order], candidates[:, order]
    if not torch.equal(order, torch.arange(columns, device=order.device)):
        damped = damped[:, order[:, None], order]
    return Problem(weight * costly, damped, owner, candidates, zeros, parsed, order, removed, hessian.damping)


def give_up(weight: Tensor, costly: Tensor, zeros: int, pattern: Pattern) -> tuple[Tensor, int]:
    """The weights that cost nothing and go first, (rows, columns), and how many zeros are left to find.

    Args:
        weight: (rows, columns), in pattern order.
        costly: (rows, columns), True where removing the weight costs something.
        zeros: of the layer.
        pattern: of the layer.
    """
    rows = len(weight)
    cost = torch.where(costly, float("inf"), weight.abs())
    if pattern.kind == "n:m":
        cost, cheap = cost.view(rows, -1, pattern.size), ~costly.view(rows, -1, pattern.size)
        removed = (cheap & (ranks(cost) < pattern.size - pattern.kept)).view(costly.shape)
    else:
        cost = cost.view(rows, -1, pattern.size).amax(-1)
        count = min(zeros // pattern.size, int(cost.isfinite().sum()))
        removed = smallest(cost, count)[..., None].expand(-1, -1, pattern.size).reshape(costly.shape)
    return removed, zeros - int(removed.sum())
