"""Sums over samples that merge: of their products, which make a Hessian, or of their squares alone.

Source: docs/theory.md, equation 2 (arXiv 2506.03996).
"""

import torch
from torch import Tensor

from sbc_plugin.errors import CalibrationError

SYMMETRIC, BLOCKS = 512, 4  # from so many columns on, the upper triangle is computed in so many blocks of rows


class HessianAccumulator:
    """Sums ``X^T X`` over samples; sums of parts merge to the sum of the whole.

    Args:
        columns: width of a sample.
        groups: None for one Hessian ``(columns, columns)``, else the number of Hessians ``(groups, columns, columns)``.
        device: where the sum is kept; products are computed where the samples are.

    >>> accumulator = HessianAccumulator(columns=2)
    >>> accumulator.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> accumulator.hessian().tolist()
    [[2.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self, columns: int, groups: int | None = None, device: torch.device | str | None = None) -> None:
        shape = (columns, columns) if groups is None else (groups, columns, columns)
        self.sum_xx = torch.zeros(shape, dtype=torch.float64, device=device)
        self.count = 0

    @property
    def columns(self) -> int:
        """Width of a sample."""
        return self.sum_xx.shape[-1]

    def add(self, samples: Tensor) -> None:
        """Add samples (n, columns), or (groups, n, columns) when there are groups.

        Products are float32 (float64 for float64 samples), sums are float64.

        Raises:
            CalibrationError: another shape than announced, or NaN or infinity among the samples.
        """
        expected = self.sum_xx.shape[:-2] + self.sum_xx.shape[-1:]
        if samples.dim() != self.sum_xx.dim() or samples.shape[:-2] + samples.shape[-1:] != expected:
            found = tuple(samples.shape)
            raise CalibrationError(
                f"samples have shape {found}, expected (..., n, {self.columns}) of {tuple(expected)}"
            )
        samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
        product = gram(samples)
        if not product.diagonal(dim1=-2, dim2=-1).isfinite().all():  # sums of squares: nothing lies above them
            raise CalibrationError("the input holds NaN or infinity; clean the calibration data")
        self.sum_xx += product.to(self.sum_xx.device)
        self.count += samples.shape[-2]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of the sum, (columns,) or (groups, columns); 0 where a column was 0 in every sample."""
        return self.sum_xx.diagonal(dim1=-2, dim2=-1)

    def merge(self, other: "HessianAccumulator") -> None:
        """Add another accumulator's samples to this one.

        Raises:
            CalibrationError: the accumulators are of different shape.
        """
        if other.sum_xx.shape != self.sum_xx.shape:
            mine, theirs = tuple(self.sum_xx.shape), tuple(other.sum_xx.shape)
            raise CalibrationError(f"cannot merge a Hessian {theirs} into one of {mine}; same model, same layer needed")
        self.sum_xx += other.sum_xx.to(self.sum_xx)
        self.count += other.count

    def hessian(self) -> Tensor:
        """``2 X^T X / count`` in float64, (columns, columns) or (groups, columns, columns). Undamped.

        Raises:
            CalibrationError: nothing was added yet.
        """
        if self.count == 0:
            raise CalibrationError("no sample reached this layer; give calibration data that does")
        return self.sum_xx * (2.0 / self.count)


class DiagonalAccumulator:
    """Sums the squares of samples: the diagonal of what :class:`HessianAccumulator` sums, without the rest.

    Args:
        columns: width of a sample.
        groups: as there.
        device: where the sum is kept.

    >>> accumulator = DiagonalAccumulator(columns=2)
    >>> accumulator.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> accumulator.diagonal.tolist(), accumulator.count
    ([2.0, 4.0], 2)
    """

    def __init__(self, columns: int, groups: int | None = None, device: torch.device | str | None = None) -> None:
        shape = (columns,) if groups is None else (groups, columns)
        self.diagonal = torch.zeros(shape, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, samples: Tensor) -> None:
        """Add samples (n, columns), or (groups, n, columns) when there are groups.

        Raises:
            CalibrationError: NaN or infinity among the samples.
        """
        squares = samples.to(torch.promote_types(samples.dtype, torch.float32)).square().sum(-2)
        if not squares.isfinite().all():
            raise CalibrationError("the input holds NaN or infinity; clean the calibration data")
        self.diagonal += squares.to(self.diagonal)
        self.count += samples.shape[-2]


def gram(samples: Tensor) -> Tensor:
    """``X^T X`` of samples (..., n, columns), (..., columns, columns): where it is large, half of it is computed.

    >>> gram(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    columns = samples.shape[-1]
    if columns < SYMMETRIC:
        return samples.mT @ samples
    product = samples.new_empty(*samples.shape[:-2], columns, columns)
    for first in range(0, columns, width := -(-columns // BLOCKS)):
        last = min(first + width, columns)
        torch.matmul(samples[..., first:last].mT, samples[..., first:], out=product[..., first:last, first:])
        product[..., last:, first:last] = product[..., first:last, last:].mT
    return product
