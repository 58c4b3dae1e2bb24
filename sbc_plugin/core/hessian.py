"""The Hessian of a layer, ``H = 2 X^T X / count``, and what solvers ask of it.

Every solver works on rows of a weight ``(rows, columns)``. Rows that see the same filtered input share a Hessian; the
rows of a grouped convolution, or of neurons with different time constants, do not. So the matrix of a
:class:`LayerHessian` is ``(columns, columns)``, or ``(groups, columns, columns)`` together with the group of each row.

Source: docs/theory.md, equation 2 (arXiv 2506.03996).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError, SingularHessianError


@dataclass(frozen=True, eq=False)
class LayerHessian:
    """The Hessian of one layer as solvers take it: the matrix, whose rows it belongs to, and the damping.

    A column whose diagonal entry is 0 is *dead*: its input was 0 in every sample.

    Attributes:
        matrix: (columns, columns) or (groups, columns, columns), undamped; solvers compute in its dtype.
        row_groups: (rows,), the group of each row; None deals the rows evenly, as in a grouped convolution.
        damping: the fraction of the mean diagonal that :meth:`damped` adds to the diagonal.

    >>> hessian = LayerHessian(torch.diag(torch.tensor([1.0, 3.0])), damping=0.5)
    >>> hessian.damped().diagonal().tolist()
    [2.0, 4.0]
    """

    matrix: Tensor
    row_groups: Tensor | None = None
    damping: float = 0.01

    @property
    def columns(self) -> int:
        """Columns of the weight."""
        return self.matrix.shape[-1]

    @property
    def groups(self) -> Tensor:
        """The undamped matrices with their group axis, (groups, columns, columns); a view."""
        return self.matrix if self.matrix.dim() == 3 else self.matrix[None]

    @property
    def dead(self) -> Tensor:
        """True where the diagonal is 0, (groups, columns)."""
        return self.groups.diagonal(dim1=-2, dim2=-1) == 0

    def owner(self, rows: int) -> Tensor:
        """The group of each of the weight's rows, (rows,).

        >>> LayerHessian(torch.zeros(2, 3, 3)).owner(4).tolist()
        [0, 0, 1, 1]

        Raises:
            SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.
        """
        return owner_of_rows(rows, len(self.groups), self.row_groups, self.matrix.device)

    def dead_weights(self, rows: int) -> Tensor:
        """True where a weight reads a dead column of its row's group, (rows, columns).

        >>> LayerHessian(torch.diag(torch.tensor([2.0, 0.0]))).dead_weights(rows=1).tolist()
        [[False, True]]

        Raises:
            SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.
        """
        return self.dead[self.owner(rows)]

    def each(self) -> Iterator["LayerHessian"]:
        """Each group's Hessian alone, with a matrix (columns, columns)."""
        return (replace(self, matrix=matrix, row_groups=None) for matrix in self.groups)

    def damped(self) -> Tensor:
        """``H + damping * mean(diag H) * I``, shape of ``matrix``: a copy.

        Each group is damped by its own mean; a group whose columns are all dead takes the mean over all groups.
        """
        return _damped(self.matrix, self.damping)

    def positive_definite(self) -> Tensor:
        """The damped matrices (groups, columns, columns), with 1 on the diagonal of dead columns: a copy.

        Raises:
            SettingsError: the damping is negative or no number.
        """
        if not 0 <= self.damping < float("inf"):
            found = self.damping
            raise SettingsError(f"damping is {found}, expected a finite fraction of the mean diagonal, 0 or more")
        result = _damped(self.groups, self.damping)
        result.diagonal(dim1=-2, dim2=-1)[self.dead] = 1.0
        return result

    def cholesky(self) -> Tensor:
        """The lower Cholesky factor of :meth:`damped`.

        Raises:
            SingularHessianError: it is not positive definite, or holds NaN or infinity.
        """
        return cholesky(self.damped(), self.damping)

    def inverse(self) -> Tensor:
        """The inverse of :meth:`damped`.

        Raises:
            SingularHessianError: it is not positive definite, or holds NaN or infinity.
        """
        return inverse(self.damped(), self.damping)

    def quadratic(self, error: Tensor) -> Tensor:
        """``1/2 e_r^T H e_r`` of each row of ``error`` (rows, columns), undamped, (rows,).

        Source: docs/theory.md, equation 4.

        Raises:
            SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.
        """
        if self.matrix.dim() == 2:
            losses: Tensor = ((error @ self.matrix) * error).sum(-1) / 2
            return losses
        result = error.new_zeros(len(error))
        owner = self.owner(len(error))
        for group, matrix in enumerate(self.matrix):
            rows = owner == group
            result[rows] = ((error[rows] @ matrix) * error[rows]).sum(-1) / 2
        return result

    def loss(self, weight: Tensor, new: Tensor) -> float:
        """The relative loss of ``new`` in the place of ``weight``, both (rows, columns); undamped.

        ``tr(E H E^T) / tr(W H W^T)`` with ``E = W - W'``; 0 where ``W H = 0``.

        >>> LayerHessian(torch.eye(2)).loss(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
        0.5

        Raises:
            SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.
        """
        weight, new = weight.to(self.matrix), new.to(self.matrix)
        total = self.quadratic(weight).sum()
        return float(self.quadratic(weight - new).sum() / total) if total > 0 else 0.0


def owner_of_rows(rows: int, groups: int, row_groups: Tensor | None, device: torch.device) -> Tensor:
    """The group of each row, (rows,): as given, else rows are dealt evenly as in a grouped convolution.

    Raises:
        SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.
    """
    if row_groups is not None:
        return row_groups.to(device)
    if rows % groups:
        raise SettingsError(
            f"{rows} rows cannot be dealt to {groups} Hessians; pass `row_groups`, the Hessian of each row"
        )
    return torch.arange(groups, device=device).repeat_interleave(rows // groups)


def cholesky(matrix: Tensor, damping: float | None = None) -> Tensor:
    """The lower Cholesky factor of (..., columns, columns).

    Args:
        matrix: (..., columns, columns), damped.
        damping: named in the error message.

    Raises:
        SingularHessianError: the matrix is not positive definite, or holds NaN or infinity, which the message says.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.any():
        columns = matrix.shape[-1]
        if not matrix.isfinite().all():
            raise SingularHessianError(
                f"the Hessian of {columns} columns holds NaN or infinity; check the calibration data"
            )
        found = "" if damping is None else f", damping={damping:g}"
        raise SingularHessianError(
            f"the Hessian of {columns} columns is not positive definite{found}; raise `damping` or add calibration data"
        )
    return factor


def inverse(matrix: Tensor, damping: float | None = None) -> Tensor:
    """The inverse of (..., columns, columns) by its Cholesky factor; takes and raises what :func:`cholesky` does."""
    result: Tensor = torch.cholesky_inverse(cholesky(matrix, damping))
    return result


def _damped(matrix: Tensor, damping: float) -> Tensor:
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = mean.where(mean > 0, mean.mean())
    result = matrix.clone()
    result.diagonal(dim1=-2, dim2=-1).add_((damping * mean)[..., None])
    return result
