"""A mask from one factorisation that all rows share: ADMM.

ADMM splits ``min 1/2 tr((W - X) H (W - X)^T)`` subject to ``X`` sparse into a least-squares step, the same
``(H + rho I)^-1`` for all rows, and a projection that keeps the largest weights of the whole layer. The penalty rho
grows in a few stages, each with a Cholesky factorisation of its own, which is cheaper than one eigendecomposition.
Columns are normalised by ``sqrt(H_jj)``, so that the projection compares what weights do, not how large they are. On
wide layers each least-squares step is over-relaxed, which reaches a lower loss in fewer iterations.
Sources: Meng et al. 2024 (ALPS), arXiv 2406.07831; Boza 2024, arXiv 2401.02938; Boyd et al. 2011, section 3.4.3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian, cholesky, inverse
from sbc_plugin.core.pruning.obs import EXACT_COLUMNS
from sbc_plugin.core.pruning.patterns import keep_largest
from sbc_plugin.core.pruning.problem import Problem, pose
from sbc_plugin.errors import SettingsError

ITERATIONS = 30
STAGE = 10  # iterations between two penalties: each needs a factorisation, and 10 iterations cost about as much
PENALTY, GROWTH = 0.1, 3.0  # of the normalised Hessian, whose diagonal is 1
STRIP = 1024  # rows of a Hessian that are normalised at once
RELAXATION = 1.6  # of wide layers: how far a step goes from ``Z`` to the least-squares optimum and beyond; 1 ends there


class Schedule(NamedTuple):
    """How ADMM goes on: ``penalty`` at first, ``growth`` times as much after every ``stage`` iterations."""

    iterations: int
    stage: int
    penalty: float
    growth: float


def admm_mask(
    weight: Tensor,
    hessian: LayerHessian,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The mask (rows, columns), True = kept, of ADMM with exactly ``zeros`` zeros.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        zeros: zeros the layer shall have; blocks round it down, and N:M takes only the number it implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        iterations: of ADMM, 1 or more.

    >>> hessian = LayerHessian(torch.tensor([[2.0, 1.8], [1.8, 2.0]]), damping=0.0)
    >>> admm_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    if iterations < 1:
        raise SettingsError(f"{iterations} iterations of ADMM asked for, expected 1 or more")
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions)
    return problem.mask(admm_removed(problem, problem.zeros, usual_schedule(iterations)))


def usual_schedule(iterations: int = ITERATIONS) -> Schedule:
    """That of ADMM where it decides alone."""
    return Schedule(iterations, STAGE, PENALTY, GROWTH)


def admm_removed(problem: Problem, zeros: int, schedule: Schedule) -> Tensor:
    """The candidates (rows, columns) that ADMM removes: ``zeros`` of them, for N:M as many as each group has to give.

    Args:
        problem: the layer.
        zeros: how many weights to remove.
        schedule: of the penalty.

    Raises:
        SingularHessianError: a damped Hessian is far from positive definite, or holds NaN or infinity.
    """
    if zeros == 0:
        return torch.zeros_like(problem.candidates)
    wide = len(problem.columns) > EXACT_COLUMNS
    dtype, relaxation = (torch.float32, RELAXATION) if wide else (problem.hessian.dtype, 1.0)
    iterations, stage, penalty, growth = schedule
    scale = problem.hessian.diagonal(dim1=-2, dim2=-1).sqrt()  # (groups, columns)
    normal = _normalised(problem.hessian, scale, dtype)
    W = (problem.weight * scale[problem.owner]).to(dtype)
    every = [(problem.owner == group).nonzero()[:, 0] for group in range(len(normal))]
    members = [(group, rows) for group, rows in enumerate(every) if len(rows)]
    Z, dual, diagonal = W, torch.zeros_like(W), normal.diagonal(dim1=-2, dim2=-1).clone()
    step = normal.new_empty(0)
    for iteration in range(iterations):
        if iteration % stage == 0:
            rho = penalty * growth ** (iteration // stage)
            normal.diagonal(dim1=-2, dim2=-1).copy_(diagonal + rho)
            step = normal.new_empty(0)  # before the next one takes its memory
            step = cholesky(normal, problem.damping) if wide else rho * inverse(normal, problem.damping)
            dual = dual / growth if iteration else dual  # it is scaled by the penalty
        # V = dual + a (W + rho (Z - dual - W) (H + rho I)^-1) + (1 - a) Z, with a the relaxation
        V, pull = dual + W if relaxation == 1 else dual + torch.lerp(Z, W, relaxation), Z - dual - W
        if wide:
            for group, rows in members if iteration else ():  # the first pull is 0
                solved = _solve(step[group], pull if len(rows) == len(W) else pull[rows])
                V.index_add_(0, rows, solved, alpha=rho * relaxation)
        elif len(normal) == 1:
            V.addmm_(pull, step[0])
        else:
            for group, rows in members:
                V[rows] += pull[rows] @ step[group]
        removed = least_important(V.square(), problem, zeros)
        Z = V.masked_fill(removed, 0.0)
        dual = V - Z
    return removed & problem.candidates


def _normalised(hessian: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``H_jk / (scale_j scale_k)`` of (groups, columns, columns), made in strips, so that no other copy is held."""
    result = torch.empty_like(hessian, dtype=dtype)
    for first in range(0, hessian.shape[-1], STRIP):
        strip = slice(first, first + STRIP)
        result[:, strip] = hessian[:, strip] / scale[:, strip, None] / scale[:, None, :]
    return result


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """``right (L L^T)^-1`` for the lower factor (columns, columns): two solves cost little more than one product."""
    half = torch.linalg.solve_triangular(factor.mT, right, upper=True, left=False)
    solution: Tensor = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return solution


def least_important(score: Tensor, problem: Problem, zeros: int) -> Tensor:
    """The weights (rows, columns) that the projection sets to 0: ``zeros`` candidates of the smallest scores.

    For N:M they are as many as each group has still to give. Weights that are given up already come first and are not
    counted; other weights that are no candidates never go.
    """
    given_up = problem.removed[:, problem.columns]
    if not problem.candidates.all():
        score = score.masked_fill(~problem.candidates, float("inf")).masked_fill(given_up, -1.0)
    return ~keep_largest(score, zeros + int(given_up.sum()), problem.pattern)
