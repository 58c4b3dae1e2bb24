"""The Hessian of a layer that reads channels: in primal form, a matrix, or in dual form, fewer samples than columns.

In dual form ``H = 2/n X^T X + R`` is never formed. ``S = n/2 I + X R^-1 X^T`` is as wide as there are samples, and
Woodbury's identity says ``H^-1 = R^-1 - R^-1 X^T S^-1 X R^-1``. Columns that go leave the sum:
``S <- S - X_P R_P^-1 X_P^T``. A last column without a ridge, as that of a bias, has no such inverse; it never goes, and
is projected out of the samples instead.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sbc_plugin.core.hessian import cholesky


class Hessian(Protocol):
    """A Hessian (columns, columns) in either form; solvers compute in the dtype and on the device of ``like``."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of what it gives."""

    @property
    def columns(self) -> int:
        """Width of a sample."""

    @property
    def matrix(self) -> Tensor:
        """(columns, columns)."""

    def diagonal(self) -> Tensor:
        """(columns,)."""

    def loss(self, weight: Tensor) -> Tensor:
        """``1/2 w^T H w``, summed over the rows of the weight (rows, columns): ()."""

    def damped(self, ridge: Tensor) -> "Hessian":
        """With ridge (columns,) more on the diagonal."""

    def part(self, kept: Tensor | slice) -> "Hessian":
        """Of some columns."""

    def without_columns(self, weight: Tensor, removed: Tensor, damping: float | None = None) -> Tensor:
        """As :func:`sbc_plugin.core.pruning.channels.without_columns`."""


@dataclass(frozen=True, eq=False)
class PrimalHessian:
    """A matrix.

    Attributes:
        matrix: (columns, columns).
    """

    matrix: Tensor

    @property
    def like(self) -> Tensor:
        """The matrix."""
        return self.matrix

    @property
    def columns(self) -> int:
        """Width of a sample."""
        return len(self.matrix)

    def diagonal(self) -> Tensor:
        """(columns,)."""
        return self.matrix.diagonal()

    def loss(self, weight: Tensor) -> Tensor:
        """``1/2 w^T H w``, summed over the rows of the weight (rows, columns): ()."""
        return ((weight @ self.matrix) * weight).sum() / 2

    def damped(self, ridge: Tensor) -> "PrimalHessian":
        """With ridge (columns,) more on the diagonal."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(ridge)
        return PrimalHessian(matrix)

    def part(self, kept: Tensor | slice) -> "PrimalHessian":
        """Of some columns."""
        return PrimalHessian(self.matrix[kept][:, kept])

    def without_columns(self, weight: Tensor, removed: Tensor, damping: float | None = None) -> Tensor:
        """As :func:`sbc_plugin.core.pruning.channels.without_columns`, by one factorisation of what is kept."""
        kept = ~removed
        result = weight.to(self.matrix, copy=True)
        if removed.any() and kept.any():
            factor = cholesky(self.matrix[kept][:, kept], damping)
            pull = self.matrix[kept][:, removed] @ result[:, removed].mT
            result[:, kept] += torch.cholesky_solve(pull, factor).mT
        result[:, removed] = 0.0
        return result.to(weight)


@dataclass(frozen=True, eq=False)
class DualHessian:
    """``2/n X^T X + diag(ridge)``, computed in float64.

    Attributes:
        samples: X, (n, columns).
        ridge: (columns,), float64. What is inverted needs more than 0 everywhere but in the last column.
    """

    samples: Tensor
    ridge: Tensor

    @property
    def like(self) -> Tensor:
        """The ridge."""
        return self.ridge

    @property
    def columns(self) -> int:
        """Width of a sample."""
        return len(self.ridge)

    @property
    def matrix(self) -> Tensor:
        """(columns, columns), formed now.

        >>> DualHessian(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]).double()).matrix.tolist()
        [[5.0, 4.0], [4.0, 12.0]]
        """
        x = self.samples.to(self.ridge)
        return torch.diag(self.ridge).addmm_(x.mT, x, alpha=2 / len(x))

    def diagonal(self) -> Tensor:
        """(columns,)."""
        return self.ridge + self.samples.to(self.ridge).square().sum(0) * (2 / len(self.samples))

    def loss(self, weight: Tensor) -> Tensor:
        """``1/2 w^T H w``, summed over the rows of the weight (rows, columns): ()."""
        sent = self.samples.to(self.ridge) @ weight.mT
        squares: Tensor = torch.linalg.vector_norm(weight, dim=0).square()
        loss: Tensor = sent.square().sum() / len(sent) + (squares @ self.ridge) / 2
        return loss

    def damped(self, ridge: Tensor) -> "DualHessian":
        """With ridge (columns,) more on the diagonal."""
        return DualHessian(self.samples, self.ridge + ridge)

    def part(self, kept: Tensor | slice) -> "DualHessian":
        """Of some columns."""
        return DualHessian(self.samples[:, kept], self.ridge[kept])

    def without_columns(self, weight: Tensor, removed: Tensor, damping: float | None = None) -> Tensor:
        """As :func:`sbc_plugin.core.pruning.channels.without_columns`, by what removed columns sent in each sample."""
        result = weight.to(self.ridge, copy=True)
        samples, along, length = self.projected()
        lost = samples[:, removed] @ result[:, removed].mT  # (n, rows)
        lost_along = along[removed] @ result[:, removed].mT
        change = samples * self.weights()
        change[:, removed] = 0.0
        pull = torch.cholesky_solve(lost, cholesky(plus_half(change @ samples.mT), damping))
        result.addmm_(pull.mT, change)
        if length > 0:
            result[:, -1] += (lost_along - (change @ along) @ pull) / length
        result[:, removed] = 0.0
        return result.to(weight)

    def weights(self) -> Tensor:
        """``R^-1``, (columns,); 0 without a ridge."""
        return self.ridge.reciprocal().where(self.ridge > 0, 0.0)

    def outer(self) -> Tensor:
        """``S = n/2 I + X R^-1 X^T``, (n, n), of the projected samples."""
        samples = self.projected()[0]
        return plus_half((samples * self.weights()) @ samples.mT)

    def projected(self) -> tuple[Tensor, Tensor, float]:
        """The samples without what lies along a last column that has no ridge: a copy, and what was taken away.

        Returns:
            The samples (n, columns); how far each column reached along the last one (columns,); the length of that, 0
            where it has a ridge.
        """
        x = self.samples.to(self.ridge, copy=True)
        length = 0.0 if self.ridge[-1] > 0 else float(x[:, -1].norm())
        if not length:
            return x, torch.zeros_like(self.ridge), length
        direction = x[:, -1] / length
        along = direction @ x
        return x.addr_(direction, along, alpha=-1), along, length


def plus_half(product: Tensor) -> Tensor:
    """``S`` of ``Z Z^T``: n/2 more on the diagonal."""
    product.diagonal().add_(len(product) / 2)
    return product
