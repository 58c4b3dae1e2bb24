"""ADMM removes most of the weights; exact OBS, started from the optimum on the survivors, removes the rest.

Greedy OBS finds better masks than ADMM, but costs ``columns^3`` a row: it gets no more than it can do in some seconds.
"""

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian, inverse
from sbc_plugin.core.pruning.admm import Schedule, admm_removed, usual_schedule
from sbc_plugin.core.pruning.obs import EXACT_COLUMNS, eliminate, pool, search_dtype
from sbc_plugin.core.pruning.problem import Problem, pose
from sbc_plugin.core.pruning.refit import subsystems, survivors, with_border
from sbc_plugin.errors import SettingsError

BATCH_ELEMENTS = 2**22  # of one batch of survivors' inverse Hessians: what a processor's last cache holds
PRESELECT, PRESELECT_SCHEDULE = 0.5, Schedule(21, 7, 0.04, 5.0)  # of wide layers, whose ADMM is over-relaxed
NARROW_PRESELECT, NARROW_ITERATIONS = 0.3, 10  # up to EXACT_COLUMNS, where eliminating more takes little time
OBS_WORK = 2**34  # rows * survivors^3 that the hybrid leaves to OBS: some ten seconds of one core


def hybrid_mask(
    weight: Tensor,
    hessian: LayerHessian,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    preselect: float | None = None,
    iterations: int | None = None,
) -> Tensor:
    """The mask (rows, columns), True = kept, of ADMM followed by exact OBS, with exactly ``zeros`` zeros.

    ADMM removes weights until ``1 / preselect`` times as many are left as shall be kept. OBS removes the rest, one
    weight or block a step in each row, with one budget for all rows. For N:M, ADMM does it all, since it beats the
    greedy order there.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        zeros: zeros the layer shall have; blocks round it down, and N:M takes only the number it implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        preselect: weights kept in the end as a fraction of what ADMM keeps, above 0, at most 1. 1 leaves all to ADMM.
            None takes 0.5, up to 512 columns 0.3, or as much more as keeps ``rows * survivors^3`` within ``OBS_WORK``.
        iterations: of ADMM, 1 or more. None takes 21, up to 512 columns 10; but 30 if ``preselect`` is more than it
            would be by itself, since ADMM then decides more.

    >>> hessian = LayerHessian(torch.tensor([[2.0, 1.8], [1.8, 2.0]]), damping=0.0)
    >>> hybrid_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    if (iterations is not None and iterations < 1) or (preselect is not None and not 0 < preselect <= 1):
        raise SettingsError(f"iterations={iterations} and preselect={preselect}; expected >= 1, and in (0, 1]")
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions)
    size = problem.pattern.size if problem.pattern.kind == "block" else 1
    left = int(problem.candidates.sum())
    final, reach = left - problem.zeros, len(weight) * (OBS_WORK / len(weight)) ** (1 / 3)
    wide = len(problem.columns) > EXACT_COLUMNS
    usual = PRESELECT if wide else NARROW_PRESELECT
    if problem.pattern.kind == "n:m":
        preselect = 1.0
    elif preselect is None:
        preselect = min(1.0, max(usual, final / reach))
    if iterations is not None:
        schedule = usual_schedule(iterations)
    elif preselect > usual:
        schedule = usual_schedule()
    else:
        schedule = PRESELECT_SCHEDULE if wide else usual_schedule(NARROW_ITERATIONS)
    first = problem.zeros if preselect == 1 else max(0, int((left - final / preselect) // size * size))
    removed = admm_removed(problem, first, schedule)
    rest = problem.zeros - first
    if rest:
        removed = removed | eliminate_survivors(problem, problem.candidates & ~removed, rest)
    return problem.mask(removed)


def eliminate_survivors(problem: Problem, kept: Tensor, zeros: int) -> Tensor:
    """The ``zeros`` weights that exact OBS removes of those in ``kept``, both (rows, columns).

    Each row starts from the least-squares optimum of its kept weights. Rows are batched by how many these are.
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
    dtype = search_dtype(problem)
    hessian, pull = with_border(problem.hessian.to(dtype)), pull.to(dtype)
    order = torch.zeros(rows, steps, dtype=torch.long, device=kept.device)
    loss = problem.weight.new_full((rows, steps), float("inf"))
    last = rows
    while last > 0 and count[last - 1]:
        width = count[last - 1]
        batch = ranked[max(0, last - max(1, BATCH_ELEMENTS // width**2)) : last]
        places, filled = survivors(kept[batch], width)
        G = inverse(subsystems(hessian, problem.owner[batch], places, filled), problem.damping)
        w = (G @ (pull[batch].gather(1, places) * filled)[..., None])[..., 0]
        found, cost = eliminate(w, G, filled, block=size)
        order[batch, : found.shape[1]] = places.gather(1, found * size) // size
        loss[batch, : found.shape[1]] = cost.to(loss)
        last -= len(batch)
    return pool(order, loss, problem, zeros)
