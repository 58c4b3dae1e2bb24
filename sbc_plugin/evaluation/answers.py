"""Two networks' answers to the same sequences: how often they agree, how often they are right, and how sure that is."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sbc_plugin.calibration.batches import holds_values, labels_of
from sbc_plugin.calibration.driver import result_of
from sbc_plugin.core.paired import PairedDrop


@dataclass(frozen=True)
class Check:
    """Both networks on the same labelled sequences; of a search, on the half that it did not see.

    Attributes:
        accuracy_dense: fraction of right answers of the dense network.
        accuracy: the same of the compressed one.
        sequences: that both ran.
        lost: of them, those that only the dense network answers rightly.
        won: of them, those that only the compressed one answers rightly.
    """

    accuracy_dense: float
    accuracy: float
    sequences: int
    lost: int
    won: int

    @property
    def paired(self) -> PairedDrop:
        """The drop as fractions, with its 95 % interval."""
        return PairedDrop(self.sequences, self.lost, self.won)

    @property
    def drop(self) -> float:
        """Points of accuracy that were lost."""
        return 100 * self.paired.drop

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop, in points."""
        return 100 * self.paired.low, 100 * self.paired.high

    @property
    def worse(self) -> bool:
        """Whether the loss is more than chance makes of so few sequences: the interval lies above 0."""
        return self.paired.low > 0

    @property
    def chance(self) -> str:
        """Whether so few sequences could show this drop, or gain, by chance, in words."""
        return "within chance" if self.paired.low <= 0 <= self.paired.high else "more than chance"

    @property
    def summary(self) -> str:
        """The drop with its uncertainty, in words.

        >>> print(Check(0.9625, 0.9525, 400, 5, 1).summary)
        a loss of 1.0 ± 1.4 points (95 % interval -0.4 to 2.4), within chance for 400 sequences
        >>> print(Check(1.0, 0.75, 400, 100, 0).summary)
        a loss of 25.0 ± 4.3 points (95 % interval 20.6 to 29.2), more than chance for 400 sequences
        """
        low, high = self.interval
        what = "no loss" if self.drop == 0 else f"{'a loss' if self.drop > 0 else 'a gain'} of {abs(self.drop):.1f}"
        return (
            f"{what} ± {(high - low) / 2:.1f} points (95 % interval {low:.1f} to {high:.1f}), {self.chance} for "
            f"{counted_sequences(self.sequences)}"
        )


@dataclass(frozen=True)
class Answers:
    """How both networks answer, by the class whose output is the largest; of equal ones the lowest counts.

    Attributes:
        agreement: fraction of sequences to which both give the same answer.
        tied_dense: fraction of sequences for which several classes share the dense network's largest output.
        tied: the same of the compressed one.
        check: how often they are right; None without labels.
    """

    agreement: float
    tied_dense: float
    tied: float
    check: Check | None = None


class Answered(NamedTuple):
    """One network's answers to a batch: the class (B,), whether others share its output (B,), and their number."""

    best: Tensor
    tied: Tensor
    classes: int


def scores_of(output: Any) -> Tensor | None:
    """Scores (B, classes) of a result (T, B, classes), summed over time, or (B, classes); None if it is neither.

    >>> import torch
    >>> scores_of((torch.ones(3, 1, 2), "state")).tolist()
    [[3.0, 3.0]]
    """
    result = result_of(output)
    if not isinstance(result, Tensor) or result.dim() not in (2, 3):
        return None
    return result.sum(0) if result.dim() == 3 else result


def answered(output: Any, sequences: int) -> Answered | None:
    """The answers in what a network returned for so many sequences; None if it is no score of classes.

    >>> import torch
    >>> answered(torch.tensor([[1.0, 3.0, 3.0]]), sequences=1)
    Answered(best=tensor([1]), tied=tensor([True]), classes=3)
    """
    scores = scores_of(output)
    if scores is None or len(scores) != sequences or not scores.shape[1]:
        return None
    tied = (scores == scores.amax(1, keepdim=True)).sum(1) > 1
    return Answered(scores.argmax(1).cpu(), tied.cpu(), scores.shape[1])


class AnswerTally:
    """Counts answers batch by batch, until a batch has none that can be counted."""

    def __init__(self) -> None:
        self.sequences = self.agreeing = self.tied_dense = self.tied = 0
        self.right_dense = self.right = self.lost = self.won = self.labelled = 0
        self.several = self.comparable = True

    def add(self, batch: Any, before: Answered | None, after: Answered | None) -> None:
        """Count a batch that both networks have answered."""
        if before is None or after is None or holds_values(batch):
            self.comparable = False
            return
        self.several &= before.classes > 1
        self.sequences += len(before.best)
        self.agreeing += int((before.best == after.best).sum())
        self.tied_dense += int(before.tied.sum())
        self.tied += int(after.tied.sum())
        labels = labels_of(batch)
        if labels is None or len(labels) != len(before.best):
            return
        labels = labels.cpu()
        drop = PairedDrop.of(before.best == labels, after.best == labels)
        self.right_dense += int((before.best == labels).sum())
        self.right += int((after.best == labels).sum())
        self.lost, self.won, self.labelled = self.lost + drop.lost, self.won + drop.won, self.labelled + len(labels)

    def result(self) -> Answers | None:
        """What was counted; None where a batch had no answers. Where one had no labels, there is no check."""
        count = self.sequences
        check = None
        if count and self.labelled == count:
            check = Check(self.right_dense / count, self.right / count, count, self.lost, self.won)
        if not self.comparable or not count or (check is None and not self.several):
            return None
        return Answers(self.agreeing / count, self.tied_dense / count, self.tied / count, check)


def counted_sequences(count: int) -> str:
    """A number of sequences, in words.

    >>> counted_sequences(1), counted_sequences(1200)
    ('1 sequence', '1,200 sequences')
    """
    return f"{count:,} sequence{'' if count == 1 else 's'}"
