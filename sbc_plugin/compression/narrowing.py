"""Which networks a search tries: first without tuning, which is quick; then tuned ones, from where those end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

HALVINGS = 3  # of the ladder, before a network is tuned
CLOSE = 1e-9  # drops are sums of fractions
TUNED = 2  # networks that are tuned, where that is enough for an answer


@dataclass(frozen=True)
class Tried:
    """What one network lost.

    Attributes:
        drop: more is worse; infinite where there is no such network.
        steps: of tuning that it took.
    """

    drop: float
    steps: int = 0


@dataclass
class Narrowing:
    """A search along a ladder, whose rungs take more and more away.

    Attributes:
        count: rungs, from 0.
        tolerance: the drop that is accepted.
        trial: of a rung, and whether its network may be tuned.
        stretch: rungs by which tuning is expected to lead further.
        tuned: "never"; "if needed": a network without tuning is as good an answer; or "always".
    """

    count: int
    tolerance: float
    trial: Callable[[int, bool], Tried]
    stretch: int
    tuned: str = "if needed"
    _low: int = field(default=-1, init=False)  # the last that was accepted without tuning
    _high: int = field(default=0, init=False)  # the first that was not
    _drops: dict[int, float] = field(default_factory=dict, init=False)  # without tuning

    def run(self) -> None:
        """Try networks until the last rung that is accepted is known; about that one where networks are tuned.

        >>> tried = []
        >>> def trial(rung, tuned):
        ...     tried.append((rung, tuned))
        ...     return Tried(rung / 10 if tuned else rung / 5, steps=tuned)
        >>> Narrowing(63, 2.0, trial, stretch=5).run()
        >>> tried
        [(31, False), (15, False), (7, False), (15, True), (20, True)]
        """
        self._high = self.count
        self._halve(self.count if self.tuned == "never" else HALVINGS)
        if self.tuned == "never" or (self._low == self.count - 1 and self.tuned == "if needed"):
            return
        first = max(self._low, min(max(self._edge() + self.stretch, self._low + 1), self.count - 1))
        found = self.trial(first, True)
        if not found.steps:  # tuning stood back, so the solvers alone go on
            self._note(first, found)
            self._halve(self.count)
        elif self._accepted(found):
            further = self.stretch * (1 if found.drop > self.tolerance / 2 else 2)
            if first < self.count - 1:
                self.trial(min(first + further, self.count - 1), True)
        elif not self._back(first):
            self._halve(self.count)

    def _halve(self, most: int) -> None:
        while self._high - self._low > 1 and most:
            rung, most = (self._low + self._high) // 2, most - 1
            self._note(rung, self.trial(rung, False))

    def _note(self, rung: int, found: Tried) -> None:
        self._drops[rung] = found.drop
        if self._accepted(found):
            self._low = max(self._low, rung)
        else:
            self._high = min(self._high, rung)

    def _accepted(self, found: Tried) -> bool:
        return found.drop <= self.tolerance + CLOSE

    def _edge(self) -> int:
        """Where the drop would reach the tolerance if it grew in proportion between the last two rungs."""
        over = self._drops.get(self._high, math.inf)
        if math.isinf(over):
            return self._low
        under = self._drops.get(self._low, 0.0)
        return self._low + int((self._high - self._low) * (self.tolerance - under) / (over - under))

    def _back(self, high: int) -> bool:
        """Tuned networks below a rung that was refused, until one is accepted; whether there is an answer then."""
        low = self._low if self._low < high else -1
        answered, tries = self.tuned == "if needed" and low >= 0, 1
        while high - low > 1 or low >= 0:
            enough = tries >= TUNED or high - low == 1
            if answered and enough:
                return True
            rung, low = (low, -1) if enough and low >= 0 else ((low + high) // 2, low)
            if self._accepted(self.trial(rung, True)):
                return True
            high, tries = rung, tries + 1
        return self.tuned == "always"
