"""The bytes of a checkpoint as header and tensors, after all checks that need no model.

Everything is bounded by the size of the file, and by a limit that the user can raise: what a header promises is
compared with the bytes that there are before memory is taken for it. Source: docs/checkpoint.md.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sbc_plugin.errors import CheckpointError

FORMAT = 2
KEY = "sbc_plugin"  # in the metadata of safetensors
HEADER, PACKED = "::header", "::packed"  # tensors of bytes; no module or parameter is called so
UNSIGNED = "0" * 64  # stands for the checksum while it is computed
MAX_BYTES = 2**30  # that a file may take in memory, unless the user allows more
JSON_RATIO = 32  # bytes that a character of JSON may take in memory: "{}," is a dict
LENGTH_BYTES = 8  # in front of the table


def read_file(path: Path, max_bytes: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours.

    Args:
        path: of the file.
        max_bytes: that the file, and its headers once they are unpacked, may take.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign, of a newer format, or larger.
    """
    data = _bytes_of(path, max_bytes)
    signed = _signature(path, data, max_bytes)
    try:
        tensors = safetensors.torch.load(data)
        tensors.setdefault(PACKED, torch.zeros(0, dtype=torch.uint8, device="cpu"))
        for name in (HEADER, PACKED):
            _check_bytes(name, tensors[name])
        header = signed | _unpacked_header(tensors.pop(HEADER), max_bytes // JSON_RATIO)
        _check_header(header)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged: {_reason(error)}; get it again") from error
    return header, tensors


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object in which no name stands twice.

    Raises:
        ValueError: it is none.

    >>> parsed(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: 'a' stands twice in one table
    """

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{max(names, key=names.count)!r} stands twice in one table")
        return content

    try:
        content = json.loads(text.decode(), object_pairs_hook=table)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError(f"a header is a {type(content).__name__}, not a table of names")
    return content


def _check_bytes(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is no row of bytes.

    Raises:
        ValueError: it is none.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"{name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, not bytes")


def _unpacked_header(data: Tensor, most: int) -> dict[str, Any]:
    """The header in a zlib stream of at most so many bytes.

    Raises:
        ValueError: it is longer, or no JSON object.
    """
    stream = zlib.decompressobj()
    text = stream.decompress(data.numpy().tobytes(), most)
    if not stream.eof:
        raise ValueError(f"its header does not end within {most:,} bytes; a larger max_bytes allows more")
    return parsed(text)


def _bytes_of(path: Path, max_bytes: int) -> bytes:
    """All of a file.

    Raises:
        CheckpointError: there is no such file, or it is larger than it may be.
    """
    try:
        size = path.stat().st_size
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path} cannot be read: it is no file; give the path of a file of save()")
        if size > max_bytes:
            raise CheckpointError(
                f"{path} has {size:,} bytes, more than max_bytes={max_bytes:,}; give a larger limit if the file is to "
                "be trusted"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}; give the path of a file of save()") from error


def _signature(path: Path, data: bytes, max_bytes: int) -> dict[str, Any]:
    """What the metadata say: format, checksum and version; they are those of these bytes.

    Raises:
        CheckpointError: they are not, or the file is none of ours.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    try:
        table = _table(data[LENGTH_BYTES:start], length, max_bytes // JSON_RATIO)
        metadata = table.pop("__metadata__", {})
        end = start + max((_end(entry) for entry in table.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{path}, {len(data):,} bytes, is no safetensors file, or it is truncated or damaged: {_reason(error)}; "
            "get it again"
        ) from error
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file that save() did not write; safetensors.torch.load_file reads it"
        )
    if len(data) != end:
        kind = (
            f"truncated: {len(data):,} of {end:,} bytes" if len(data) < end else f"{len(data) - end:,} bytes too long"
        )
        raise CheckpointError(f"{path} is {kind}; get it again")
    try:
        signed = _signed(metadata[KEY])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} has a damaged header ({_reason(error)}); get it again") from error
    version, checksum = signed["format"], signed["sha256"]
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads up to {FORMAT}; update sbc-plugin")
    if _checksum(data, checksum) != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum is not that of its bytes; get it again")
    return signed


def _table(text: bytes, length: int, most: int) -> dict[str, Any]:
    """The table of tensors.

    Raises:
        ValueError: it is shorter than the file's first bytes promise, longer than it may be, or no JSON object.
    """
    if length > most or length > len(text):
        raise ValueError(f"its first bytes promise a table of {length:,} bytes")
    return parsed(text)


def _signed(text: Any) -> dict[str, Any]:
    """Format, checksum and version.

    Raises:
        ValueError: they are none.
    """
    signed = parsed(str(text).encode())
    version, checksum = signed["format"], signed["sha256"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format {version!r}")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        raise ValueError("its checksum has not 64 digits")
    return signed


def _end(entry: Any) -> int:
    """Where the bytes of a tensor end.

    Raises:
        ValueError: they lie nowhere.
    """
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"a tensor lies from {begin!r} to {end!r}")
    return end


def _checksum(data: bytes, stored: str) -> str:
    place = data.find(stored.encode())
    whole = memoryview(data)
    parts: Iterable[Any] = (whole,) if place < 0 else (whole[:place], UNSIGNED.encode(), whole[place + len(stored) :])
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _check_header(header: dict[str, Any]) -> None:
    """Refuse a header whose tables are of other types than docs/checkpoint.md says.

    Raises:
        ValueError: one is.
    """
    packed, same, modules, report = (header[name] for name in ("packed", "same", "modules", "report"))
    if not isinstance(packed, dict) or not all(isinstance(form, dict) for form in packed.values()):
        raise ValueError("'packed' is no table of forms")
    if not isinstance(same, dict) or not all(isinstance(source, str) for source in same.values()):
        raise ValueError("'same' is no table of names")
    if report is not None and not isinstance(report, dict):
        raise ValueError("'report' is no table")
    if not isinstance(modules, list) or not all(map(_is_group, modules)):
        raise ValueError("'modules' is no list of names and records")


def _is_group(group: Any) -> bool:
    if not isinstance(group, list) or len(group) != 2:
        return False
    names, record = group
    return isinstance(record, dict) and isinstance(names, list) and all(isinstance(name, str) for name in names)


def _reason(error: Exception) -> str:
    """One short line: some libraries repeat what they were given."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return text.splitlines()[0][:200]
