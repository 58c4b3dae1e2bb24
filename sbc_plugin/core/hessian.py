"""The layer Hessian ``H = 2 X^T X / count`` as a mergeable sum, its damping and its inverse.

Every solver works on rows of a weight ``(rows, columns)``. Rows that see the same filtered input share a Hessian; the
rows of a grouped convolution, or neurons with other time constants, do not. So a Hessian is ``(columns, columns)``, or
``(groups, columns, columns)`` with the group of each row beside it (:func:`row_groups`).

Source: docs/theory.md, equation 2 (arXiv 2506.03996).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import CalibrationError, SettingsError, SingularHessianError


@dataclass(frozen=True)
class Solution:
    """What a solver found for one layer.

    Attributes:
        weight: (rows, columns), the new weight, zero where ``mask`` is False.
        mask: (rows, columns), True = kept.
        loss: relative increase of the objective: 0 = unchanged, 1 = the layer's output removed.
        grid: that ``weight`` lies on; None if it was not quantised.
    """

    weight: Tensor
    mask: Tensor
    loss: float
    grid: Grid | None = None


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
        product = samples.mT @ samples
        if not product.isfinite().all():
            raise CalibrationError("the input holds NaN or infinity; clean the calibration data")
        self.sum_xx += product.to(self.sum_xx)
        self.count += samples.shape[-2]

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


def row_groups(rows: int, hessian: Tensor, groups: Tensor | None = None) -> Tensor:
    """The Hessian of each row, (rows,): ``groups`` if given, else rows dealt evenly as in a grouped convolution.

    >>> row_groups(4, torch.zeros(2, 3, 3)).tolist()
    [0, 0, 1, 1]

    Raises:
        SettingsError: the rows cannot be dealt evenly and ``groups`` does not say how.
    """
    count = 1 if hessian.dim() == 2 else len(hessian)
    if groups is not None:
        return groups.to(hessian.device)
    if rows % count:
        raise SettingsError(f"{rows} rows cannot be dealt to {count} Hessians; pass `groups`, the Hessian of each row")
    return torch.arange(count, device=hessian.device).repeat_interleave(rows // count)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """``H + damping * mean(diag H) * I``, of each group by itself; a silent group takes the mean over all groups.

    >>> damped(torch.diag(torch.tensor([1.0, 3.0])), 0.5).diagonal().tolist()
    [2.0, 4.0]
    """
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = mean.where(mean > 0, mean.mean())
    result = hessian.clone()
    result.diagonal(dim1=-2, dim2=-1).add_((damping * mean)[..., None])
    return result


def cholesky(hessian: Tensor, damping: float | None = None) -> Tensor:
    """Lower Cholesky factor of (..., columns, columns). ``damping`` is only told in the message.

    Raises:
        SingularHessianError: not positive definite; NaN is told apart.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(hessian)
    if info.any():
        columns = hessian.shape[-1]
        if not hessian.isfinite().all():
            raise SingularHessianError(
                f"the Hessian of {columns} columns holds NaN or infinity; check the calibration data"
            )
        told = "" if damping is None else f", damping={damping:g}"
        raise SingularHessianError(
            f"the Hessian of {columns} columns is not positive definite{told}; raise `damping` or add calibration data"
        )
    return factor


def inverse(hessian: Tensor, damping: float | None = None) -> Tensor:
    """``H^-1`` of (..., columns, columns) by Cholesky; raises as :func:`cholesky` does."""
    result: Tensor = torch.cholesky_inverse(cholesky(hessian, damping))
    return result


def quadratic(error: Tensor, hessian: Tensor, groups: Tensor | None = None) -> Tensor:
    """``1/2 e_r^T H e_r`` of each row, (rows,), for ``error`` (rows, columns). Source: docs/theory.md, equation 4."""
    if hessian.dim() == 2:
        losses: Tensor = ((error @ hessian) * error).sum(-1) / 2
        return losses
    result = error.new_zeros(len(error))
    owner = row_groups(len(error), hessian, groups)
    for group in range(len(hessian)):
        rows = owner == group
        result[rows] = ((error[rows] @ hessian[group]) * error[rows]).sum(-1) / 2
    return result


def layer_loss(weight: Tensor, new: Tensor, hessian: Tensor, groups: Tensor | None = None) -> float:
    """Relative loss of ``new`` in the place of ``weight``: ``tr(E H E^T) / tr(W H W^T)``, E = W - W'; 0 if W H = 0.

    >>> layer_loss(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.eye(2))
    0.5
    """
    weight, new = weight.to(hessian), new.to(hessian)
    total = quadratic(weight, hessian, groups).sum()
    return float(quadratic(weight - new, hessian, groups).sum() / total) if total > 0 else 0.0
