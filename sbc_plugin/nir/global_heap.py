"""The heaps in which an HDF5 file keeps texts of any length.

An entry of such a dataset is a reference: the length of the text, the address of a heap, and an index in it. HDF5 takes
memory for the length, and goes through the heap, before it compares them with the file; in a heap whose objects have no
size it never ends. So both are checked here first. Source: HDF5 File Format Specification, section III.E.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

SIGNATURE, VERSION = b"GCOL", 1
LENGTH_BYTES, INDEX_BYTES = 4, 4  # of a reference, before and behind the address
FIXED_BYTES = 8  # of a heap in front of its size, and of an object in front of its own
ALIGNMENT = 8
OBJECT_BYTES = 128  # counted for an object, since each takes some time


class GlobalHeaps:
    """The heaps of one file.

    Args:
        stream: the file.
        size: of the file, bytes.
        plist: how the file was made: the widths of addresses and sizes, and the bytes in front of all.
        count: is told what memory is taken, and raises where it is too much.
    """

    def __init__(self, stream: BinaryIO, size: int, plist: Any, count: Callable[[int], None]) -> None:
        self._stream, self._size, self._count = stream, size, count
        self._address_bytes, self._size_bytes = plist.get_sizes()
        self._base = plist.get_userblock()
        self._heaps: dict[int, dict[int, int]] = {}

    @property
    def reference_bytes(self) -> int:
        """The width of a reference."""
        return LENGTH_BYTES + int(self._address_bytes) + INDEX_BYTES

    def check(self, references: bytes) -> None:
        """Refuse references to texts that are not there.

        Raises:
            ValueError: one is longer than its object, leads to none, or to a heap that contradicts itself.
        """
        for start in range(0, len(references), self.reference_bytes):
            reference = references[start : start + self.reference_bytes]
            length = _number(reference[:LENGTH_BYTES])
            if not length:
                continue
            if length > self._size:
                raise ValueError(f"it declares a text of {length:,} bytes, and the file has {self._size:,}")
            self._count(length)
            address, index = _number(reference[LENGTH_BYTES:-INDEX_BYTES]), _number(reference[-INDEX_BYTES:])
            if address not in self._heaps:
                self._heaps[address] = self._objects(address)
            found = self._heaps[address].get(index, 0)
            if length > found:
                raise ValueError(f"it declares a text of {length:,} bytes where the file holds {found:,}")

    def _objects(self, address: int) -> dict[int, int]:
        """The sizes of a heap's objects, by index.

        Raises:
            ValueError: there is no heap, or one whose objects do not fit into it.
        """
        header = FIXED_BYTES + int(self._size_bytes)
        start = self._base + address
        if start + header > self._size:
            raise ValueError("its text lies behind the end of the file")
        self._stream.seek(start)
        head = self._stream.read(header)
        whole = _number(head[FIXED_BYTES:])
        if head[: len(SIGNATURE)] != SIGNATURE or head[len(SIGNATURE)] != VERSION or start + whole > self._size:
            raise ValueError("its text lies in no heap of the file")
        content = self._stream.read(max(0, whole - header))
        sizes, place = {}, -header % ALIGNMENT
        while place + header <= len(content):
            self._count(OBJECT_BYTES)
            index, size = _number(content[place : place + 2]), _number(content[place + FIXED_BYTES : place + header])
            step = header + -(-size // ALIGNMENT) * ALIGNMENT if index else size  # free space counts its header in
            if step < header or place + step > len(content):
                raise ValueError("its text lies in a heap whose objects do not fit into it")
            sizes[index] = size if index else 0
            place += step
        return sizes


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
