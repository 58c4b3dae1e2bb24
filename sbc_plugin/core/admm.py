"""Masks from one factorisation that all rows share: ADMM, and ADMM followed by exact OBS on what it leaves.

ADMM splits ``min 1/2 tr((W - X) H (W - X)^T)`` subject to ``X`` sparse into a least-squares step, ``(H + rho I)^-1``
for all rows from one eigendecomposition, and a projection that keeps the largest weights of the whole layer; the
penalty rho grows. Columns are normalised by ``sqrt(H_jj)``, so that the projection compares what weights do, not how
large they are. Sources: Meng et al. 2024 (ALPS), arXiv 2406.07831; Boza 2024, arXiv 2401.02938.

Greedy OBS is better and costs ``columns^3`` a row. In the hybrid, ADMM removes most of the weights and OBS, started
from the optimum on the survivors, the rest.
"""

import torch
from torch import Tensor

from sbc_plugin.core.hessian import inverse
from sbc_plugin.core.obs import eliminate, pool
from sbc_plugin.core.patterns import keep_largest
from sbc_plugin.core.problem import Problem, pose
from sbc_plugin.core.refit import subsystems, survivors
from sbc_plugin.errors import SettingsError, SingularHessianError

BATCH_ELEMENTS = 2**22  # of one batch of survivors' inverse Hessians: what a processor's last cache holds
ITERATIONS = 30
PENALTY, GROWTH = 0.1, 1.15
PRESELECT = 0.5


def admm_mask(
    weight: Tensor,
    hessian: Tensor,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    damping: float = 0.01,
    groups: Tensor | None = None,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The mask (rows, columns), True = kept, of ADMM with exactly ``zeros`` zeros.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        zeros: zeros the layer shall have; blocks round it down, for N:M it must be what the pattern implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        damping: fraction of the mean diagonal that is added to it.
        groups: (rows,), the Hessian of each row.
        iterations: of ADMM, 1 or more.

    >>> hessian = torch.tensor([[2.0, 1.8], [1.8, 2.0]])
    >>> admm_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2, damping=0.0).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    if iterations < 1:
        raise SettingsError(f"{iterations} iterations of ADMM asked for, expected 1 or more")
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions, damping=damping, groups=groups)
    return problem.mask(admm_removed(problem, problem.zeros, iterations))


def admm_removed(problem: Problem, zeros: int, iterations: int = ITERATIONS) -> Tensor:
    """The live weights (rows, columns) that ADMM removes, ``zeros`` of them, for N:M those that each group has left.

    Raises:
        SingularHessianError: a damped Hessian is not positive definite, or holds NaN or infinity.
    """
    if zeros == 0:
        return torch.zeros_like(problem.live)
    scale = problem.hessian.diagonal(dim1=-2, dim2=-1).sqrt()  # (groups, columns)
    normal = problem.hessian / scale[:, :, None] / scale[:, None, :]
    if not normal.isfinite().all():
        raise SingularHessianError(f"the Hessian of {scale.shape[1]} columns holds NaN or infinity; check the data")
    values, vectors = torch.linalg.eigh(normal)
    if values.min() <= 0:
        columns = scale.shape[1]
        raise SingularHessianError(
            f"the Hessian of {columns} columns is not positive definite; raise `damping` or add calibration data"
        )
    members = [(problem.owner == group).nonzero()[:, 0] for group in range(len(values))]
    members_of = [(group, rows) for group, rows in enumerate(members) if len(rows)]
    W = problem.weight * scale[problem.owner]
    Z, dual, rho = W, torch.zeros_like(W), PENALTY
    for _ in range(iterations):
        X = torch.empty_like(W)
        for group, rows in members_of:
            e, Q = values[group], vectors[group]
            X[rows] = (((W[rows] @ Q) * e + rho * ((Z - dual)[rows] @ Q)) / (e + rho)) @ Q.T
        V = X + dual
        kept = ~choose(V.square(), problem, zeros)
        Z = V * kept
        dual = V - Z
        rho *= GROWTH
    return ~kept & problem.live


