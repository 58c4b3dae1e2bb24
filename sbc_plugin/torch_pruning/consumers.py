"""The layers that read channels: their Hessians, what a channel feeds in them, and how they shrink with it.

Each Hessian has one more column than the weight: the constant 1, filtered as the inputs are. Where the layer has a
bias, that column belongs to it, so that the constant part of a removed channel moves there in the same least squares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbc_plugin.core.matrix_form import WEIGHTED, Transposed
from sbc_plugin.core.pruning.channels import Reader
from sbc_plugin.core.pruning.primal_dual import Hessian
from sbc_plugin.errors import CalibrationError, UnsupportedModelError, in_layer
from sbc_plugin.layers import Part


@dataclass
class Consumer:
    """One layer whose inputs may lose channels; it changes with the model as channels are cut.

    Attributes:
        name: of the layer.
        parts: its weights, columns side by side.
        hessians: each of columns + 1, float64, damped; 1 on the diagonal of silent columns.
        silent: (hessians, columns + 1), columns that nothing is known about.
        owner: (rows,), the Hessian of each row.
        scale: (rows,), gain over the square root of the layer's total, so that its losses are fractions of the total.
        damping: that the Hessian has, named in messages.
    """

    name: str
    parts: tuple[Part, ...]
    hessians: list[Hessian]
    silent: Tensor
    owner: Tensor
    scale: Tensor
    damping: float

    @property
    def groups(self) -> int:
        """How many groups the convolution has; 1 for other layers."""
        return self.parts[0].form.groups

    @property
    def bias(self) -> Tensor | None:
        """The bias, which takes the constant part of removed channels; None if the layer has none."""
        biases = (getattr(part.module, "bias", None) for part in self.parts)
        return next((bias for bias in biases if isinstance(bias, Tensor)), None)

    @property
    def hessian(self) -> Tensor:
        """The Hessians as matrices, (hessians, columns + 1, columns + 1)."""
        return torch.stack([hessian.matrix for hessian in self.hessians])

    def weight(self) -> Tensor:
        """(rows, columns + 1), float64, the bias last; 0 there without one.

        Raises:
            CalibrationError: the layer is not as wide as when it was calibrated.
        """
        blocks = [matrix(part) for part in self.parts]
        rows, columns = blocks[0].shape[0], sum(block.shape[1] for block in blocks)
        if (rows, columns + 1) != self._shape:
            raise CalibrationError(
                f"layer {self.name!r} is {rows} x {columns}, its statistics are for {len(self.owner)} x "
                f"{self._shape[1] - 1}; something else than the pruner has cut it: calibrate again"
            )
        bias = blocks[0].new_zeros(rows) if self.bias is None else self.bias.detach()
        weight = torch.empty(self._shape, dtype=self.scale.dtype, device=self.scale.device)
        return torch.cat([*blocks, bias[:, None]], dim=1, out=weight)

    @property
    def _shape(self) -> tuple[int, int]:
        """Rows, and columns + 1, that the statistics are for."""
        return len(self.owner), self.silent.shape[1]

    def write(self, weight: Tensor) -> None:
        """Put (rows, columns + 1) into the model, in place."""
        with torch.no_grad():
            start = 0
            for part in self.parts:
                block = matrix(part)
                new = weight[:, start : start + block.shape[1]].to(block)
                part.tensor.copy_(_module_shape(part, new))
                start += block.shape[1]
            if self.bias is not None:
                self.bias.copy_(weight[:, -1].to(self.bias))

    def columns(self, part: int, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Input channels (n,) of a part in the matrix: their conv group (n,) and their columns in it (n, positions)."""
        widths = [matrix(p).shape[1] for p in self.parts]
        positions = self.parts[part].form.positions
        local = widths[part] // positions
        first = sum(widths[:part]) + (channels % local) * positions
        return channels // local, first[:, None] + torch.arange(positions, device=channels.device)

    @property
    def _fitted(self) -> slice:
        """The columns that least squares move: the constant is among them where the layer has a bias."""
        return slice(self._shape[1] if self.bias is not None else self._shape[1] - 1)

    def readers(self, fed: Sequence[tuple[int, Tensor, Tensor]], row_channel: Tensor) -> list[Reader]:
        """The layer as :func:`sbc_plugin.core.pruning.channels.elimination_scores` sees it.

        Args:
            fed: (part, its input channels (n,), the group's channel that each belongs to (n,)).
            row_channel: (rows,), the channel that takes the row with it; -1 for rows that stay.

        Returns:
            One reader for each Hessian that some channel feeds.
        """
        weight = self.weight().mul_(self.scale[:, None])
        channel = torch.full((self.groups, self._shape[1]), -1, device="cpu")
        for part, inputs, owners in fed:
            group, columns = self.columns(part, inputs)
            channel[group[:, None], columns] = owners[:, None].expand_as(columns)
        found, fit = [], self._fitted
        for number, hessian in enumerate(self.hessians):
            rows = all_or(self.owner == number)
            mine = channel[number % self.groups].where(~self.silent[number].cpu(), -1)
            mine[-1] = -1
            if len(self.owner[rows]) and (mine >= 0).any():
                own = row_channel.to(self.owner.device)[rows].cpu()
                found.append(Reader(weight[rows, fit], hessian.part(fit), mine[fit], own))
        return found

    def remove(self, inputs: Sequence[tuple[int, Tensor]], rows: Tensor, compensate: bool = True) -> Callable[[], None]:
        """Work out what losing inputs means; nothing changes until the function that is returned is called.

        That moves the weights that stay, by equation 3, and shrinks the statistics. Cutting is left to the host.

        Args:
            inputs: (part, its input channels that go).
            rows: (rows,), bool, rows that go with them.
            compensate: False only shrinks the statistics.

        Raises:
            UnsupportedModelError: a grouped convolution would lose other inputs in one group than in another.
            SingularHessianError: the Hessian of the kept columns is not positive definite.
        """
        removed = torch.zeros(self.groups, self._shape[1], dtype=torch.bool, device="cpu")
        for part, channels in inputs:
            group, columns = self.columns(part, channels)
            removed[group[:, None], columns] = True
        if not torch.equal(removed, removed[:1].expand_as(removed)):
            raise UnsupportedModelError(
                f"layer {self.name!r}: its {self.groups} groups would lose different inputs, which cannot be cut; keep "
                "it whole with ignored_layers"
            )
        gone = removed[0].to(self.scale.device)
        weight = self.weight()
        moves = compensate and bool(gone.any())
        if moves:
            fit = self._fitted
            for number, hessian in enumerate(self.hessians):
                mine = all_or((self.owner == number) & ~rows.to(self.owner.device))
                with in_layer(self.name):
                    weight[mine, fit] = hessian.part(fit).without_columns(weight[mine, fit], gone[fit], self.damping)

        def apply() -> None:
            if moves:
                self.write(weight)
            keep, stay = ~gone, ~rows.to(self.owner.device)
            self.hessians = [hessian.part(keep) for hessian in self.hessians]
            self.silent = self.silent[:, keep]
            self.owner, self.scale = self.owner[stay], self.scale[stay]

        return apply


def all_or(rows: Tensor) -> Tensor | slice:
    """The rows (n,), bool; as a slice, which copies no weights, where these are all."""
    return slice(None) if rows.all() else rows


def matrix(part: Part) -> Tensor:
    """A part's weight as (rows, columns), detached, as large as it is now."""
    return part.form.as_matrix(part.tensor.detach())


def _module_shape(part: Part, weight: Tensor) -> Tensor:
    return part.form.as_weight(weight, part.tensor.shape)


def is_depthwise(module: nn.Module) -> bool:
    """Whether torch-pruning cuts inputs and outputs of this convolution together."""
    if not isinstance(module, WEIGHTED) or isinstance(module, nn.Linear) or module.groups == 1:
        return False
    outputs = module.weight.shape[1] * module.groups if isinstance(module, Transposed) else len(module.weight)
    return module.groups == outputs
