"""A data set in three fixed parts, encoded as sequences only when a part is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sbc_plugin.demo.digits import Events


@dataclass(frozen=True)
class Split:
    """Samples to learn from and samples held out; calibration is a part of what was learned from.

    Attributes:
        known: (N, ...), with labels (N,): training data, in an order that no longer tells anything.
        held_out: (M, ...), with labels (M,): test data, which neither training nor calibration sees.
        encode: samples (N, ...) to sequences (T, N, ...).
        calibrating: how many of the known samples calibrate.
    """

    known: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    encode: Callable[[Tensor], Tensor]
    calibrating: int

    @cached_property
    def training(self) -> Events:
        """All known samples."""
        return self._events(*self.known)

    @cached_property
    def calibration(self) -> Events:
        """The first of the known samples."""
        samples, labels = self.known
        return self._events(samples[: self.calibrating], labels[: self.calibrating])

    @cached_property
    def test(self) -> Events:
        """All samples held out."""
        return self._events(*self.held_out)

    def _events(self, samples: Tensor, labels: Tensor) -> Events:
        return Events(self.encode(samples), labels)
