"""Channels that go one after the other from a reader whose Hessian is in dual form.

Notation: X (n, columns), R and S as in :mod:`.primal_dual`, W (rows, columns). What the rows have become is
``W + A X R^-1`` with A (rows, n), because least squares moves each row along the samples. So neither the inverse nor
the weights change when columns go, only A and S do, and of the weights no more is needed than the products of columns
that belong to the same channel.
"""

import torch
from torch import Tensor

from sbc_plugin.core.hessian import cholesky
from sbc_plugin.core.pruning.primal_dual import DualHessian

FULL = 0.875  # with fewer of the columns left, the others are dropped
CHUNK = 1024  # columns that are moved at once


class Places:
    """Which columns of a reader each channel feeds, padded to the same width.

    Args:
        channel: (columns,), the channel that feeds each column; -1 for columns that stay.
        row_channel: (rows,), the channel that takes the row with it; -1 for rows that stay.
        channels: how many there are.
        device: where the tensors shall be.

    Attributes:
        fed: (k,), the columns that channels feed, sorted by channel.
        columns: (channels, width), places in ``fed``; 0 where it is not filled.
        filled: (channels, width), bool.
        row_channel: as given.
        loses_rows: whether any row goes with a channel.
    """

    def __init__(self, channel: Tensor, row_channel: Tensor, channels: int, device: torch.device) -> None:
        fed = (channel >= 0).nonzero()[:, 0]
        fed = fed[channel[fed].argsort(stable=True)]
        counts = channel[fed].bincount(minlength=channels)
        place = torch.arange(int(counts.max()) if channels else 0, device="cpu").expand(channels, -1)
        self.fed = fed.to(device)
        self.filled = (place < counts[:, None]).to(device)
        self.columns = ((counts.cumsum(0) - counts)[:, None] + place).to(device) * self.filled
        self.row_channel = row_channel.to(device)
        self.loses_rows = bool((self.row_channel >= 0).any())

    def left(self) -> Tensor:
        """The places that are filled, rising; from now on they are numbered so."""
        kept = self.columns[self.filled]
        self.columns = (self.filled.flatten().cumsum(0).reshape(self.columns.shape) - 1) * self.filled
        return kept

    def factors(self, blocks: Tensor, remaining: Tensor) -> Tensor:
        """Cholesky factors of the blocks (channels, width, width) of remaining channels; the identity on padding.

        Raises:
            SingularHessianError: a block is not positive definite.
        """
        filled = self.filled[remaining]
        block = blocks[remaining] * (filled[:, :, None] & filled[:, None, :])
        block.diagonal(dim1=1, dim2=2).add_((~filled).to(block))
        return cholesky(block)


