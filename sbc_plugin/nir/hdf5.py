"""The content of a .nir file, read from HDF5 after all of it was checked.

HDF5 can do more than NIR needs: a link or a dataset may point into other files, links may go round in circles, and a
small file may declare, or be inflated to, any size. So the tree of links is walked first, without reading a number,
and what NIR has no use for is refused. Only then the datasets are read.
"""

import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from sbc_plugin.errors import CheckpointError
from sbc_plugin.nir.global_heap import GlobalHeaps

MAX_BYTES = 2**30  # that a file may take in memory, unless the user allows more
ITEM_BYTES = 10_000  # counted for a group or a dataset, so that their number is bounded too
DEEPEST = 40  # groups inside each other: a graph in a graph takes two
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP,
           h5py.h5z.FILTER_LZF)  # fmt: skip
LZF_RATIO = 100  # more than LZF can shorten anything
CHECKSUM_BYTES = 4  # that fletcher32 adds to a chunk


def read_tree(path: Path, root: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """A group of a file as a dict of dicts, numbers (numpy), and text (str; bytes inside arrays).

    Args:
        path: of an HDF5 file.
        root: name of the group.
        max_bytes: that all its datasets together may take.

    Raises:
        CheckpointError: no HDF5 file, no such group, links or datasets that NIR does not have, or that declare another
            size than is stored, or more than ``max_bytes``.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a .nir file")
    try:
        with path.open("rb") as stream, h5py.File(path, "r") as file:
            return _Reader(path, stream, file, max_bytes).read(root)
    except CheckpointError:
        raise
    except Exception as error:  # of a damaged file h5py raises whatever it stumbles over
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as NIR: {reason}; write it again with nir.write") from error


class _Reader:
    """Reads one file.

    Attributes:
        path: of the file.
        size: of the file, bytes.
        max_bytes: that may be read.
        counted: bytes that items found so far take.
    """

    def __init__(self, path: Path, stream: BinaryIO, file: Any, max_bytes: int) -> None:
        self.path, self.max_bytes, self.size, self.counted = path, max_bytes, path.stat().st_size, 0
        self._stream, self._file, self._where = stream, file, ""
        plist = file.id.get_create_plist()
        self._heaps = GlobalHeaps(stream, self.size, plist, lambda size: self._count(size, self._where))
        self._groups: set[Any] = set()  # addresses of those that were met

    def read(self, root: str) -> dict[str, Any]:
        file = self._file
        if root not in list(file):  # without a list, h5py would follow a link
            raise self._refusal(root, "is missing")
        tree = self._checked(self._item(file, root, root), root, 0)
        if not isinstance(tree, dict):
            raise self._refusal(root, "is no group")
        return {name: self._values(item, name) for name, item in tree.items()}

    def _refusal(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {name!r} {what}; the file is damaged or hostile: write it with nir.write")

    def _count(self, size: int, name: str) -> None:
        self.counted += size
        if self.counted > self.max_bytes:
            raise CheckpointError(
                f"{self.path}: up to {name!r} it takes {self.counted:,} bytes, more than max_bytes={self.max_bytes:,}; "
                "give a larger limit if the file is to be trusted"
            )

    def _item(self, group: Any, name: str, where: str) -> Any:
        """What a name in a group stands for, if it does so by a hard link: others lead elsewhere, or nowhere."""
        name.encode()  # a UnicodeError for names that are no text
        link = group.id.links.get_info(name.encode()).type
        if link != h5py.h5l.TYPE_HARD:
            kind = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link into another file"}
            raise self._refusal(where, f"is {kind.get(link, 'a user-defined link')}")
        return group[name]

    def _checked(self, item: Any, where: str, depth: int) -> Any:
        """Groups as dicts of their items, checked all the way down; datasets as they are."""
        self._count(ITEM_BYTES, where)
        if isinstance(item, h5py.Dataset):
            self._check(item, where)
            return item
        if not isinstance(item, h5py.Group):
            raise self._refusal(where, "is neither a group nor a dataset")
        address = h5py.h5o.get_info(item.id).addr
        if address in self._groups:
            raise self._refusal(where, "is a group that stands in the file twice, or inside itself")
        if depth > DEEPEST:
            raise self._refusal(where, f"lies more than {DEEPEST} groups deep")
        self._groups.add(address)
        return {
            name: self._checked(self._item(item, name, f"{where}/{name}"), f"{where}/{name}", depth + 1)
            for name in item
        }

    def _check(self, dataset: Any, where: str) -> None:
        """Refuse a dataset that is not stored in this file in the size that it declares, or is of no type of NIR."""
        layout = dataset.id.get_create_plist()
        if layout.get_external_count():
            raise self._refusal(where, "is stored in another file")
        if layout.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refusal(where, "is a virtual dataset, put together from others")
        text = h5py.check_string_dtype(dataset.dtype) is not None
        if not text and dataset.dtype.kind not in "biuf":
            kind = f"{dataset.dtype}" if dataset.dtype.kind == "c" else "neither numbers nor text"
            raise self._refusal(where, f"is of type {kind}, which NIR does not have")
        shape = dataset.shape
        if shape is None:
            raise self._refusal(where, "is empty")
        width = self._width(dataset)
        stored = prod(shape) * width
        self._count(prod(shape) * max(width, dataset.dtype.itemsize), where)
        parts: list[bytes] = []
        if layout.get_layout() == h5py.h5d.CHUNKED:
            parts = self._check_chunks(dataset, layout, where)
        elif not stored == dataset.id.get_storage_size() <= self.size:
            found = dataset.id.get_storage_size()
            raise self._refusal(where, f"declares shape {shape}, {stored:,} bytes, and {found:,} are stored")
        if _any_length(dataset.dtype):
            for part in parts or [self._stored(dataset, stored, where)]:
                self._check_texts(part, where)

    def _check_texts(self, references: bytes, where: str) -> None:
        self._where = where
        try:
            self._heaps.check(references)
        except ValueError as error:
            raise error if isinstance(error, CheckpointError) else self._refusal(where, f"is text: {error}") from error

    def _stored(self, dataset: Any, size: int, where: str) -> bytes:
        """The bytes of a dataset that lies in the file in one piece."""
        start = dataset.id.get_offset()
        if start is None:
            raise self._refusal(where, "is text within a header")
        self._stream.seek(start)
        return self._stream.read(size)

    def _check_chunks(self, dataset: Any, layout: Any, where: str) -> list[bytes]:
        """The chunks of text as they are unpacked, [] of numbers.

        Chunks that are missing, too many, or not of the size that they declare once they are inflated are refused.
        """
        chunk = layout.get_chunk()
        size = prod(chunk) * self._width(dataset)
        expected = prod(-(-axis // part) for axis, part in zip(dataset.shape, chunk, strict=True))
        filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
        if unknown := sorted(set(filters) - set(FILTERS)) or [code for code in filters if filters.count(code) > 1]:
            raise self._refusal(where, f"is packed by filter {unknown[0]}, unknown or used twice")
        self._count(max(0, size * expected - prod(dataset.shape) * dataset.dtype.itemsize), where)
        chunks: list[Any] = []
        dataset.id.chunk_iter(lambda info: chunks.append(info) if len(chunks) <= expected else True)
        if len(chunks) != expected:
            raise self._refusal(
                where, f"declares shape {dataset.shape} and holds {len(chunks):,} of {expected:,} chunks"
            )
        unpacked = []
        for info in chunks:
            if not 0 < info.size <= self.size:
                raise self._refusal(where, f"has a chunk of {info.size:,} bytes, and the file has {self.size:,}")
            used = [code for place, code in enumerate(filters) if not info.filter_mask >> place & 1]
            self._check_chunk(dataset, info, used, size, where)
            if _any_length(dataset.dtype):
                if not set(used) <= {h5py.h5z.FILTER_DEFLATE}:
                    raise self._refusal(where, "is text packed by more than gzip")
                data = dataset.id.read_direct_chunk(info.chunk_offset)[1]
                unpacked.append(zlib.decompress(data) if used else data)
        return unpacked

    def _check_chunk(self, dataset: Any, info: Any, filters: list[int], size: int, where: str) -> None:
        fits = True
        if h5py.h5z.FILTER_DEFLATE in filters:
            data = dataset.id.read_direct_chunk(info.chunk_offset)[1]
            unpacked = zlib.decompressobj().decompress(data, size + CHECKSUM_BYTES + 1)
            fits = size <= len(unpacked) <= size + CHECKSUM_BYTES
        if h5py.h5z.FILTER_SZIP in filters:  # its first bytes say for how much memory it asks
            data = dataset.id.read_direct_chunk(info.chunk_offset)[1]
            fits = fits and int.from_bytes(data[:4], "little") <= size + CHECKSUM_BYTES
        if h5py.h5z.FILTER_LZF in filters:
            fits = fits and LZF_RATIO * info.size <= self.max_bytes
        if not fits:
            raise self._refusal(where, f"has a chunk of {info.size:,} bytes that does not unpack to {size:,}")

    def _width(self, dataset: Any) -> int:
        """Bytes of an entry of a dataset in the file."""
        if _any_length(dataset.dtype):
            return self._heaps.reference_bytes
        return int(dataset.id.get_type().get_size())

    def _values(self, tree: Any, where: str) -> Any:
        if isinstance(tree, dict):
            return {name: self._values(item, f"{where}/{name}") for name, item in tree.items()}
        return _as_text(tree[()])


def _any_length(dtype: Any) -> bool:
    """Whether it is that of texts of any length, of which a dataset holds length, address and index."""
    text = h5py.check_string_dtype(dtype)
    return text is not None and text.length is None


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
