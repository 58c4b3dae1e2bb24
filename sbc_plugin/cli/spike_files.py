"""Spike data in ``.npy`` and ``.npz`` files: arrays, or lists of events. The formats stand in docs/spike-files.md."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from sbc_plugin.errors import CalibrationError

Array = numpy.ndarray[Any, Any]

EVENT_KEYS = ("t", "n", "x", "y", "p")
OPTIONAL = ("y", "p", "dt", "shape", "labels")
MAX_BYTES = 2**30  # that a file may take in memory, unless the user allows more
LARGEST = 2**53  # whole numbers up to here are whole in float64 too
DAMAGED = (
    ValueError, OSError, EOFError, KeyError, IndexError, TypeError, OverflowError, SyntaxError, RecursionError,
    NotImplementedError, RuntimeError, MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_spikes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor | None]:
    """Sequences (T, N, ...) of a file, and their labels (N,) if it holds some.

    Sizes are checked before memory is taken, so a damaged or hostile file cannot take more than ``max_bytes``.

    Args:
        path: ``.npy``: an array (T, N, ...). ``.npz``: such an array, alone or beside ``labels``; or events, one entry
            each in ``t`` (step, or seconds with ``dt``), ``n`` (sequence), ``x`` and, if there are, ``y`` and ``p``
            (column, row, polarity); several events at one place and step count as one.
        max_bytes: that an array of the file, or the array that events are brought into, may take.

    Returns:
        x: uint8 where events or whole numbers below 256 are given, else float32. labels: int64, or None.

    Raises:
        CalibrationError: no such file, no array file, or a layout that is none of these; names file and key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                _check_size(file, path.stat().st_size, str(path), max_bytes)
                file.seek(0)
                return _dense(numpy.load(file, allow_pickle=False), str(path)), None
            file.seek(0)
            arrays = _arrays(file, path, max_bytes)
    except FileNotFoundError:
        raise CalibrationError(f"no file {path}; give a .npy or .npz file with sequences (T, N, ...)") from None
    except CalibrationError:
        raise
    except DAMAGED as error:
        raise CalibrationError(
            f"{path} is no whole .npy or .npz file of numbers ({error}); write it with numpy.save or numpy.savez"
        ) from error
    x = _from_events(arrays, path, max_bytes) if "t" in arrays else _only_array(arrays, path)
    return x, _labels(arrays, x.shape[1], path)


def _arrays(file: Any, path: Path, max_bytes: int) -> dict[str, Array]:
    """All arrays of an ``.npz`` file, by name.

    Raises:
        CalibrationError: a member is no array, or larger than it may be.
    """
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise CalibrationError(
                    f"{path} holds {member.filename!r}, which is no array; write it with numpy.savez"
                )
            if name in arrays:
                raise CalibrationError(f"{path} holds {name!r} twice; write it with numpy.savez")
            with archive.open(member) as content:
                _check_size(content, member.file_size, f"{path}, {name}", max_bytes)
            with archive.open(member) as content:
                arrays[name] = numpy.lib.format.read_array(content, allow_pickle=False)
    return arrays


def _check_size(file: Any, size: int, where: str, max_bytes: int) -> None:
    """Compare the size that the header of an ``.npy`` file declares with the bytes that there are.

    Raises:
        CalibrationError: it is another, or more than may be read.
        ValueError: there is no header.
    """
    version = numpy.lib.format.read_magic(file)
    read_header = {
        (1, 0): numpy.lib.format.read_array_header_1_0,
        (2, 0): numpy.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"format {version} of .npy")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    declared = prod(shape) * dtype.itemsize
    if any(axis < 0 for axis in shape) or declared > size:
        raise CalibrationError(f"{where}: its header declares shape {shape} of {dtype}, and there are {size:,} bytes")
    if declared > max_bytes:
        raise CalibrationError(
            f"{where}: its shape {shape} of {dtype} takes {declared:,} bytes, more than max_bytes={max_bytes:,}; "
            "give a larger limit if the file is to be trusted"
        )


