"""How long each stage of a compression takes: :class:`Clock`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds of named stages. While a stage runs inside another, only the inner one counts.

    Attributes:
        seconds: name -> wall time, in the order in which the stages first began.

    >>> clock = Clock()
    >>> with clock("calibration"), clock("tuning"):
    ...     pass
    >>> list(clock.seconds)
    ['calibration', 'tuning']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block as a part of the stage of this name."""
        self._turn()
        self._running.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
