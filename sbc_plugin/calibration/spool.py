"""A list that keeps what does not fit into memory in a file of its own: batches, and what a model did on them."""

import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from io import BytesIO
from typing import Any, Generic, TypeVar, cast, overload

import torch
from torch import Tensor

from sbc_plugin.errors import CalibrationError

T = TypeVar("T")


class _Items(Sequence[T], Generic[T]):
    """A sequence that fetches one item at a time; slices fetch theirs when they are asked for them."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        chosen = range(len(self))[index]
        return self._item(chosen) if isinstance(chosen, int) else Chosen(self, chosen)

    @abstractmethod
    def _item(self, index: int) -> T:
        """The item of this number, from 0."""


class Spool(_Items[T]):
    """A sequence that grows: up to ``limit`` bytes of tensors stay in memory, what comes later goes to a file.

    The file has no name and is gone with the process. An item from it is read anew at each access.

    Args:
        limit: bytes; None keeps all in memory.

    >>> spool = Spool(limit=100)
    >>> for number in range(3):
    ...     spool.append(torch.full((20,), number))
    >>> [int(item[0]) for item in spool], spool.on_disk
    ([0, 1, 2], 3)
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self._used = limit, 0
        self._items: list[T] = []
        self._places: list[tuple[int, int]] = []  # where each item begins in the file, and its length
        self._file: Any = None

    @property
    def on_disk(self) -> int:
        """How many items lie in the file."""
        return len(self._places)

    def append(self, item: T) -> None:
        """Take one more item.

        Raises:
            CalibrationError: there is no room for the file.
        """
        size = size_of(item)
        if not self._places and (self.limit is None or self._used + size <= self.limit):
            self._items.append(item)
            self._used += size
            return
        torch.save(item, packed := BytesIO())
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the spool
                weakref.finalize(self, self._file.close)
            place = self._file.seek(0, 2), len(packed.getbuffer())
            self._file.write(packed.getbuffer())
            self._file.flush()
        except OSError as error:
            raise CalibrationError(
                f"calibration data that do not fit into memory go to a file in {tempfile.gettempdir()}: {error}; make "
                "room, set TMPDIR to another folder, or give fewer batches"
            ) from error
        self._places.append(place)

    def __len__(self) -> int:
        return len(self._items) + len(self._places)

    def _item(self, index: int) -> T:
        if index < len(self._items):
            return self._items[index]
        start, length = self._places[index - len(self._items)]
        self._file.seek(start)
        # What this process has written a moment ago, into a file that no other can open.
        return cast(T, torch.load(BytesIO(self._file.read(length)), weights_only=False))


class Chosen(_Items[T]):
    """Some items of a sequence, in this order; the sequence keeps them.

    Args:
        items: the sequence.
        numbers: of the items.
    """

    def __init__(self, items: Sequence[T], numbers: Iterable[int]) -> None:
        self._whole, self._numbers = items, list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _item(self, index: int) -> T:
        return self._whole[self._numbers[index]]


def spooled(items: Iterable[T], limit: int | None) -> Spool[T]:
    """All items, as far as they fit in memory."""
    spool = Spool[T](limit)
    for item in items:
        spool.append(item)
    return spool


def size_of(item: Any) -> int:
    """Bytes of the tensors in an item: itself, or those of a tuple, list, mapping or dataclass."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(item))


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, tuple | list):
        for value in item:
            yield from _tensors(value)
    elif is_dataclass(item) and not isinstance(item, type):
        for each in fields(item):
            yield from _tensors(getattr(item, each.name))
