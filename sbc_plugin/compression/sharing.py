"""Work that many compressions of one network share: what follows from the same tensors and settings is made once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from sbc_plugin.calibration.fingerprint import of_batch

Result = TypeVar("Result")
_KEPT: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Within it, results of :class:`Shared` are kept; they are dropped at its end."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


class Shared:
    """Results that follow from the same things.

    Args:
        *source: tensors, numbers and texts that decide the results.

    >>> with sharing():
    ...     print(Shared(1).once("a", lambda: 2), Shared(1).once("a", lambda: 3), Shared(2).once("a", lambda: 3))
    2 2 3
    >>> Shared(1).once("a", lambda: 3)
    3
    """

    def __init__(self, *source: Any) -> None:
        self._kept = _KEPT.get()
        self._mark = "" if self._kept is None else of_batch(source)  # by content, so that no other network is taken

    def once(self, name: Any, make: Callable[[], Result]) -> Result:
        """The result of that name, made if there is none yet; outside of :func:`sharing` always made."""
        if self._kept is None:
            return make()
        key = f"{self._mark} {name}"
        if key not in self._kept:
            self._kept[key] = make()
        found: Result = self._kept[key]
        return found
