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
        round_column: ``round_column(values, rows, column)`` gives the allowed values (n,) that the wanted ones (n,) of
            these rows (n,) turn into in this column. It may depend on row and column, not on other columns.
        mask: (rows, columns), True = kept; the others become 0 and their error is pushed as well. None keeps all.
        order: "descending" takes the columns with the largest H_jj first, "given" from left to right.

    Returns:
        The rounded weight, in the dtype of ``weight``.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: the order is unknown.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> weight, hessian = torch.tensor([[0.6, 0.6]]), LayerHessian(torch.tensor([[2.0, 1.9], [1.9, 2.0]]))
    >>> gptq_by_columns(weight, hessian, lambda values, rows, column: values.round()).tolist()
    [[1.0, 0.0]]
    """
    rows, columns = weight.shape
    check_problem(columns, hessian, order)
    start = weight.detach().to(hessian.matrix)
    kept = torch.ones_like(start, dtype=torch.bool) if mask is None else mask.to(start.device, torch.bool)
    result = start.clone()
    for mine, solved, dead, factor in row_groups(rows, hessian, order):
        own = mine[:, 0]
        errors = start.new_zeros(len(solved), len(own))
        for position in range(len(solved) - 1, -1, -1):
            column, behind = int(solved[position]), position + 1
            wanted = start[own, column] + errors[behind:].T @ factor[behind:, position]
            rounded = round_column(wanted, own, column).to(start)
            result[own, column] = rounded.where(kept[own, column], 0.0)
            errors[position] = start[own, column] - result[own, column]
        for column in dead.tolist():
            rounded = round_column(start[own, column], own, column).to(start)
            result[own, column] = rounded.where(kept[own, column], 0.0)
    return result.to(weight)
