"""Removing whole channels: what that costs the layers that read them, the best order, and how those make up for it.

A channel feeds a set ``P`` of columns of each layer that reads it: one column of a Linear, the kernel positions of a
convolution, all positions after flattening. Without them the best that a row ``w`` can do costs
``1/2 w_P^T (G_PP)^-1 w_P``, ``G = H^-1``. Source: docs/theory.md, equations 3 to 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.core.hessian import cholesky, inverse

STEPS = 256  # the most rounds in which a group's channels are ordered
GAP = 1e-30  # between scores that would be ties at 0; not denormal, which may be flushed to 0


@dataclass(frozen=True)
class Reader:
    """Rows that read channels through one Hessian.

    Attributes:
        weight: (rows, columns), each row scaled by how much it counts.
        hessian: (columns, columns), damped, positive definite.
        channel: (columns,), the channel that feeds each column; -1 for columns that stay.
        row_channel: (rows,), the channel that takes the row with it; -1 for rows that stay.
    """

    weight: Tensor
    hessian: Tensor
    channel: Tensor
    row_channel: Tensor


def channel_losses(readers: Sequence[Reader], channels: int) -> Tensor:
    """What each channel costs when it goes alone, (channels,): equation 4 summed over readers and rows.

    Args:
        readers: all that read the channels.
        channels: how many there are.

    >>> hessian = torch.diag(torch.tensor([2.0, 8.0], dtype=torch.float64))
    >>> reader = Reader(torch.tensor([[1.0, 2.0]]), hessian, torch.tensor([0, 1]), torch.tensor([-1]))
    >>> channel_losses([reader], 2).round(decimals=6).tolist()
    [1.0, 16.0]

    Raises:
        SingularHessianError: a Hessian is not positive definite.
    """
    states = [_State(reader, channels) for reader in readers]
    remaining = torch.arange(channels, device="cpu")
    return sum((state.losses(remaining) for state in states), remaining.new_zeros(channels, dtype=torch.float64))


def elimination_scores(readers: Sequence[Reader], channels: int, limit: int | None = None) -> Tensor:
    """A score for each channel, (channels,), that rises in the order in which they are best removed one by one.

    Channels that stand in for each other cost nothing alone and much together. So the cheapest one goes, the others
    move (equation 3), the Hessian shrinks (equation 5), and the costs of the rest are computed anew. The score is the
    cost at that moment, or just above the largest score before it if that is more: no two scores are equal, and
    different layers can share a threshold.

    Args:
        readers: all that read the channels.
        channels: how many there are.
        limit: stop after this many; those left keep the cost that they have then. None orders all.

    >>> hessian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> twins = Reader(torch.ones(1, 3), hessian + 1e-6 * torch.eye(3), torch.arange(3), torch.tensor([-1]))
    >>> channel_losses([twins], 3).round(decimals=3).tolist()
    [0.0, 0.0, 0.5]
    >>> elimination_scores([twins], 3).round(decimals=3).tolist()
    [0.0, 2.0, 0.5]

    Raises:
        SingularHessianError: a Hessian is not positive definite.
    """
    states = [_State(reader, channels) for reader in readers]
    remaining = torch.arange(channels, device="cpu")
    scores = remaining.new_zeros(channels, dtype=torch.float64)
    stop = channels if limit is None else min(limit, channels)
    at_once = -(-channels // STEPS)
    floor, removed = 0.0, 0
    while len(remaining):
        losses = sum(
            (state.losses(remaining) for state in states), remaining.new_zeros(len(remaining), dtype=torch.float64)
        )
        done = removed >= stop
        order = losses.argsort(stable=True)[: len(remaining) if done else at_once]
        for loss, channel in zip(losses[order].tolist(), remaining[order].tolist(), strict=True):
            scores[channel] = floor = max(loss, floor + max(GAP, 1e-12 * floor))
        if done:
            break
        chosen, left = remaining[order], remaining.new_ones(len(remaining), dtype=torch.bool)
        left[order] = False
        for state in states:
            state.remove(chosen)
        remaining, removed = remaining[left], removed + len(order)
    return scores


def without_columns(weight: Tensor, hessian: Tensor, removed: Tensor, damping: float | None = None) -> Tensor:
    """The weight (rows, columns) with 0 in the removed columns and the others at their least-squares optimum.

    All rows lose the same columns: ``W_K' = W_K + W_P H_PK H_KK^-1``, one factorisation for all. Source: equation 3.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns), damped.
        removed: (columns,), bool.
        damping: named in the error message.

    >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> without_columns(torch.ones(1, 2), hessian, torch.tensor([False, True])).tolist()
    [[1.5, 0.0]]

    Raises:
        SingularHessianError: the Hessian of the kept columns is not positive definite.
    """
    kept = ~removed
    result = weight.to(hessian).clone()
    if removed.any() and kept.any():
        factor = cholesky(hessian[kept][:, kept], damping)
        pull = hessian[kept][:, removed] @ result[:, removed].mT
        result[:, kept] += torch.cholesky_solve(pull, factor).mT
    result[:, removed] = 0.0
    return result.to(weight)


class _State:
    """A reader while channels are taken away from it."""

    def __init__(self, reader: Reader, channels: int) -> None:
        self.weight = reader.weight.to(reader.hessian).clone()
        self.inverse = inverse(reader.hessian)
        device = reader.hessian.device
        self.row_channel = reader.row_channel.to(device)
        fed = [(reader.channel == channel).nonzero()[:, 0].to(device) for channel in range(channels)]
        width = max((len(columns) for columns in fed), default=0)
        self.columns = torch.zeros(channels, width, dtype=torch.long, device=device)
        self.filled = torch.zeros(channels, width, dtype=torch.bool, device=device)
        for channel, columns in enumerate(fed):
            self.columns[channel, : len(columns)] = columns
            self.filled[channel, : len(columns)] = True

    def losses(self, remaining: Tensor) -> Tensor:
        """Equation 4 for each channel of ``remaining``, by one batched Cholesky factorisation."""
        if not self.columns.shape[1]:
            return remaining.new_zeros(len(remaining), dtype=torch.float64)
        columns, filled = (
            self.columns[remaining.to(self.columns.device)],
            self.filled[remaining.to(self.columns.device)],
        )
        block = self.inverse[columns[:, :, None], columns[:, None, :]] * (filled[:, :, None] & filled[:, None, :])
        block.diagonal(dim1=1, dim2=2).add_((~filled).to(block))  # the identity on padding
        weight = self.weight.mT[columns] * filled[..., None]  # (channels, width, rows)
        own = remaining.to(self.row_channel.device)[:, None] == self.row_channel
        weight = weight * ~own[:, None, :]
        solved: Tensor = torch.linalg.solve_triangular(cholesky(block), weight, upper=False)
        losses: Tensor = solved.square().sum((1, 2)) / 2
        return losses.cpu().double()

    def remove(self, channels: Tensor) -> None:
        """Apply equations 3 and 5; rows that go with the channels no longer count."""
        channels = channels.to(self.columns.device)
        chosen = self.columns[channels][self.filled[channels]]
        if len(chosen):
            factor = cholesky(self.inverse[chosen][:, chosen])
            step = torch.cholesky_solve(self.inverse[chosen], factor)
            self.weight -= self.weight[:, chosen] @ step
            self.inverse -= self.inverse[:, chosen] @ step
            self.weight[:, chosen] = 0.0
        self.weight[torch.isin(self.row_channel, channels)] = 0.0
