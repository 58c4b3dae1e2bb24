"""The answer of a solver."""

from dataclasses import dataclass

from torch import Tensor

from sbc_plugin.core.quantization.grids import Grid


@dataclass(frozen=True)
class Solution:
    """What a solver found for one layer.

    Attributes:
        weight: (rows, columns), the new weight, zero where ``mask`` is False.
        mask: (rows, columns), True = kept.
        loss: relative increase of the objective: 0 = unchanged, 1 = the layer's output removed.
        grid: that ``weight`` lies on; None if it was not quantised.
    """

    weight: Tensor
    mask: Tensor
    loss: float
    grid: Grid | None = None
