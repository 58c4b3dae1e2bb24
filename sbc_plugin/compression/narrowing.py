"""Which networks a search tries: first without tuning, which is quick; then tuned ones, from where those end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

HALVINGS = 3  # of the ladder, before a network is tuned
CLOSE = 1e-9  # drops are sums of fractions
TUNED = 2  # networks that are tuned, where that is enough for an answer
FARTHER = 2  # stretches beyond, where tuning stood back since the solvers alone had lost little
REFINED = 2  # halvings more, where the solvers alone have to answer


@dataclass(frozen=True)
class Tried:
    """What one network lost.

    Attributes:
        drop: more is worse; infinite where there is no such network.
        steps: of tuning that it took.
        needless: whether it was not tuned since it has lost too little.
    """

    drop: float
    steps: int = 0
    needless: bool = False


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
    _stood: int = field(default=-1, init=False)  # the last where tuning stood back
    _drops: dict[int, float] = field(default_factory=dict, init=False)  # without tuning

    def run(self) -> None:
        """Try networks until the last rung that is accepted is known; about that one where networks are tuned.

        >>> tried = []
        >>> def trial(rung, tuned):
        ...     tried.append((rung, tuned))
        ...     return Tried(rung / 20 if tuned else rung / 5, steps=tuned)
        >>> Narrowing(63, 2.0, trial, stretch=5).run()
        >>> tried
        [(31, False), (15, False), (7, False), (15, True), (25, True)]
        """
        self._high = self.count
        self._halve(self.count if self.tuned == "never" else HALVINGS)
        if self.tuned == "never" or (self._low == self.count - 1 and self.tuned == "if needed"):
            return
        rung, found = self._first_tuned()
        if not found.steps:  # tuning stood back everywhere
            self._halve(REFINED if self._low >= 0 else self.count)
        elif not self._accepted(found):
            self._halve(self._back(rung))
        elif found.drop <= self.tolerance / 2 and rung < self.count - 1:
            self.trial(min(rung + 2 * self.stretch, self.count - 1), True)

    def _first_tuned(self) -> tuple[int, Tried]:
        """The first rung whose network is tuned, from one stretch beyond where the solvers alone end."""
        first = max(self._low, max(self._edge() + self.stretch, self._low + 1))
        rungs = [min(first + self.stretch * further, self.count - 1) for further in range(FARTHER + 1)]
        for rung in dict.fromkeys(rungs):
            found = self.trial(rung, True)
            if found.steps:
                break
            self._note(rung, found)
            self._stood = rung
            if not found.needless:
                break
        return rung, found

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

    def _back(self, high: int) -> int:
        """Tuned networks below a rung that was refused, until one is accepted; the halvings that are left then."""
        low = self._low if self._low < high else -1
        answered, tries = self.tuned == "if needed" and low >= 0, 1
        while high - low > 1 or low >= 0:
            if high - 1 == self._stood > low:  # there, a tuned network is that of the solvers alone
                high = self._stood
                continue
            least = max(low, self._stood) if self._stood < high else low
            enough = tries >= TUNED or high - least == 1
            if answered and enough:
                return REFINED
            rung, low = (low, -1) if enough and low >= 0 else ((least + high) // 2, low)
            if self._accepted(self.trial(rung, True)):
                return 0
            high, tries = rung, tries + 1
        return 0 if self.tuned == "always" else self.count
