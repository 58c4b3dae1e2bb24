"""Which networks a search tries: first without tuning, which is quick; then tuned ones, from where those end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

HALVINGS = 3  # of the ladder, before a network is tuned
CLOSE = 1e-9  # drops are sums of fractions
FARTHER = 2  # stretches beyond, where tuning stood back since the solvers alone had lost little
REFINED = 2  # halvings more, where no network is tuned


@dataclass(frozen=True)
class Tried:
    """What one network lost.

    Attributes:
        drop: more is worse; infinite where there is no such network.
        steps: of tuning that it took.
        hopeless: whether no network would be tuned, whatever it lost.
    """

    drop: float
    steps: int = 0
    hopeless: bool = False


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
    _asked: set[int] = field(default_factory=set, init=False)  # where a network might be tuned
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
            self._back(rung)
        elif found.drop <= self.tolerance / 2 and rung < self.count - 1:
            self.trial(min(rung + 2 * self.stretch, self.count - 1), True)

    def _first_tuned(self) -> tuple[int, Tried]:
        """The first rung whose network is tuned, from one stretch beyond where the solvers alone end."""
        first = max(self._low, max(self._edge() + self.stretch, self._low + 1))
        rungs = [min(first + self.stretch * further, self.count - 1) for further in range(FARTHER + 1)]
        for rung in dict.fromkeys(rungs):
            found = self._tuned(rung)
            if found.steps:
                break
            self._note(rung, found)
            if found.hopeless:
                break
        return rung, found

    def _tuned(self, rung: int) -> Tried:
        self._asked.add(rung)
        return self.trial(rung, True)

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

    def _back(self, high: int) -> None:
        """Tuned networks below one that was refused, until one is good: where the solvers alone end, then before."""
        low = self._low if self._low < high else -1
        for rung in dict.fromkeys([min(self._edge(), high - 1), low] if low >= 0 else []):
            if rung not in self._asked and self._accepted(self._tuned(rung)):
                return
            high = rung
        if low >= 0 and self.tuned == "if needed":
            return  # tuning does harm there, and the network of the solvers alone is good enough
        while high > 0:
            high = (high - 1) // 2
            if high not in self._asked and self._accepted(self._tuned(high)):
                return
        if self.tuned == "if needed":
            self._halve(self.count)
