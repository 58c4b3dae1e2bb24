"""The order in which a layer gives up all its weights, from which masks of any sparsity are cut, each within the last.

A small layer's order is that of exact OBS. It does not depend on how many zeros are asked for, so it is found once.
A large layer's masks are found by ADMM at a few sparsities, each starting from the refitted weights of the one before;
between two of them, weights go in the order of what each alone would cost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.obs import elimination
from sbc_plugin.core.pruning.problem import pose
from sbc_plugin.core.pruning.prune import is_small, prune

LEVELS = (0.5, 0.75, 0.88, 0.94, 0.97)  # fractions of zeros at which ADMM looks


def removal_order(weight: Tensor, hessian: LayerHessian, levels: Sequence[float] = LEVELS) -> Tensor:
    """The place of each weight in the order in which a layer's weights go, int32 (rows, columns), from 0.

    ``order >= zeros`` is the mask, True = kept, with exactly ``zeros`` zeros. Weights that are 0 come first.

    Args:
        weight: (rows, columns); rows scaled as they count.
        hessian: of the layer.
        levels: fractions of zeros at which a large layer's masks are searched, ascending.

    Raises:
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> removal_order(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), LayerHessian(torch.eye(2))).tolist()
    [[3, 1], [0, 2]]
    """
    weight = weight.to(hessian.matrix)
    rows, columns = weight.shape
    if not is_small(rows, columns):
        return _by_levels(weight, hessian, levels)
    # 1. What costs nothing: zeros first, then the smallest on dead columns.
    problem = pose(weight, hessian, rows * columns)
    place = torch.full_like(weight, rows * columns, dtype=torch.int64).flatten()
    free = problem.removed.flatten().nonzero()[:, 0]
    free = free[weight.flatten()[free].abs().argsort(stable=True)]
    place[free] = torch.arange(len(free), device=place.device)
    # 2. Then the eliminations of all rows, cheapest first; of one row each after those before it.
    if problem.zeros:
        order, loss = elimination(problem, step=1)
        ranking = loss.cummax(1).values.flatten().argsort(stable=True)
        ranking = ranking[loss.flatten()[ranking].isfinite()]
        row = ranking // loss.shape[1]
        column = problem.columns[order.flatten()[ranking]]
        place[row * columns + column] = len(free) + torch.arange(len(ranking), device=place.device)
    return place.view(rows, columns).to(torch.int32)


def first_in_rows(order: Tensor, most: int) -> Tensor:
    """The same order, but first of all each row goes down to ``most`` weights; int32 (rows, columns).

    >>> first_in_rows(torch.tensor([[3, 1], [0, 2]]), most=1).tolist()
    [[3, 1], [0, 2]]
    >>> first_in_rows(torch.tensor([[0, 1, 2], [3, 4, 5]]), most=2).tolist()
    [[0, 2, 3], [1, 4, 5]]
    """
    in_row = order.argsort(dim=1).argsort(dim=1)
    later = (in_row >= order.shape[1] - most).to(torch.int64)
    return (later * order.numel() + order).flatten().argsort().argsort().view(order.shape).to(torch.int32)


def _by_levels(weight: Tensor, hessian: LayerHessian, levels: Sequence[float]) -> Tensor:
    place = torch.zeros_like(weight, dtype=torch.int64)
    left, now = torch.ones_like(weight, dtype=torch.bool), weight
    curvature = (1 / hessian.inverse().diagonal(dim1=-2, dim2=-1)).reshape(-1, weight.shape[1])
    curvature = curvature[hessian.owner(len(weight))]
    counts = [round(level * weight.numel()) for level in levels]
    for zeros in [*counts, weight.numel()]:
        kept, after = torch.zeros_like(left), now
        if zeros < weight.numel():
            solution = prune(now, hessian, max(zeros, int((now == 0).sum())), solver="admm")
            kept, after = solution.mask & left & (solution.weight != 0), solution.weight
        gone = (left & ~kept).flatten().nonzero()[:, 0]
        cost = (now.square() * curvature).flatten()[gone]
        start = int((~left).sum())
        place.view(-1)[gone[cost.argsort(stable=True)]] = start + torch.arange(len(gone), device=place.device)
        left, now = kept, after
    return place.to(torch.int32)
