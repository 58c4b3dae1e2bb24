"""One layer's pruning problem as the solvers see it: damped, in pattern order, without what costs nothing to remove.

A column whose ``H_jj`` is 0 (an input that never spikes in calibration) costs nothing to remove, nor does a weight that
is 0 already (a forbidden self-connection, an earlier pruning). So these are given up first, the smallest first when the
budget is smaller than their number, and the rest of the budget is left to the solver. Removing them moves no other
weight: ``H`` is positive semidefinite, so a dead column's row is 0.
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
    """What is left for a solver once dead columns are dealt with.

    Attributes:
        weight: (rows, columns), 0 on dead columns.
        hessian: (groups, columns, columns), damped, positive definite on dead columns.
        owner: (rows,), the Hessian of each row.
        live: (rows, columns), True where the solver may remove a weight; all of a block or nothing.
        zeros: how many of them it has to remove.
        pattern: groups and blocks are contiguous columns.
        columns: (columns,), where each column is in the layer.
        removed: (rows, all columns of the layer), weights on dead columns that are given up.
        damping: the fraction of the mean diagonal that ``hessian`` contains.
    """

    weight: Tensor
    hessian: Tensor
    owner: Tensor
    live: Tensor
    zeros: int
    pattern: Pattern
    columns: Tensor
    removed: Tensor
    damping: float

    @property
    def capacity(self) -> Tensor:
        """How many live weights each group of N:M can still give, (rows, columns // M)."""
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
    """Damp, order columns by pattern, and give up weights on dead columns.

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
    check_shapes(weight, hessian)
    parsed = parse_pattern(pattern)
    rows, columns = weight.shape
    check_pattern(parsed, columns, positions)
    check_zeros(zeros, rows, columns, parsed)
    zeros = pattern_zeros(parsed, rows, columns, zeros)
    owner = hessian.owner(rows)
    whole, live = hessian.positive_definite(), ~hessian.dead
    order = pattern_order(parsed, columns, positions, whole.device)
    weight = weight.to(whole)[:, order]
    evidence = live[:, order][owner] & (weight != 0)
    removable = evidence
    if parsed.kind == "block":
        removable = evidence.view(rows, -1, parsed.size).any(-1).repeat_interleave(parsed.size, dim=1)
    given_up, zeros = give_up(weight, removable, zeros, parsed)
    removed = torch.empty_like(given_up)
    removed[:, order] = given_up
    if parsed.kind == "unstructured":
        order = live.any(0).nonzero()[:, 0]
        weight, evidence, removable = weight[:, order], evidence[:, order], removable[:, order]
    if not torch.equal(order, torch.arange(columns, device=order.device)):
        whole = whole[:, order[:, None], order]
    return Problem(weight * evidence, whole, owner, removable, zeros, parsed, order, removed, hessian.damping)


def give_up(weight: Tensor, live: Tensor, zeros: int, pattern: Pattern) -> tuple[Tensor, int]:
    """Weights on dead columns to remove first, (rows, columns), and the zeros left to find among the live ones."""
    rows = len(weight)
    cost = torch.where(live, float("inf"), weight.abs())
    if pattern.kind == "n:m":
        cost, dead = cost.view(rows, -1, pattern.size), ~live.view(rows, -1, pattern.size)
        removed = (dead & (ranks(cost) < pattern.size - pattern.kept)).view(live.shape)
    else:
        cost = cost.view(rows, -1, pattern.size).amax(-1)
        count = min(zeros // pattern.size, int(cost.isfinite().sum()))
        removed = smallest(cost, count)[..., None].expand(-1, -1, pattern.size).reshape(live.shape)
    return removed, zeros - int(removed.sum())
