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