class Batches(Iterable[Any]):
    """Batches (T, size, ...) in float32, in order, as pairs with their labels if there are; the last may be smaller.

    Whole numbers stay as small as they are in the file: a batch is copied when it is asked for, each time anew.

    Args:
        x: (T, N, ...).
        labels: (N,), or None.
        size: sequences of a batch, at least 1.

    >>> [len(y) for _, y in Batches(torch.zeros(2, 5, 3), torch.arange(5), 2)]
    [2, 2, 1]
    >>> print(Batches(torch.zeros(20, 5, 3), None, 2))
    5 sequences of 20 steps, 3 inputs
    """

    def __init__(self, x: Tensor, labels: Tensor | None, size: int) -> None:
        self.x, self.labels, self.size = x, labels, size

    def __len__(self) -> int:
        """How many batches."""
        return -(-self.x.shape[1] // self.size)

    def __str__(self) -> str:
        """What the axes are taken for: data whose axes are turned is found out here."""
        steps, sequences, *features = self.x.shape
        shape = " x ".join(map(str, features))
        return f"{sequences} sequences of {steps} steps, {shape} inputs" + (", labelled" * (self.labels is not None))

    def __iter__(self) -> Iterator[Any]:
        """One batch after the other."""
        for start in range(0, self.x.shape[1], self.size):
            part = slice(start, start + self.size)
            x = self.x[:, part].float()
            yield x if self.labels is None else (x, self.labels[part])


def _dense(array: Array, where: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise CalibrationError(f"{where}: its type is {array.dtype}, numbers are needed: spikes 0 or 1, or currents")
    if array.ndim < 3 or 0 in array.shape:
        raise CalibrationError(f"{where}: its shape is {array.shape}; (T, N, ...) is needed: time, sequences, features")
    if array.dtype.kind == "b" or (array.dtype.kind != "f" and array.min() >= 0 and array.max() <= 255):
        return torch.from_numpy(array.astype(numpy.uint8))
    with numpy.errstate(over="ignore", invalid="ignore"):
        numbers = torch.from_numpy(array.astype(numpy.float32))
    if not numbers.isfinite().all():
        raise CalibrationError(f"{where} holds NaN, infinity or numbers beyond float32; clean the data")
    return numbers


def _only_array(arrays: Mapping[str, Array], path: Path) -> Tensor:
    """The one array that is not the labels.

    Raises:
        CalibrationError: there is none, or more than one.
    """
    names = [name for name in arrays if name != "labels"]
    if len(names) != 1:
        raise CalibrationError(
            f"{path} holds the arrays {sorted(arrays)}; one array (T, N, ...) is needed, and labels (N,) if there are; "
            "or events: t, n, x and, if there are, y, p, shape, dt, labels"
        )
    return _dense(arrays[names[0]], f"{path}, array {names[0]!r}")


def _from_events(arrays: Mapping[str, Array], path: Path, max_bytes: int) -> Tensor:
    unknown = sorted(arrays.keys() - {*EVENT_KEYS, *OPTIONAL})
    missing = [name for name in ("n", "x") if name not in arrays]
    if missing or unknown:
        what = f"lacks {missing}" if missing else f"holds {unknown}, which events do not have"
        raise CalibrationError(f"{path} {what}; events are t, n, x and, if there are, y, p, shape, dt, labels")
    count = arrays["t"].size
    index = []
    for name in ("t", "n", "p", "y", "x"):
        if name in arrays:
            if arrays[name].shape != (count,):
                raise CalibrationError(f"{path}, {name}: its shape is {arrays[name].shape}, that of t is ({count},)")
            index.append(_whole(arrays, name, path))
    if not count:
        raise CalibrationError(f"{path} holds no event; give at least one")
    largest = tuple(int(values.max()) + 1 for values in index)
    shape = _shape(arrays["shape"], path) if "shape" in arrays else largest
    axes = [name for name in ("t", "n", "p", "y", "x") if name in arrays]
    if len(shape) != len(index) or any(size < needed for size, needed in zip(shape, largest, strict=True)):
        raise CalibrationError(
            f"{path}, shape: {shape} does not hold events up to {largest}; its axes: {', '.join(axes)}"
        )
    if prod(shape) > max_bytes:
        cause = "give dt (s), the step of time, and times in seconds" if "dt" not in arrays else "give a larger dt"
        raise CalibrationError(
            f"{path}: its events lie in {' x '.join(map(str, shape))} ({', '.join(axes)}), which takes {prod(shape):,} "
            f"bytes, more than max_bytes={max_bytes:,}; if t is in another unit than steps, such as microseconds, "
            f"{cause}"
        )
    x = torch.zeros(shape, dtype=torch.uint8, device="cpu")
    x[tuple(torch.from_numpy(values) for values in index)] = 1
    return x


def _shape(given: Array, path: Path) -> tuple[int, ...]:
    """The shape that a file of events declares.

    Raises:
        CalibrationError: it is not made of whole numbers.
    """
    if given.dtype.kind not in "iuf" or any(not 0 < float(size) <= LARGEST or float(size) % 1 for size in given.flat):
        raise CalibrationError(f"{path}, shape: {given.tolist()}; positive whole numbers are needed, one for each axis")
    return tuple(int(size) for size in given.flat)


def _whole(arrays: Mapping[str, Array], name: str, path: Path) -> Array:
    """One column of the events as whole numbers from 0.

    Raises:
        CalibrationError: they are not.
    """
    values = arrays[name]
    if values.dtype.kind not in "biuf":
        raise CalibrationError(f"{path}, {name}: its type is {values.dtype}, whole numbers are needed")
    if name == "t" and "dt" in arrays:
        # An event on the border of two steps belongs to the later one, also where t / dt is a hair below it.
        with numpy.errstate(over="ignore", invalid="ignore"):
            values = numpy.floor(values / _dt(arrays["dt"], path) + 1e-6)
    largest = float(values.max()) if values.size else 0.0
    if not numpy.isfinite(values).all() or largest > LARGEST or (values.size and float(values.min()) < -LARGEST):
        raise CalibrationError(f"{path}, {name}: it holds NaN, infinity or numbers up to {largest:g}; count from 0")
    whole = values.astype(numpy.int64)
    if (whole != values).any():
        advice = "give dt (s), the step of time, beside times in seconds" if name == "t" else "give whole numbers"
        raise CalibrationError(f"{path}, {name}: {values[whole != values][0]:g} is not whole; {advice}")
    if whole.size and whole.min() < 0:
        raise CalibrationError(f"{path}, {name}: {whole.min()} is below 0; count from 0")
    return whole


def _dt(given: Array, path: Path) -> float:
    """The step of time that a file of events declares, s.

    Raises:
        CalibrationError: it is no positive number.
    """
    number = float(given.flat[0]) if given.size == 1 and given.dtype.kind in "iuf" else None
    if number is None or not 0 < number < float("inf"):
        shown = given.tolist() if number is None else f"{number:g}"
        raise CalibrationError(f"{path}, dt: {shown} is no step of time; give seconds, e.g. 1e-3")
    return number


def _labels(arrays: Mapping[str, Array], sequences: int, path: Path) -> Tensor | None:
    if "labels" not in arrays:
        return None
    labels = arrays["labels"]
    if labels.shape != (sequences,) or labels.dtype.kind not in "biu" or (labels > numpy.iinfo(numpy.int64).max).any():
        raise CalibrationError(
            f"{path}, labels: {labels.dtype} {labels.shape}; a whole number for each of {sequences} sequences is needed"
        )
    return torch.from_numpy(labels.astype(numpy.int64))
