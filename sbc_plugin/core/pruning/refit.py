"""The exact least-squares optimum of the kept weights on a fixed mask, ``w_K' = w_K + H_KK^-1 H_KP w_P``.

Two ways to the same numbers: solve with ``H_KK``, or, where less is removed than kept, ``delta = -G[:, P] (G_PP)^-1
w_P`` with ``G = H^-1`` computed once (docs/theory.md, equation 3). Rows are sorted by the size of their system and
solved in batches.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbc_plugin.core.hessian import LayerHessian, cholesky, inverse
from sbc_plugin.core.pruning.problem import check_shapes
from sbc_plugin.errors import SettingsError, SingularHessianError

BATCH_ELEMENTS = 2**24  # of one batch of padded systems (rows, size, size)
SINGLE_COLUMNS = 512  # above this, systems are factored in single precision, and their solutions refined,
DIRECT = 2  # but not where size^3 is at most so many times columns^2: the products that refine would cost more
REFINEMENTS, CONVERGED = 8, 1e-9  # the most steps, and the change still to come, of the last one, at which they end
MOST = 2.0  # in a row that lost more than three quarters of its mean square, a larger factor mostly amplifies errors


def refit(weight: Tensor, mask: Tensor, hessian: LayerHessian) -> Tensor:
    """The weight (rows, columns), in the dtype of ``weight``, that is 0 off the mask and optimal on it.

    A kept weight on a dead column stays as it is, since nothing is known about it.

    Args:
        weight: (rows, columns), the dense weight.
        mask: (rows, columns), True = kept.
        hessian: of the layer.

    >>> hessian = LayerHessian(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), damping=0.0)
    >>> refit(torch.tensor([[1.0, 1.0]]), torch.tensor([[True, False]]), hessian).tolist()
    [[1.5, 0.0]]

    Raises:
        CalibrationError: weight and Hessian do not belong together.
        SettingsError: the mask has another shape, or damping is out of range.
        SingularHessianError: the damped Hessian of some kept weights is not positive definite.
    """
    check_shapes(weight, hessian)
    if mask.shape != weight.shape:
        raise SettingsError(f"the mask has shape {tuple(mask.shape)}, the weight {tuple(weight.shape)}")
    whole, damping, owner = hessian.positive_definite(), hessian.damping, hessian.owner(len(weight))
    alive = ~hessian.dead[owner]
    w, mask = weight.to(whole), mask.to(whole.device)
    removed = ~mask & alive
    kept = mask & alive
    moves = removed.any(1) & kept.any(1)
    by_inverse = removed.sum(1) < kept.sum(1)
    delta = torch.zeros_like(w)
    for group in range(len(whole)):
        mine = moves & (owner == group)
        rows = (mine & ~by_inverse).nonzero()[:, 0]
        if len(rows):
            pull = (w[rows] * removed[rows]) @ whole[group]
            delta[rows] = solve_rows(whole[group], kept[rows], pull, damping)
        rows = (mine & by_inverse).nonzero()[:, 0]
        if len(rows):
            G = inverse(whole[group], damping)
            delta[rows] = -solve_rows(G, removed[rows], w[rows] * removed[rows], damping) @ G
    return (w + delta).where(mask, 0.0).to(weight)  # not times the mask, which would leave -0.0


def rescaled(weight: Tensor, new: Tensor, hessian: LayerHessian) -> Tensor:
    """``new`` with each row scaled by ``sqrt(w H w / w' H w')``, from 1 to ``MOST``: its output keeps its mean square.

    A least-squares optimum is a prediction of the row's output and varies less than what it predicts, so its neuron
    reaches the threshold too rarely. Rows without output stay as they are. Source: docs/theory.md, equation 9.

    Args:
        weight: (rows, columns), dense.
        new: (rows, columns), refitted.
        hessian: of the layer.

    >>> rescaled(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]), LayerHessian(torch.eye(2))).tolist()
    [[0.0, 5.0]]
    """
    before, after = (hessian.quadratic(w.to(hessian.matrix)) for w in (weight, new))
    ratio = (before / after).where(after > 0, 1.0).sqrt().clamp(1.0, MOST)
    return (new.to(hessian.matrix) * ratio[:, None]).to(new)


def solve_rows(matrix: Tensor, chosen: Tensor, target: Tensor, damping: float) -> Tensor:
    """``matrix[C, C]^-1 target_C`` of each row, C its chosen columns, as (rows, columns) with 0 elsewhere.

    Args:
        matrix: (columns, columns), positive definite.
        chosen: (rows, columns), bool.
        target: (rows, columns).
        damping: named in the error message.

    Raises:
        SingularHessianError: some ``matrix[C, C]`` is not positive definite.
    """
    result = torch.zeros_like(target)
    sizes, rows = chosen.sum(1).sort(stable=True)
    count: list[int] = sizes.tolist()
    precise = matrix.dtype == torch.float64 and len(matrix) > SINGLE_COLUMNS
    bordered: dict[torch.dtype, Tensor] = {}

    def with_zeros(dtype: torch.dtype) -> Tensor:
        if dtype not in bordered:
            bordered[dtype] = with_border(matrix.to(dtype))
        return bordered[dtype]

    first = 0
    while first < len(rows):
        last = first + 1  # rows are sorted, so a batch is as wide as its last row
        while last < len(rows) and (last + 1 - first) * count[last] ** 2 <= BATCH_ELEMENTS:
            last += 1
        if count[last - 1]:
            batch = rows[first:last]
            columns, filled = survivors(chosen[batch], count[last - 1])
            systems = _Systems(matrix, columns, filled)
            mixed = precise and count[last - 1] ** 3 > DIRECT * len(matrix) ** 2
            solved = systems.refined(with_zeros(torch.float32), target[batch], damping) if mixed else None
            if solved is None:
                precise = precise and not mixed  # the rows that follow have as many columns and the same Hessian
                solved = systems.solved(with_zeros(matrix.dtype), target[batch], damping)
            result[batch] = solved
        first = last
    return result


class _Systems(NamedTuple):
    """One system ``matrix[C, C]`` a row, all as wide as the widest.

    Attributes:
        matrix: (columns, columns), of the dtype of the result.
        columns: (rows, width), C of each row.
        filled: (rows, width), False where ``columns`` is padding.
    """

    matrix: Tensor
    columns: Tensor
    filled: Tensor

    def solved(self, bordered: Tensor, target: Tensor, damping: float) -> Tensor:
        """The solutions (rows, columns), in the dtype of ``bordered``."""
        return self._spread(self._solve(self._factor(bordered, damping), target))

    def refined(self, bordered: Tensor, target: Tensor, damping: float) -> Tensor | None:
        """The same from factors in single precision, each error made good; None where that does not converge."""
        try:
            factor = self._factor(bordered, damping)
        except SingularHessianError:
            return None
        solution = self._spread(self._solve(factor, target.float())).to(target)
        before = float(solution.abs().amax())
        for _ in range(REFINEMENTS):
            residual = target - solution @ self.matrix
            change = self._spread(self._solve(factor, residual.float())).to(target)
            solution += change
            now = float(change.abs().amax())
            if not now <= before / 2:
                return None
            if now * now <= CONVERGED * before * before:  # the next change is to this one as this one to that before
                return solution
            before = now
        return None

    def _factor(self, bordered: Tensor, damping: float) -> Tensor:
        owner = torch.zeros_like(self.columns[:, 0])
        return cholesky(subsystems(bordered[None], owner, self.columns, self.filled), damping)

    def _solve(self, factor: Tensor, target: Tensor) -> Tensor:
        right = (target.gather(1, self.columns) * self.filled)[..., None].to(factor)
        half = torch.linalg.solve_triangular(factor, right, upper=False)  # cholesky_solve would copy the factors
        solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return solution[..., 0]

    def _spread(self, solved: Tensor) -> Tensor:
        return solved.new_zeros(len(solved), len(self.matrix)).scatter(1, self.columns, solved)


def survivors(chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The chosen columns of each row, (rows, width), padded with others; and True where they are no padding."""
    columns = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return columns, chosen.gather(1, columns)


def with_border(matrices: Tensor) -> Tensor:
    """The matrices (..., columns, columns) with one more row and column, of zeros, for :func:`subsystems`."""
    return pad(matrices, (0, 1, 0, 1))


def subsystems(bordered: Tensor, owner: Tensor, columns: Tensor, filled: Tensor) -> Tensor:
    """``matrices[owner][C, C]`` of each row, (rows, width, width), with the identity on padding.

    Args:
        bordered: of :func:`with_border`, (groups, columns + 1, columns + 1).
        owner: (rows,), the matrix of each row.
        columns: (rows, width), C of each row.
        filled: (rows, width), False where ``columns`` is padding.
    """
    place = columns.where(filled, bordered.shape[-1] - 1)
    system = bordered[owner[:, None, None], place[:, :, None], place[:, None, :]]
    system.diagonal(dim1=1, dim2=2).add_((~filled).to(system))
    return system
