"""GPTQ for values that no :class:`~sbc_plugin.core.quantization.grids.Grid` describes: the caller rounds each column.

Small floating-point formats, or integers that a host rounds by a rule of its own, take the same path as integers do,
one column after the other, only slower.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.gptq import check_problem, row_groups

RoundColumn: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


def gptq_by_columns(
    weight: Tensor,
    hessian: LayerHessian,
    round_column: RoundColumn,
    mask: Tensor | None = None,
    *,
    order: str = "descending",
) -> Tensor:
    """Round ``weight`` column by column as :func:`~sbc_plugin.core.quantization.gptq.gptq` does, by a function.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        round_column: ``round_column(current, rows, column)`` gives the allowed values (n,) that the weights of these
            rows (n,) in this column turn into. ``current`` (rows, columns) is the weight as it is now: columns that
            were rounded, and others with the errors that were pushed to them.
        mask: (rows, columns), True = kept; the others become 0 and their error is pushed as well. None keeps all.
        order: "descending" takes the columns with the largest H_jj first, "given" from left to right.

    Returns:
        The rounded weight, in the dtype of ``weight``.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: the order is unknown.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), LayerHessian(torch.tensor([[2.0, 1.9], [1.9, 2.0]]))
    >>> gptq_by_columns(weight, hessian, lambda current, rows, column: current[rows, column].round()).tolist()
    [[1.0, 0.0]]
    """
    rows, columns = weight.shape
    check_problem(columns, hessian, order)
    result = weight.detach().to(hessian.matrix, copy=True)
    kept = torch.ones_like(result, dtype=torch.bool) if mask is None else mask.to(result.device, torch.bool)

    def rounded(own: Tensor, column: int) -> Tensor:
        return round_column(result, own, column).to(result).where(kept[own, column], 0.0)

    for mine, solved, dead, factor in row_groups(rows, hessian, order):
        own = mine[:, 0]
        # Row p of V^-1 holds what one unit of error in column p takes from the columns that are still to come.
        unit = torch.eye(len(solved), dtype=factor.dtype, device=factor.device)
        push = torch.linalg.solve_triangular(factor, unit, upper=False, unitriangular=True)
        for position in range(len(solved) - 1, -1, -1):
            column = int(solved[position])
            new = rounded(own, column)
            error = result[own, column] - new
            result[own, column] = new
            result[mine, solved[:position]] -= error[:, None] * push[position, :position]
        for column in dead.tolist():
            result[own, column] = rounded(own, column)
    return result.to(weight)
