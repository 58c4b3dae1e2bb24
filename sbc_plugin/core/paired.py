"""Two models on the same sequences: how far their accuracies differ, and how sure that is.

Each sequence is right or wrong before and after, so that only those sequences count that changed. Source: D. G. Bonett
and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data",
Journal of Educational and Behavioral Statistics 37 (2012) 479.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError

Z95 = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class PairedDrop:
    """How much accuracy was lost, as fractions of the sequences, with its 95 % interval.

    Attributes:
        sequences: that both models ran.
        lost: of them, those that were right before and are wrong after.
        won: of them, those that were wrong before and are right after.

    Raises:
        SettingsError: no sequence, or more changes than sequences.

    >>> drop = PairedDrop(sequences=21, lost=7, won=1)
    >>> [round(value, 3) for value in (drop.drop, drop.low, drop.high)]
    [0.286, 0.013, 0.508]
    """

    sequences: int
    lost: int
    won: int

    def __post_init__(self) -> None:
        if self.sequences < 1 or min(self.lost, self.won) < 0 or self.lost + self.won > self.sequences:
            raise SettingsError(f"{self.lost} lost and {self.won} won of {self.sequences} sequences are no comparison")

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> "PairedDrop":
        """The drop between the right answers (N,) of one model, and those of another on the same sequences."""
        return cls(len(before), int((before & ~after).sum()), int((after & ~before).sum()))

    @property
    def drop(self) -> float:
        """Accuracy before, less accuracy after."""
        return (self.lost - self.won) / self.sequences

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        middle, width = self._interval()
        return max(middle - width, -1.0)

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        middle, width = self._interval()
        return min(middle + width, 1.0)

    def _interval(self) -> tuple[float, float]:
        lost, won = (self.lost + 1) / (self.sequences + 2), (self.won + 1) / (self.sequences + 2)
        return lost - won, Z95 * math.sqrt((lost + won - (lost - won) ** 2) / (self.sequences + 2))

    def sequences_for(self, half_width: float) -> int:
        """How many sequences like these have an interval of no more than ``half_width`` to either side.

        The variance of one sequence is taken from these, so the answer is an estimate.

        Args:
            half_width: a fraction above 0.

        Raises:
            SettingsError: it is not above 0.

        >>> PairedDrop(sequences=300, lost=9, won=3).sequences_for(0.005)
        7061
        """
        if not half_width > 0:
            raise SettingsError(f"half_width={half_width!r}: no number of sequences gives an interval without a width")
        _, width = self._interval()
        variance = (width / Z95) ** 2 * (self.sequences + 2)
        return max(math.ceil(variance * (Z95 / half_width) ** 2 - 2), 1)


def halves(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two halves of some sequences, each with as many of every class as the other, or one more.

    Args:
        labels: (N,), whole numbers.
        seed: of the order in which the sequences of a class are dealt.

    Returns:
        Two masks (N,) on the processor, of which every sequence is in one; the first is the larger where N is odd.

    >>> one, other = halves(torch.tensor([3, 3, 3, 3, 7, 7, 7]))
    >>> int(one.sum()), int(other.sum()), int((one & other).sum())
    (4, 3, 0)
    """
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]  # dealt in turns, so classes and halves come out even
    first = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    first[by_class[::2]] = True
    return first, ~first