class DualState:
    """A reader while channels are taken away from it.

    Args:
        weight: (rows, columns).
        hessian: of the reader.
        places: of its columns.
    """

    def __init__(self, weight: Tensor, hessian: DualHessian, places: Places) -> None:
        self.places, fed = places, places.fed
        self.weight = weight.to(hessian.ridge).mT.index_select(0, fed)  # W^T of columns that channels feed
        self.ridge = hessian.ridge[fed]
        self.outer = hessian.outer()  # S
        self.scaled = (hessian.projected()[0][:, fed] / self.ridge).mT.contiguous()  # (X R^-1)^T
        self.moved = self.scaled.new_zeros(len(self.outer), len(weight))  # A^T
        self.rows = torch.ones(len(weight), dtype=torch.bool, device=fed.device)  # that are left
        # The inverse, and W^T W, of the columns of each channel.
        columns = places.columns
        solved = torch.cholesky_solve(self.scaled.mT, cholesky(self.outer)).mT
        self.blocks = -self.scaled[columns] @ solved[columns].mT
        self.blocks.diagonal(dim1=1, dim2=2).add_(1 / self.ridge[columns])
        self.products = torch.cat([self._products(part) for part in columns.split(max(1, CHUNK // columns.shape[1]))])
        # C, for which the products of what W has become are W^T W + (X R^-1)^T C + C^T X R^-1; held as C^T.
        self.cross = torch.zeros_like(self.scaled)

    def losses(self, remaining: Tensor) -> Tensor:
        """Equation 4 for each channel of ``remaining``, by one batched Cholesky factorisation."""
        if not len(self.weight):  # no channel feeds it, or none that is left
            return remaining.new_zeros(len(remaining), dtype=torch.float64)
        remaining = remaining.to(self.places.columns.device)
        columns, filled = self.places.columns[remaining], self.places.filled[remaining]
        factor = self.places.factors(self.blocks, remaining)
        half = self.scaled[columns] @ self.cross[columns].mT
        products = self.products[remaining] + half + half.mT
        if self.places.loses_rows:
            products -= self._of_own_rows()[remaining]
        products *= filled[:, :, None] & filled[:, None, :]
        half = torch.linalg.solve_triangular(factor, products, upper=False)
        solved = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        losses: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0.0) / 2
        return losses.cpu().double()

    def remove(self, channels: Tensor) -> None:
        """Apply equations 3 and 5; rows that go with the channels no longer count."""
        places = self.places
        channels = channels.to(places.columns.device)
        chosen = places.columns[channels][places.filled[channels]]
        if len(chosen):
            mine = self.scaled[chosen]
            solved = torch.cholesky_solve(mine.mT, cholesky(self.outer))
            factor = cholesky(torch.diag(1 / self.ridge[chosen]) - mine @ solved)
            along = torch.linalg.solve_triangular(factor, solved.mT, upper=False)  # (chosen, n)
            pull = (self.weight[chosen] + mine @ self.moved) * self.rows
            pull = torch.linalg.solve_triangular(factor, pull, upper=False)
            step = self.scaled @ along.mT  # the inverse loses step @ step.mT, the weights gain step @ pull
            own = step[places.columns]
            self.blocks -= own @ own.mT
            turn = pull @ self.moved.mT + (pull @ pull.mT) @ along / 2
            self.cross.addmm_((pull @ self.weight.mT).mT + self.scaled @ turn.mT / 2, along)
            self.cross.addmm_(step, turn, alpha=0.5)
            self.moved.addmm_(along.mT, pull)
            self.outer -= (mine.mT * self.ridge[chosen]) @ mine
            places.filled[channels] = False
        if places.loses_rows:
            self._remove_rows(torch.isin(places.row_channel, channels) & self.rows)
        if places.filled.sum() < FULL * len(self.weight):
            self._drop()

    def _products(self, columns: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """``W^T W`` over these rows, (k, width, width), of columns (k, width)."""
        weight = self.weight[:, rows][columns]
        return weight @ weight.mT

    def _of_own_rows(self) -> Tensor:
        """What each channel's products owe to rows that go with it, (channels, width, width)."""
        rows = ((self.places.row_channel >= 0) & self.rows).nonzero()[:, 0]
        owner = self.places.row_channel[rows]
        columns = self.places.columns[owner]
        moved = self.scaled[columns] @ self.moved[:, rows].mT[:, :, None]
        weight = self.weight[columns, rows[:, None]] + moved[..., 0]
        return torch.zeros_like(self.blocks).index_add_(0, owner, weight[:, :, None] * weight[:, None, :])

    def _remove_rows(self, rows: Tensor) -> None:
        if rows.any() and len(self.weight):
            moved = self.moved[:, rows]
            self.cross -= self.weight[:, rows] @ moved.mT + self.scaled @ (moved @ moved.mT) / 2
            self.products -= self._products(self.places.columns, rows)
            self.moved[:, rows] = 0.0
            self.rows &= ~rows

    def _drop(self) -> None:
        """Keep the columns that are left; the weights in place, because there may be gigabytes of them."""
        kept = self.places.left()
        self.scaled, self.cross, self.ridge = self.scaled[kept], self.cross[kept], self.ridge[kept]
        for number, part in enumerate(kept.split(CHUNK)):
            self.weight[number * CHUNK : number * CHUNK + len(part)] = self.weight[part]
        self.weight = self.weight[: len(kept)]
