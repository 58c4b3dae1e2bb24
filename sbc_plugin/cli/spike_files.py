"""Spike data in ``.npy`` and ``.npz`` files: arrays, or lists of events. The formats stand in docs/spike-files.md."""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from sbc_plugin.errors import CalibrationError

Array = numpy.ndarray[Any, Any]

EVENT_KEYS = ("t", "n", "x", "y", "p")
OPTIONAL = ("y", "p", "dt", "shape", "labels")


def read_spikes(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Sequences (T, N, ...) of a file, and their labels (N,) if it holds some.

    Args:
        path: ``.npy``: an array (T, N, ...). ``.npz``: such an array, alone or beside ``labels``; or events, one entry
            each in ``t`` (step, or seconds with ``dt``), ``n`` (sequence), ``x`` and, if there are, ``y`` and ``p``
            (column, row, polarity); several events at one place and step count as one.

    Returns:
        x: uint8 where events or whole numbers below 256 are given, else float32. labels: int64, or None.

    Raises:
        CalibrationError: no such file, no array file, or a layout that is none of these; names file and key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            loaded = numpy.load(file, allow_pickle=False)
            if isinstance(loaded, numpy.ndarray):
                return _dense(loaded, str(path)), None
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise CalibrationError(f"no file {path}; give a .npy or .npz file with sequences (T, N, ...)") from None
    except CalibrationError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(
            f"{path} is no whole .npy or .npz file of numbers ({error}); write it with numpy.save or numpy.savez"
        ) from error
    x = _from_events(arrays, path) if "t" in arrays else _only_array(arrays, path)
    return x, _labels(arrays, x.shape[1], path)


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
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(numpy.float32))
    if array.dtype.kind != "b" and (array.min() < 0 or array.max() > 255):
        return torch.from_numpy(array.astype(numpy.float32))
    return torch.from_numpy(array.astype(numpy.uint8))


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


def _from_events(arrays: Mapping[str, Array], path: Path) -> Tensor:
    unknown = sorted(arrays.keys() - {*EVENT_KEYS, *OPTIONAL})
    missing = [name for name in ("n", "x") if name not in arrays]
    if missing or unknown:
        what = f"lacks {missing}" if missing else f"holds {unknown}, which events do not have"
        raise CalibrationError(f"{path} {what}; events are t, n, x and, if there are, y, p, shape, dt, labels")
    count = len(arrays["t"].reshape(-1))
    index = []
    for name in ("t", "n", "p", "y", "x"):
        if name in arrays:
            if arrays[name].shape != (count,):
                raise CalibrationError(f"{path}, {name}: its shape is {arrays[name].shape}, that of t is ({count},)")
            index.append(_whole(arrays, name, path))
    if not count:
        raise CalibrationError(f"{path} holds no event; give at least one")
    largest = [int(values.max()) + 1 for values in index]
    shape = tuple(int(size) for size in arrays["shape"].reshape(-1)) if "shape" in arrays else tuple(largest)
    if len(shape) != len(index) or any(size < needed for size, needed in zip(shape, largest, strict=True)):
        axes = ", ".join(name for name in ("t", "n", "p", "y", "x") if name in arrays)
        raise CalibrationError(f"{path}, shape: {shape} does not hold events up to {tuple(largest)}; its axes: {axes}")
    x = torch.zeros(shape, dtype=torch.uint8, device="cpu")
    x[tuple(torch.from_numpy(values) for values in index)] = 1
    return x


def _whole(arrays: Mapping[str, Array], name: str, path: Path) -> Array:
    """One column of the events as whole numbers from 0.

    Raises:
        CalibrationError: they are not.
    """
    values = arrays[name]
    if values.dtype.kind not in "biuf":
        raise CalibrationError(f"{path}, {name}: its type is {values.dtype}, whole numbers are needed")
    if name == "t" and "dt" in arrays:
        dt = float(arrays["dt"].reshape(-1)[0])
        if not dt > 0:
            raise CalibrationError(f"{path}, dt: {dt:g} is no step of time; give seconds, e.g. 1e-3")
        # An event on the border of two steps belongs to the later one, also where t / dt is a hair below it.
        values = numpy.floor(values / dt + 1e-6)
    whole = values.astype(numpy.int64)
    if (whole != values).any():
        advice = "give dt (s), the step of time, beside times in seconds" if name == "t" else "give whole numbers"
        raise CalibrationError(f"{path}, {name}: {values[whole != values][0]:g} is not whole; {advice}")
    if whole.size and whole.min() < 0:
        raise CalibrationError(f"{path}, {name}: {whole.min()} is below 0; count from 0")
    return whole


def _labels(arrays: Mapping[str, Array], sequences: int, path: Path) -> Tensor | None:
    if "labels" not in arrays:
        return None
    labels = arrays["labels"]
    if labels.shape != (sequences,) or labels.dtype.kind not in "biu":
        raise CalibrationError(
            f"{path}, labels: {labels.dtype} {labels.shape}; a whole number for each of {sequences} sequences is needed"
        )
    return torch.from_numpy(labels.astype(numpy.int64))
