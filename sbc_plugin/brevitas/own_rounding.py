"""Rounding by a Brevitas layer's own quantizer, for values that no grid of ours describes."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.brevitas.held_scales import values_of


class OwnRounding:
    """Rounds columns of a layer's weight as the layer's quantizer does, whose scales have to stay where they are.

    That takes floating-point formats (Fp8, MX), integers of more than 8 bits, and rounding rules other than to nearest,
    such as learned rounding. It is a :data:`~sbc_plugin.core.quantization.custom_rounding.RoundColumn`.

    Args:
        layer: of Brevitas, with a quantised weight.

    Attributes:
        wanted: (rows, columns), the weight with each rounded column as it was before it was rounded.
        column_by_column: whether the quantizer rounds a column alone as it does in the whole weight.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.wanted = layer.weight.detach().flatten(1).clone()
        self._column_shape = (-1, *[1] * (layer.weight.dim() - 1))
        with torch.no_grad():
            self.column_by_column = self._takes_single_columns()

    def __call__(self, current: Tensor, rows: Tensor, column: int) -> Tensor:
        """The values (n,) that the weights of these rows (n,) of the current weight turn into in this column."""
        self.wanted[rows, column] = current[rows, column].to(self.wanted)
        with torch.no_grad():
            if self.column_by_column:
                return self._single(self.wanted[:, column])[rows]
            rounded = values_of(self.layer, current.to(self.wanted).reshape(self.layer.weight.shape))
        return rounded.flatten(1)[rows, column]

    def _single(self, column: Tensor) -> Tensor:
        value: Tensor = self.layer.weight_quant.tensor_quant(column.reshape(self._column_shape))[0]
        return value.flatten()

    def _takes_single_columns(self) -> bool:
        """Whether the quantizer makes of a column alone what it makes of it in the whole weight.

        So it is with a scale for the tensor or for each row. Groups of columns, or a parameter for each weight, have a
        shape that does not fit or another result.
        """
        whole = values_of(self.layer).flatten(1)
        try:
            return all(torch.equal(self._single(self.wanted[:, j]), whole[:, j]) for j in range(whole.shape[1]))
        except (RuntimeError, IndexError, ValueError):
            return False


def is_slow(grid: Any) -> bool:
    """Whether rounding one column takes rounding the whole weight."""
    return isinstance(grid, OwnRounding) and not grid.column_by_column


class SideBySide:
    """The rounding of weights whose columns stand side by side.

    Args:
        parts: the rounding of each.
    """

    def __init__(self, parts: Sequence[OwnRounding]) -> None:
        self.parts = parts

    def __call__(self, current: Tensor, rows: Tensor, column: int) -> Tensor:
        """The values (n,) that the weights of these rows (n,) of the current weight turn into in this column."""
        ends = list(accumulate(part.wanted.shape[1] for part in self.parts))
        number = bisect_right(ends, column)
        begin = ([0, *ends])[number]
        return self.parts[number](current[:, begin : ends[number]], rows, column - begin)
