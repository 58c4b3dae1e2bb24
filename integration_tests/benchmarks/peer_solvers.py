"""Pruning solvers of others, written from their papers for one Hessian of all rows, in float32 as published.

Each takes a weight (rows, columns), the damped Hessian (columns, columns) and a budget, and gives the new weight, or
None where it would take longer than ``LIMIT``. Those that only find a mask leave the kept weights to the caller.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 120.0  # seconds of the processor that a solver may take
BLOCK = 128  # columns of SparseGPT's blocks
FIRST_PENALTY, ITERATIONS, EVERY, PCG_STEPS = 0.1, 300, 3, 10  # of ALPS


@dataclass(frozen=True)
class Budget:
    """What is asked for.

    Attributes:
        zeros: of the layer.
        two_of_four: two zeros in each four columns of a row, instead of any place.
    """

    zeros: int
    two_of_four: bool = False

    def largest(self, score: Tensor) -> Tensor:
        """The mask (rows, columns), True = kept, of the largest scores."""
        if self.two_of_four:
            grouped = score.view(len(score), -1, 4)
            return torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, grouped.topk(2).indices, True).flatten(1)
        smallest = score.flatten().argsort(stable=True)[: self.zeros]
        return torch.ones(score.numel(), dtype=torch.bool).scatter_(0, smallest, False).view_as(score)


def greedy(weight: Tensor, hessian: Tensor, budget: Budget, step: int) -> Tensor | None:
    """The mask of greedy OBS, row by row, ``step`` weights at once; the pooled losses decide how many a row gives.

    1 weight is ExactOBS (Frantar and Alistarh, arXiv 2208.11580), ``ceil(columns / 256)`` the order of Shi et al.
    (arXiv 2506.03996). The inverse is downdated for each row.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).float()
    rows, columns = weight.shape
    order, price = torch.zeros(rows, columns, dtype=torch.long), torch.full((rows, columns), float("inf"))
    started = time.process_time()
    for row in range(rows):
        G, w, left = inverse.clone(), weight[row].clone(), torch.ones(columns, dtype=torch.bool)
        room, at = torch.full((columns // 4,), 2), 0
        while left.any():
            score = (w.square() / G.diagonal()).where(left, float("inf"))
            P = score.topk(min(step, int(left.sum())), largest=False).indices
            solved = torch.linalg.solve(G[P][:, P], torch.cat([w[P, None], G[P]], 1))
            price[row, at : at + len(P)] = (w[P] * solved[:, 0]).sum() / 2 / len(P)
            order[row, at : at + len(P)] = P
            w -= solved[:, 0] @ G[P]
            G.addmm_(G[:, P], solved[:, 1:], alpha=-1.0)
            left[P], at = False, at + len(P)
            if budget.two_of_four:
                room.scatter_add_(0, P // 4, -torch.ones_like(P))
                left &= (room > 0).repeat_interleave(4)
        spent = time.process_time() - started
        if spent / (row + 1) * rows > LIMIT:
            return None
    if budget.two_of_four:
        chosen = price.isfinite()
    else:
        ranking = price.cummax(1).values.flatten().argsort(stable=True)
        chosen = torch.zeros(rows * columns, dtype=torch.bool)
        chosen[ranking[: budget.zeros]] = True
        chosen = chosen.view(rows, columns)
    mask = torch.ones(rows, columns, dtype=torch.bool)
    mask[chosen.nonzero()[:, 0], order[chosen]] = False
    return mask


def sparsegpt(weight: Tensor, hessian: Tensor, budget: Budget) -> Tensor:
    """The weight by SparseGPT (Frantar and Alistarh, arXiv 2301.00774): masks by block, errors pushed to the right."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.float()))
    U = torch.linalg.cholesky(inverse, upper=True)
    w, columns = weight.clone(), weight.shape[1]
    given = 0
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, errors = w[:, first:last].clone(), torch.zeros(len(w), last - first)
        due = round(budget.zeros * last / columns) - given
        given += due
        score = block.square() / U.diagonal()[first:last].square()
        kept = Budget(due).largest(score)
        for column in range(first, last):
            j = column - first
            if budget.two_of_four and column % 4 == 0:
                now = block[:, j : j + 4].square() / U.diagonal()[column : column + 4].square()
                kept[:, j : j + 4] = Budget(0, True).largest(now)
            errors[:, j] = block[:, j].where(~kept[:, j], 0.0) / U[column, column]
            block[:, j:] -= errors[:, j, None] * U[column, column:last]
            block[:, j] = block[:, j].where(kept[:, j], 0.0)
        w[:, first:last] = block
        w[:, last:] -= errors @ U[first:last, last:]
    return w


def alps(weight: Tensor, hessian: Tensor, budget: Budget) -> Tensor:
    """The weight by ALPS (Meng et al., arXiv 2406.07831): ADMM whose penalty grows, then conjugate gradients."""
    scale = hessian.diagonal().sqrt()
    H = (hessian / scale / scale[:, None]).float()
    W = weight * scale.float()
    values, Q = torch.linalg.eigh(H)
    pull, D, V, penalty = W @ H, W.clone(), torch.zeros_like(W), FIRST_PENALTY
    kept, before, total = budget.largest(D.square()), None, weight.numel() - budget.zeros
    for iteration in range(ITERATIONS):
        X = ((pull - V + penalty * D) @ Q / (values + penalty)) @ Q.T
        kept = budget.largest((X + V / penalty).square())
        D = (X + V / penalty).where(kept, 0.0)
        V = V + penalty * (X - D)
        if iteration % EVERY == EVERY - 1:
            changed = total if before is None else int((kept != before).sum())
            if changed == 0:
                break
            penalty *= 1.3 if changed >= 0.1 * total else 1.2 if changed >= 0.005 * total else 1.1
            before = kept
    X = D  # conjugate gradients on the support; the diagonal of H is 1 here, and the preconditioner that of Jacobi
    residual = (pull - X @ H).where(kept, 0.0)
    direction = residual
    for _ in range(PCG_STEPS):
        product = (direction @ H).where(kept, 0.0)
        size = residual.square().sum()
        if size == 0:
            break
        step = size / (direction * product).sum()
        X, residual = X + step * direction, residual - step * product
        direction = residual + residual.square().sum() / size * direction
    return X / scale.float()
