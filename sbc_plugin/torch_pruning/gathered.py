"""What calibration gathers of one layer's inputs: the samples while they are few, then the sum of their products."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.sums import sum_statistics
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.pruning.primal_dual import DualHessian, Hessian, PrimalHessian
from sbc_plugin.errors import CalibrationError

WIDE = 256  # columns from which on samples are held
FEW = 0.125  # samples for each column: with more, working on the matrix takes less time


class Gathered:
    """Samples (groups, n, columns): held while they are much fewer than columns, else summed.

    Args:
        columns: width of a sample.
        groups: Hessians.
        device: where samples or sums are kept.
        hold: False sums from the start.

    Attributes:
        count: samples so far.
        few: whether they are held.
    """

    def __init__(self, columns: int, groups: int, device: torch.device | str, hold: bool = True) -> None:
        self.columns, self.groups, self.device = columns, groups, device
        self.most = int(FEW * columns) if hold and columns >= WIDE else 0
        self.few, self.count = True, 0
        self._held: list[Tensor] = []
        self._sum: HessianAccumulator | None = None

    @property
    def accumulator(self) -> HessianAccumulator:
        """The sum; samples that are held are summed now, and are held no longer."""
        if self._sum is None:
            self._sum, self.few = HessianAccumulator(self.columns, self.groups, self.device), False
            self._held.reverse()
            while self._held:
                self._sum.add(self._held.pop())
        return self._sum

    def add(self, samples: Tensor) -> None:
        """Take samples (groups, n, columns).

        Raises:
            CalibrationError: NaN or infinity among the samples.
        """
        self.count += samples.shape[1]
        if not self.few or self.count > self.most:
            self.accumulator.add(samples)
            return
        samples = samples.to(self.device, torch.promote_types(samples.dtype, torch.float32))
        if not samples.square().sum(1).isfinite().all():
            raise CalibrationError("the input holds NaN or infinity; clean the calibration data")
        self._held.append(samples)

    def hessians(self) -> list[Hessian]:
        """``2/n X^T X`` of each group, undamped.

        Raises:
            CalibrationError: nothing was added yet.
        """
        if not self.few or not self.count:
            return [PrimalHessian(matrix) for matrix in self.accumulator.hessian()]
        samples = torch.cat(self._held, dim=1)
        return [DualHessian(x, x.new_zeros(self.columns, dtype=torch.float64)) for x in samples]

    def exchange(self) -> None:
        """Hold the samples of all ranks, in the order of the ranks."""
        mine = torch.cat(self._held, dim=1).cpu() if self._held else None
        self._held = [samples.to(self.device) for samples in ranks.everyone(mine) if samples is not None]
        self.count = sum(samples.shape[1] for samples in self._held)


class Counted:
    """A sum with the number of sequences that ``sum_statistics`` asks for, and that nobody needs here."""

    sequences = 0

    def __init__(self, accumulator: HessianAccumulator) -> None:
        self.accumulator = accumulator


def of_all_ranks(gathered: Iterable[Gathered]) -> None:
    """Make what each layer has gathered that of all ranks: samples where all of them together are few, else sums."""
    if ranks.count() == 1:
        return
    found = list(gathered)
    counts = ranks.everyone([each.count if each.few else each.most + 1 for each in found])
    few = [sum(each) <= layer.most for layer, each in zip(found, zip(*counts, strict=True), strict=True)]
    sum_statistics([Counted(layer.accumulator) for layer, held in zip(found, few, strict=True) if not held])
    for layer, held in zip(found, few, strict=True):
        if held:
            layer.exchange()
