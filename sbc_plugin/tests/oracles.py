"""Slow and obvious ways to the numbers that the package computes fast; written from the equations, not from code."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gptq_by_elimination(
    weight: Tensor,
    hessian: Tensor,
    levels: Callable[[int, int], Tensor],
    mask: Tensor | None = None,
    *,
    damping: float = 0.01,
    groups: Sequence[int] | None = None,
    order: str = "descending",
) -> Tensor:
    """GPTQ row by row with the explicit inverse: fix one column, move the free ones, remove it from the inverse (5).

    ``levels(row, column)`` lists the values that this weight may take.
    """
    result = weight.clone()
    for r, row in enumerate(result):
        owner = r * len(hessian) // len(weight) if groups is None else groups[r]
        h = hessian if hessian.dim() == 2 else hessian[owner]
        diagonal = h.diagonal().tolist()
        order_of = sorted(range(len(row)), key=lambda j: -diagonal[j] if order == "descending" else 0)
        g = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype))
        for j in order_of:
            values = levels(r, j)
            target = values[(values - row[j]).abs().argmin()]
            if mask is not None and not mask[r, j]:
                target = torch.zeros_like(target)
            if diagonal[j] > 0:
                row -= g[:, j] / g[j, j] * (row[j] - target)
                g = g - g[:, j : j + 1] @ g[j : j + 1] / g[j, j]
            row[j] = target
            g[j], g[:, j] = 0.0, 0.0
    return result


def descent_by_trying(
    weight: Tensor,
    start: Tensor,
    hessian: Tensor,
    levels: Callable[[int, int], Tensor],
    mask: Tensor | None = None,
    *,
    damping: float = 0.01,
    groups: Sequence[int] | None = None,
    sweeps: int = 20,
) -> Tensor:
    """Coordinate descent row by row: put every value in the place of each weight and keep the one of least loss (8)."""
    result = start.clone()
    for r, row in enumerate(result):
        owner = r * len(hessian) // len(weight) if groups is None else groups[r]
        h = hessian if hessian.dim() == 2 else hessian[owner]
        damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
        for j in list(range(len(row))) * sweeps:
            if h[j, j] == 0 or (mask is not None and not mask[r, j]):
                continue
            tried = row.repeat(len(levels(r, j)), 1)
            tried[:, j] = levels(r, j)
            error = weight[r] - tried
            row[j] = levels(r, j)[(error @ damped * error).sum(1).argmin()]
    return result


def lamp_by_double_loop(weight: Tensor, exponent: float) -> list[float]:
    """LAMP score of each weight, straight from its definition."""
    sizes = [abs(value) for value in weight.flatten().tolist()]
    return [
        size**exponent / sum(other**exponent for other in sizes if other >= size) if size > 0 else 0.0 for size in sizes
    ]


def van_rossum_by_pairs(a: Tensor, b: Tensor, tau: float, dt: float) -> float:
    """Squared distance of two trains (T,) as a double sum over their spikes, with each pair's overlap."""
    steps = len(a)
    events = [(t, train[t].item() * sign) for train, sign in ((a, 1), (b, -1)) for t in range(steps) if train[t] != 0]
    total = 0.0
    for first, height in events:
        for second, other in events:
            overlap = sum(math.exp(-(2 * t - first - second) * dt / tau) for t in range(max(first, second), steps))
            total += height * other * overlap
    return total * dt / tau


def operations_by_loops(samples: Tensor, weight: Tensor, groups: Sequence[int]) -> int:
    """Products of a nonzero weight and a nonzero input, for ``samples`` (groups, n, columns), one by one."""
    return sum(
        bool(weight[row, column] != 0 and samples[groups[row], n, column] != 0)
        for row in range(weight.shape[0])
        for n in range(samples.shape[1])
        for column in range(weight.shape[1])
    )


def eliminate_by_lstsq(
    samples: Tensor, w: Tensor, size: int = 1, groups_of: int = 0, kept: int = 0
) -> tuple[list[int], list[float]]:
    """Exhaustive greedy elimination of one row: try every unit, solve again by least squares, give up the cheapest.

    Returns the order of the units (``size`` consecutive weights) and the increase of ``|X w - X w'|^2`` by each. With
    ``groups_of`` M, each group of M weights keeps ``kept``.
    """
    left, before = list(range(len(w) // size)), 0.0
    order: list[int] = []
    losses: list[float] = []
    while True:
        room = {p // groups_of for p in left} if groups_of else set()
        room = {g for g in room if sum(p // groups_of == g for p in left) > kept}
        allowed = [p for p in left if not groups_of or p // groups_of in room]
        if not allowed:
            return order, losses
        trials = []
        for p in allowed:
            rest = [unit * size + i for unit in left if unit != p for i in range(size)]
            miss = samples @ w
            if rest:
                miss = miss - samples[:, rest] @ torch.linalg.lstsq(samples[:, rest], miss).solution
            trials.append((float(miss @ miss), p))
        after, cheapest = min(trials)
        order.append(cheapest)
        losses.append(after - before)
        before = after
        left.remove(cheapest)
