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
from sbc_plugin.core.pruning.dual_elimination import DualState, Places
from sbc_plugin.core.pruning.primal_dual import DualHessian, Hessian, PrimalHessian

STEPS = 256  # the most rounds in which a group's channels are ordered
PENDING = 256  # columns that go before what is left of an inverse is computed
GAP = 1e-30  # between scores that would be ties at 0; not denormal, which may be flushed to 0


@dataclass(frozen=True)
class Reader:
    """Rows that read channels through one Hessian.

    Attributes:
        weight: (rows, columns), each row scaled by how much it counts.
        hessian: (columns, columns), damped, positive definite; a matrix, or in either form.
        channel: (columns,), the channel that feeds each column; -1 for columns that stay.
        row_channel: (rows,), the channel that takes the row with it; -1 for rows that stay.
    """

    weight: Tensor
    hessian: Tensor | Hessian
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
    states = [_state(reader, channels) for reader in readers]
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
    states = [_state(reader, channels) for reader in readers]
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


def without_columns(weight: Tensor, hessian: Tensor | Hessian, removed: Tensor, damping: float | None = None) -> Tensor:
    """The weight (rows, columns) with 0 in the removed columns and the others at their least-squares optimum.

    All rows lose the same columns: ``W_K' = W_K + W_P H_PK H_KK^-1``, one factorisation for all. Source: equation 3.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns), damped; a matrix, or in either form.
        removed: (columns,), bool.
        damping: named in the error message.

    >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> without_columns(torch.ones(1, 2), hessian, torch.tensor([False, True])).tolist()
    [[1.5, 0.0]]

    Raises:
        SingularHessianError: the Hessian of the kept columns is not positive definite.
    """
    return _in_a_form(hessian).without_columns(weight, removed, damping)


def _in_a_form(hessian: Tensor | Hessian) -> Hessian:
    return PrimalHessian(hessian) if isinstance(hessian, Tensor) else hessian


def _state(reader: Reader, channels: int) -> "_State | DualState":
    hessian = _in_a_form(reader.hessian)
    places = Places(reader.channel, reader.row_channel, channels, hessian.like.device)
    if isinstance(hessian, DualHessian):
        return DualState(reader.weight, hessian, places)
    return _State(reader.weight, hessian.matrix, places)


class _State:
    """A reader while channels are taken away from it.

    Only columns that channels feed are held. The inverse is held as a matrix less the product of a narrow one with
    itself, because changing all of it in every round would cost more than everything else.
    """

    def __init__(self, weight: Tensor, hessian: Tensor, places: Places) -> None:
        self.places = places
        self.weight = weight.to(hessian)[:, places.fed]
        self.inverse = inverse(hessian)[places.fed][:, places.fed]
        self.pending = self.inverse[:, :0]  # the inverse is self.inverse - self.pending @ self.pending.mT
        self.blocks = self.inverse[places.columns[:, :, None], places.columns[:, None, :]]

    def losses(self, remaining: Tensor) -> Tensor:
        """Equation 4 for each channel of ``remaining``, by one batched Cholesky factorisation."""
        if not self.weight.shape[1]:  # no channel feeds it, or none that is left
            return remaining.new_zeros(len(remaining), dtype=torch.float64)
        places = self.places
        remaining = remaining.to(places.columns.device)
        columns, filled = places.columns[remaining], places.filled[remaining]
        factor = places.factors(self.blocks, remaining)
        if columns.shape[1] == 1:
            return (self._squares()[columns[:, 0]] * filled[:, 0] / factor[:, 0, 0].square() / 2).cpu().double()
        weight = self.weight.mT[columns] * filled[..., None]  # (channels, width, rows)
        if places.loses_rows:
            weight = weight * (remaining[:, None] != places.row_channel)[:, None, :]
        solved: Tensor = torch.linalg.solve_triangular(factor, weight, upper=False)
        losses: Tensor = solved.square().sum((1, 2)) / 2
        return losses.cpu().double()

    def _squares(self) -> Tensor:
        """Where each channel feeds one column: the sum of squares of each column, without the rows that go with it."""
        weight, places = self.weight, self.places
        if places.loses_rows:
            rows = (places.row_channel >= 0).nonzero()[:, 0]
            rows = rows[places.filled[places.row_channel[rows], 0]]
            weight = weight.clone()
            weight[rows, places.columns[places.row_channel[rows], 0]] = 0.0
        return weight.square().sum(0)

    def remove(self, channels: Tensor) -> None:
        """Apply equations 3 and 5; rows that go with the channels no longer count."""
        places = self.places
        channels = channels.to(places.columns.device)
        chosen = places.columns[channels][places.filled[channels]]
        if len(chosen):
            columns = self.inverse[:, chosen] - self.pending @ self.pending[chosen].mT
            factor = cholesky(columns[chosen])
            step = torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT  # inverse -= step @ step.mT
            pull = torch.linalg.solve_triangular(factor.mT, self.weight[:, chosen], upper=True, left=False)
            self.weight -= pull @ step.mT
            self.weight[:, chosen] = 0.0
            own = step[places.columns]
            self.blocks -= own @ own.mT
            self.pending = torch.cat([self.pending, step], dim=1)
            places.filled[channels] = False
            if self.pending.shape[1] >= PENDING:
                self._settle()
        if places.loses_rows:
            self.weight[torch.isin(places.row_channel, channels)] = 0.0

    def _settle(self) -> None:
        """Change the inverse, and keep the columns that are left."""
        kept = self.places.left()
        pending = self.pending[kept]
        self.inverse = self.inverse[kept][:, kept].addmm_(pending, pending.mT, alpha=-1)
        self.pending, self.weight = pending[:, :0], self.weight[:, kept]
