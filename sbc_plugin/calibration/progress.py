"""The progress bar of every loop that may take long, and :class:`Tracker`, which tells a callback and the log of it."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from tqdm import tqdm

from sbc_plugin.calibration import ranks
from sbc_plugin.errors import SettingsError

Item = TypeVar("Item")
LOGGER = logging.getLogger("sbc_plugin")


@dataclass(frozen=True)
class Progress:
    """How far a compression has come.

    Attributes:
        stage: what is being done, e.g. "calibrating", "compressing" or "tuning".
        number: of this stage, from 1.
        stages: how many there will be, as far as is known.
        done: items of this stage that are done: batches, layers or steps.
        total: items of this stage; None where that is not known.
        seconds: since the compression began.
        remaining: seconds until its end, estimated from what was measured so far, and for stages that have not been
            there yet from counted operations; None where there is nothing to estimate from.
    """

    stage: str
    number: int
    stages: int
    done: int
    total: int | None
    seconds: float
    remaining: float | None

    def __str__(self) -> str:
        """One line, for a log.

        >>> print(Progress("tuning", 3, 3, 50, 200, 8.0, 24.0))
        stage 3 of 3, tuning: 50 of 200; 8 s, about 24 s left
        """
        total = "" if self.total is None else f" of {self.total}"
        left = "" if self.remaining is None else f", about {self.remaining:.0f} s left"
        return f"stage {self.number} of {self.stages}, {self.stage}: {self.done}{total}; {self.seconds:.0f} s{left}"


Callback: TypeAlias = Callable[[Progress], Any]


@dataclass
class Tracker:
    """Follows the stages of one compression.

    Attributes:
        shown: whether bars are shown; None = on a terminal.
        callback: is told of each stage's beginning, and of each item that is done; what it raises ends the compression.
        expected: the stages to come, in order.
        estimates: by stage, seconds that it is expected to take.
    """

    shown: bool | None
    callback: Callback | None = None
    expected: list[str] = field(default_factory=list)
    estimates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._number, self._began = 0, time.perf_counter()
        self._took: dict[str, list[float]] = {}

    @classmethod
    def of(cls, progress: "bool | Callback | None") -> "Tracker":
        """The tracker that an argument of the user's asks for.

        Raises:
            SettingsError: it is neither a truth value nor a function.
        """
        if progress is None or isinstance(progress, bool):
            return cls(progress)
        if not callable(progress):
            raise SettingsError(f"progress={progress!r} is none; give True, False, None or a function of a Progress")
        return cls(False, progress)

    def begin(self, stage: str) -> int:
        """A stage begins: its number, from 1."""
        if stage in self.expected[self._number :]:
            self._number = self.expected.index(stage, self._number)
        else:
            self.expected.insert(self._number, stage)
        self._number += 1
        return self._number

    def follow(self, items: Iterable[Item], stage: str, number: int) -> Iterator[Item]:
        """The items, each of which is told of when the next one is asked for."""
        began = time.perf_counter()
        total = _length(items)
        LOGGER.info("%s", self._tell(stage, 0, total, number, began))
        done = 0
        for done, item in enumerate(items, 1):
            yield item
            self._tell(stage, done, total, number, began)
        self._took.setdefault(stage, []).append(time.perf_counter() - began)
        LOGGER.debug("stage %d, %s: done, %.1f s", number, stage, self._took[stage][-1])

    def _tell(self, stage: str, done: int, total: int | None, number: int, began: float) -> Progress:
        now = time.perf_counter()
        left = self._estimate(stage) if not done else None
        if done and total is not None:
            left = (now - began) / done * max(total - done, 0)
        later = [self._estimate(each) for each in self.expected[number:]]
        known = [each for each in (left, *later) if each is not None]
        remaining = sum(known) if len(known) == 1 + len(later) else None
        told = Progress(stage, number, len(self.expected), done, total, now - self._began, remaining)
        if self.callback is not None and ranks.rank() == 0:
            self.callback(told)
        return told

    def _estimate(self, stage: str) -> float | None:
        took = self._took.get(stage)
        return sum(took) / len(took) if took else self.estimates.get(stage)


Shown: TypeAlias = "bool | Tracker | None"  # of progress bars; None = on a terminal


def progress_bar(items: Iterable[Item], doing: str, unit: str, progress: Shown) -> Iterable[Item]:
    """The items, with a bar beside them that leaves nothing behind; of several ranks the first shows it.

    Args:
        items: to go through.
        doing: what is done with them, e.g. "tuning".
        unit: what one of them is called.
        progress: whether to show it, or the tracker of all stages, which knows; None = on a terminal.
    """
    shown = progress.shown if isinstance(progress, Tracker) else progress
    hidden = True if ranks.rank() else None if shown is None else not shown
    if not isinstance(progress, Tracker):
        return tqdm(items, desc=doing, unit=unit, leave=False, disable=hidden)
    number = progress.begin(doing)
    title = f"{doing}, stage {number} of {len(progress.expected)}"
    return progress.follow(tqdm(items, desc=title, unit=unit, leave=False, disable=hidden), doing, number)


def _length(items: Any) -> int | None:
    """How many items there are; None where that cannot be told, as of an iterator, or of what raises when asked."""
    try:
        return len(items)
    except TypeError:
        return None


def stages_of(phases: Sequence[tuple[int, bool]]) -> list[str]:
    """The stages that are expected of a plan.

    Args:
        phases: of each, how many times it calibrates and compresses, and whether tuning follows.

    >>> stages_of([(1, True)])
    ['calibrating', 'compressing', 'tuning']
    """
    return [stage for count, tunes in phases for stage in ["calibrating", "compressing"] * count + ["tuning"] * tunes]
