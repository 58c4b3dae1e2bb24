"""Masks from one factorisation that all rows share: ADMM, and ADMM followed by exact OBS on what it leaves.

ADMM splits ``min 1/2 tr((W - X) H (W - X)^T)`` subject to ``X`` sparse into a least-squares step, the same
``(H + rho I)^-1`` for all rows, and a projection that keeps the largest weights of the whole layer. The penalty rho
grows in a few stages, each with one Cholesky factorisation: cheaper than one eigendecomposition for all of them.
Columns are normalised by ``sqrt(H_jj)``, so that the projection compares what weights do, not how large they are.
Sources: Meng et al. 2024 (ALPS), arXiv 2406.07831; Boza 2024, arXiv 2401.02938.

Greedy OBS is better and costs ``columns^3`` a row. In the hybrid, ADMM removes most of the weights and OBS, started
from the optimum on the survivors, the rest.
"""

import torch
from torch import Tensor

from sbc_plugin.core.hessian import inverse
from sbc_plugin.core.pruning.obs import EXACT_COLUMNS, eliminate, pool, search_dtype
from sbc_plugin.core.pruning.patterns import keep_largest
from sbc_plugin.core.pruning.problem import Problem, pose
from sbc_plugin.core.pruning.refit import subsystems, survivors
from sbc_plugin.errors import SettingsError

BATCH_ELEMENTS = 2**22  # of one batch of survivors' inverse Hessians: what a processor's last cache holds
ITERATIONS = 30
STAGE = 10  # iterations between two penalties: each needs a factorisation, and 10 iterations cost about as much
PENALTY, GROWTH = 0.1, 3.0  # of the normalised Hessian, whose diagonal is 1
PRESELECT, PRESELECT_ITERATIONS = 0.3, 10
OBS_WORK = 2**34  # rows * survivors^3 that the hybrid leaves to OBS: some ten seconds of one core


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
    return problem.mask(admm_removed(problem, problem.zeros, iterations, damping))


def admm_removed(problem: Problem, zeros: int, iterations: int, damping: float) -> Tensor:
    """The live weights (rows, columns) that ADMM removes, ``zeros`` of them, for N:M those that each group has left.

    Raises:
        SingularHessianError: a damped Hessian is far from positive definite, or holds NaN or infinity.
    """
    if zeros == 0:
        return torch.zeros_like(problem.live)
    dtype = problem.hessian.dtype if len(problem.columns) <= EXACT_COLUMNS else torch.float32
    scale = problem.hessian.diagonal(dim1=-2, dim2=-1).sqrt()  # (groups, columns)
    normal = (problem.hessian / scale[:, :, None] / scale[:, None, :]).to(dtype)
    W = (problem.weight * scale[problem.owner]).to(dtype)
    every = [(problem.owner == group).nonzero()[:, 0] for group in range(len(normal))]
    members = [(group, rows) for group, rows in enumerate(every) if len(rows)]
    Z, dual, eye = W, torch.zeros_like(W), torch.eye(W.shape[1], dtype=dtype, device=W.device)
    for iteration in range(iterations):
        if iteration % STAGE == 0:
            rho = PENALTY * GROWTH ** (iteration // STAGE)
            step = rho * inverse(normal + rho * eye, damping)
            dual = dual / GROWTH if iteration else dual  # it is scaled by the penalty
        V, pull = dual.clone(), Z - dual - W
        if len(normal) == 1:
            V += W + pull @ step[0]
        else:
            for group, rows in members:
                V[rows] += W[rows] + pull[rows] @ step[group]
        removed = choose(V.square(), problem, zeros)
        Z = V.masked_fill(removed, 0.0)
        dual = V - Z
    return removed & problem.live


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
    preselect: float | None = None,
    iterations: int | None = None,
) -> Tensor:
    """The mask (rows, columns), True = kept, of ADMM followed by exact OBS, with exactly ``zeros`` zeros.

    ADMM removes weights until ``1 / preselect`` times as many as wished are left. OBS, one weight (block) a step in
    each row, removes the rest, budgets pooled over all rows. N:M is left to ADMM, which beats the greedy order there.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        zeros: zeros the layer shall have; blocks round it down, for N:M it must be what the pattern implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        damping: fraction of the mean diagonal that is added to it.
        groups: (rows,), the Hessian of each row.
        preselect: weights kept in the end as a fraction of what ADMM keeps, above 0, at most 1. None: 0.3, more where
            ``rows * survivors^3`` would be beyond reason, up to 1, which leaves all to ADMM.
        iterations: of ADMM, 1 or more; None: 10 where ``preselect`` is at most 0.3, 30 where ADMM decides more.

    >>> hessian = torch.tensor([[2.0, 1.8], [1.8, 2.0]])
    >>> hybrid_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2, damping=0.0).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    if (iterations is not None and iterations < 1) or (preselect is not None and not 0 < preselect <= 1):
        raise SettingsError(f"iterations={iterations} and preselect={preselect}; expected >= 1, and in (0, 1]")
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions, damping=damping, groups=groups)
    size = problem.pattern.size if problem.pattern.kind == "block" else 1
    left = int(problem.live.sum())
    final, reach = left - problem.zeros, len(weight) * (OBS_WORK / len(weight)) ** (1 / 3)
    if problem.pattern.kind == "n:m":
        preselect = 1.0
    elif preselect is None:
        preselect = min(1.0, max(PRESELECT, final / reach))
    if iterations is None:
        iterations = PRESELECT_ITERATIONS if preselect <= PRESELECT else ITERATIONS
    first = problem.zeros if preselect == 1 else max(0, int((left - final / preselect) // size * size))
    removed = admm_removed(problem, first, iterations, damping)
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
    dtype = search_dtype(problem, damping)
    hessian, pull = problem.hessian.to(dtype), pull.to(dtype)
    order = torch.zeros(rows, steps, dtype=torch.long, device=kept.device)
    loss = problem.weight.new_full((rows, steps), float("inf"))
    last = rows
    while last > 0 and count[last - 1]:
        width = count[last - 1]
        batch = ranked[max(0, last - max(1, BATCH_ELEMENTS // width**2)) : last]
        places, filled = survivors(kept[batch], width)
        G = inverse(subsystems(hessian, problem.owner[batch], places, filled), damping)
        w = (G @ (pull[batch].gather(1, places) * filled)[..., None])[..., 0]
        found, cost = eliminate(w, G, filled, block=size)
        order[batch, : found.shape[1]] = places.gather(1, found * size) // size
        loss[batch, : found.shape[1]] = cost.to(loss)
        last -= len(batch)
    return pool(order, loss, problem, zeros)