def choose(score: Tensor, problem: Problem, zeros: int) -> Tensor:
    """The removed weights (rows, columns) of the smallest scores, ``zeros`` live ones, for N:M within each capacity.

    Weights on dead columns are not counted: those given up already come first, the others never.
    """
    given_up = problem.removed[:, problem.columns]
    score = score.masked_fill(~problem.live, float("inf")).masked_fill(given_up, -1.0)
    return ~keep_largest(score, zeros + int(given_up.sum()), problem.pattern)


def hybrid_mask(
    weight: Tensor,
    hessian: Tensor,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    damping: float = 0.01,
    groups: Tensor | None = None,
    preselect: float = PRESELECT,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The mask (rows, columns), True = kept, of ADMM followed by exact OBS, with exactly ``zeros`` zeros.

    ADMM removes weights until ``1 / preselect`` times as many as wished are left; OBS, one weight (block) a step in
    each row, removes the rest, budgets pooled over all rows. N:M is left to ADMM.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        zeros: zeros the layer shall have; blocks round it down, for N:M it must be what the pattern implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        damping: fraction of the mean diagonal that is added to it.
        groups: (rows,), the Hessian of each row.
        preselect: weights kept in the end as a fraction of what ADMM keeps, above 0, at most 1.
        iterations: of ADMM, 1 or more.

    >>> hessian = torch.tensor([[2.0, 1.8], [1.8, 2.0]])
    >>> hybrid_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2, damping=0.0).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    if iterations < 1 or not 0 < preselect <= 1:
        raise SettingsError(f"iterations={iterations} and preselect={preselect}; expected >= 1, and in (0, 1]")
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions, damping=damping, groups=groups)
    if problem.pattern.kind == "n:m":
        return problem.mask(admm_removed(problem, problem.zeros, iterations))
    size = problem.pattern.size if problem.pattern.kind == "block" else 1
    left = int(problem.live.sum())
    first = max(0, int((left - (left - problem.zeros) / preselect) // size * size))
    removed = admm_removed(problem, first, iterations)
    rest = problem.zeros - first
    if rest:
        removed = removed | eliminate_survivors(problem, problem.live & ~removed, rest, damping)
    return problem.mask(removed)


def eliminate_survivors(problem: Problem, kept: Tensor, zeros: int, damping: float) -> Tensor:
    """Exact OBS inside ``kept`` (rows, columns): which ``zeros`` of them to remove, (rows, columns).

    Rows start from the least-squares optimum on what is kept, and are batched by how much that is.
    """
    size = problem.pattern.size if problem.pattern.kind == "block" else 1
    rows = len(kept)
    sizes, ranked = kept.sum(1).sort(stable=True)
    count: list[int] = sizes.tolist()
    steps = count[-1] // size
    pull = torch.empty_like(problem.weight)
    for group, H in enumerate(problem.hessian):
        mine = problem.owner == group
        pull[mine] = problem.weight[mine] @ H
    order = torch.zeros(rows, steps, dtype=torch.long, device=kept.device)
    loss = problem.weight.new_full((rows, steps), float("inf"))
    last = rows
    while last > 0 and count[last - 1]:
        width = count[last - 1]
        batch = ranked[max(0, last - max(1, BATCH_ELEMENTS // width**2)) : last]
        places, filled = survivors(kept[batch], width)
        G = inverse(subsystems(problem.hessian, problem.owner[batch], places, filled), damping)
        w = (G @ (pull[batch].gather(1, places) * filled)[..., None])[..., 0]
        found, cost = eliminate(w, G, filled, block=size)
        order[batch, : found.shape[1]] = places.gather(1, found * size) // size
        loss[batch, : found.shape[1]] = cost
        last -= len(batch)
    return pool(order, loss, problem, zeros)
