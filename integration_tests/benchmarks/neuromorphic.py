"""N-MNIST, DVS128-Gesture and CIFAR10-DVS from their published files, as frames; nothing is downloaded.

    data = n_mnist(Path("N-MNIST"), steps=100, most=1000)   # a Split, like those of the cases

Files are read here, each format being a few bit fields: recordings are cut into equal lengths of time, and a pixel of a
frame is 1 where at least one event fell. Channel 0 is ON (brighter), 1 OFF.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from integration_tests.benchmarks.splits import Split

POLARITY = 1  # AEDAT 3.1's type of packets that hold changes of intensity


class Recording(NamedTuple):
    """Events in the order of the file: pixels ``x``, ``y``, ``on`` (1 = brighter), and time ``t`` in microseconds."""

    x: NDArray[numpy.int64]
    y: NDArray[numpy.int64]
    on: NDArray[numpy.int64]
    t: NDArray[numpy.int64]


def frames(recording: Recording, steps: int, side: int) -> Tensor:
    """(steps, 2, side, side), uint8: where events fell, between the first and the last of them."""
    found = torch.zeros(steps, 2, side, side, dtype=torch.uint8)
    if len(recording.t):
        since = recording.t - recording.t.min()
        step = since * steps // (since.max() + 1)
        found[step, 1 - recording.on, recording.y, recording.x] = 1
    return found


def read_n_mnist(content: bytes) -> Recording:
    """Five bytes an event: x, y, then one bit of polarity (1 = ON) and 23 of time.

    Source: Orchard et al., Frontiers in Neuroscience 9 (2015), and the page of the data set.
    """
    rows = numpy.frombuffer(content, dtype=numpy.uint8).reshape(-1, 5).astype(numpy.int64)
    time = (rows[:, 2] & 0x7F) << 16 | rows[:, 3] << 8 | rows[:, 4]
    return Recording(rows[:, 0], rows[:, 1], rows[:, 2] >> 7, time)


def read_aedat2(content: bytes) -> Recording:
    """AEDAT 2.0 of a DVS128: lines with "#", then big-endian address and time; x is mirrored, a 0 is ON, as in jAER."""
    start = 0
    while content[start : start + 1] == b"#":
        start = content.index(b"\n", start) + 1
    pairs = numpy.frombuffer(content, dtype=">u4", offset=start).reshape(-1, 2).astype(numpy.int64)
    address, time = pairs[:, 0], pairs[:, 1]
    return Recording(127 - (address >> 1 & 0x7F), address >> 8 & 0x7F, 1 - (address & 1), time)


def read_aedat3(content: bytes) -> Recording:
    """AEDAT 3.1: a header, then packets of 28 bytes and their events; of these, the valid changes of intensity.

    Source: iniVation's description of the format.
    """
    end = b"#!END-HEADER\r\n"
    at = content.index(end) + len(end)
    data, times = [numpy.zeros(0, numpy.int64)], [numpy.zeros(0, numpy.int64)]
    while at < len(content):
        kind, _ = numpy.frombuffer(content, "<i2", 2, at)
        size, _, overflow, capacity, number, _ = numpy.frombuffer(content, "<i4", 6, at + 4).tolist()
        if kind == POLARITY:
            pairs = numpy.frombuffer(content, "<u4", 2 * number, at + 28).reshape(-1, 2).astype(numpy.int64)
            pairs = pairs[pairs[:, 0] & 1 == 1]
            data.append(pairs[:, 0])
            times.append(pairs[:, 1] | overflow << 31)
        at += 28 + capacity * size
    fields = numpy.concatenate(data)
    return Recording(fields >> 17 & 0x7FFF, fields >> 2 & 0x7FFF, fields >> 1 & 1, numpy.concatenate(times))


def n_mnist(root: Path, steps: int = 100, most: int | None = None) -> Split:
    """``Train/0/00002.bin`` ...: 34 x 34 pixels, ten digits; at most ``most`` recordings of each part.

    Raises:
        FileNotFoundError: the layout is another one.
    """

    def part(name: str) -> Iterator[tuple[Tensor, int]]:
        for path in _mixed(_found(root / name, "*/*.bin")):
            yield frames(read_n_mnist(path.read_bytes()), steps, side=34), int(path.parent.name)

    return _split(part("Train"), part("Test"), most)


def cifar10_dvs(root: Path, steps: int = 20, most: int | None = None) -> Split:
    """``airplane/cifar10_airplane_0.aedat`` ...: 128 x 128 pixels, ten classes in the order of their names.

    The data set has no split of its own: the last tenth of each class, by number, is held out.

    Raises:
        FileNotFoundError: the layout is another one.
    """
    paths = _found(root, "*/*.aedat")
    classes = sorted({path.parent.name for path in paths})
    known: list[Path] = []
    held_out: list[Path] = []
    for name in classes:
        numbered = sorted((p for p in paths if p.parent.name == name), key=lambda p: int(p.stem.rsplit("_", 1)[1]))
        cut = len(numbered) * 9 // 10
        known += numbered[:cut]
        held_out += numbered[cut:]

    def part(paths: list[Path]) -> Iterator[tuple[Tensor, int]]:
        for path in _mixed(paths):
            yield frames(read_aedat2(path.read_bytes()), steps, side=128), classes.index(path.parent.name)

    return _split(part(known), part(held_out), most)


def dvs128_gesture(root: Path, steps: int = 20, most: int | None = None) -> Split:
    """``trials_to_train.txt`` and ``_test``, ``user01_led.aedat``, ``user01_led_labels.csv``: eleven gestures.

    A file holds one user's gestures one after the other; the table tells each one's class (from 1), start and end (µs).

    Raises:
        FileNotFoundError: the layout is another one.
    """

    def part(name: str) -> Iterator[tuple[Tensor, int]]:
        (trials,) = _found(root, name)
        for trial in filter(None, map(str.strip, trials.read_text().splitlines())):
            whole = read_aedat3((root / trial).read_bytes())
            with (root / trial.replace(".aedat", "_labels.csv")).open(newline="") as file:
                for row in csv.DictReader(file):
                    inside = (whole.t >= int(row["startTime_usec"])) & (whole.t < int(row["endTime_usec"]))
                    gesture = Recording(*(values[inside] for values in whole))
                    yield frames(gesture, steps, side=128), int(row["class"]) - 1

    return _split(part("trials_to_train.txt"), part("trials_to_test.txt"), most)


def _found(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no {pattern} in {folder}; give the folder into which the data set was unpacked")
    return paths


def _mixed(paths: list[Path]) -> list[Path]:
    """The same paths in a fixed order that mixes the classes, so that the first ones are a fair sample."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    return [paths[number] for number in order.tolist()]


def _split(known: Iterable[tuple[Tensor, int]], held_out: Iterable[tuple[Tensor, int]], most: int | None) -> Split:
    parts = []
    for pairs in (known, held_out):
        samples, labels = zip(*islice(pairs, most), strict=True)
        parts.append((torch.stack(samples), torch.tensor(labels)))
    return Split(parts[0], parts[1], _time_first, calibrating=min(1000, len(parts[0][1])))


def _time_first(samples: Tensor) -> Tensor:
    return samples.transpose(0, 1)
