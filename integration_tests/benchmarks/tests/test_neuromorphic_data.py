"""N-MNIST, CIFAR10-DVS and DVS128-Gesture, on small files in the published layouts that the tests write."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from integration_tests.benchmarks.neuromorphic import cifar10_dvs, dvs128_gesture, n_mnist, read_aedat3
from integration_tests.benchmarks.splits import Split

Event = tuple[int, int, int, int]  # x, y, on, microseconds
EVENTS: list[Event] = [(3, 5, 1, 1000), (30, 6, 0, 1400), (3, 5, 1, 1999)]
FRAMES = {(0, 0, 5, 3), (0, 1, 6, 30), (1, 0, 5, 3)}  # step, channel, row, column: in two steps of 500 us


def as_n_mnist(events: list[Event]) -> bytes:
    return b"".join(bytes([x, y]) + (on << 23 | t).to_bytes(3, "big") for x, y, on, t in events)


def as_aedat2(events: list[Event]) -> bytes:
    head = b"#!AER-DAT2.0\r\n# a comment\r\n"
    return head + b"".join(struct.pack(">II", y << 8 | (127 - x) << 1 | (1 - on), t) for x, y, on, t in events)


def as_aedat3(events: list[Event], kind: int = 1, valid: int = 1, overflow: int = 0) -> bytes:
    packet = struct.pack("<hhiiiiii", kind, 0, 8, 4, overflow, len(events), len(events), len(events))
    return packet + b"".join(struct.pack("<II", x << 17 | y << 2 | on << 1 | valid, t) for x, y, on, t in events)


HEAD = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"


def ones(frames: Tensor) -> set[tuple[int, ...]]:
    return {tuple(index) for index in frames.nonzero().tolist()}


def n_mnist_files(root: Path) -> Split:
    for part, digit in (("Train", 0), ("Train", 7), ("Test", 7)):
        (root / part / str(digit)).mkdir(parents=True)
        (root / part / str(digit) / "00001.bin").write_bytes(as_n_mnist(EVENTS))
    return n_mnist(root, steps=2)


def cifar10_files(root: Path) -> Split:
    for name in ("airplane", "cat"):
        (root / name).mkdir()
        for number in range(10):
            (root / name / f"cifar10_{name}_{number}.aedat").write_bytes(as_aedat2(EVENTS))
    return cifar10_dvs(root, steps=2)


def gesture_files(root: Path) -> Split:
    later = [(x, y, 1 - on, t + 5000) for x, y, on, t in EVENTS]
    for user, part in (("user01_led", "train"), ("user24_led", "test")):
        (root / f"trials_to_{part}.txt").write_text(f"{user}.aedat\n\n")
        (root / f"{user}.aedat").write_bytes(HEAD + as_aedat3(EVENTS) + as_aedat3(later))
        table = "class,startTime_usec,endTime_usec\n11,1000,2000\n1,6000,7000\n"
        (root / f"{user}_labels.csv").write_text(table)
    return dvs128_gesture(root, steps=2)


@pytest.mark.parametrize(
    ("written", "side", "known", "held_out"),
    [
        (n_mnist_files, 34, [0, 7], [7]),
        (cifar10_files, 128, [0] * 9 + [1] * 9, [0, 1]),
        (gesture_files, 128, [0, 10], [0, 10]),
    ],
)
def test_each_layout_gives_the_events_that_were_written(
    tmp_path: Path, written: Callable[[Path], Split], side: int, known: list[int], held_out: list[int]
) -> None:
    data = written(tmp_path)
    assert sorted(data.training.labels.tolist()) == known and sorted(data.test.labels.tolist()) == held_out
    assert data.training.x.shape == (2, len(known), 2, side, side)
    flipped = {(step, 1 - channel, row, column) for step, channel, row, column in FRAMES}
    for number, label in enumerate(data.test.labels.tolist()):
        second_gesture = written is gesture_files and label == 0
        assert ones(data.test.x[:, number]) == (flipped if second_gesture else FRAMES)


def test_aedat3_leaves_out_what_is_no_valid_change_and_counts_overflows() -> None:
    noise = as_aedat3(EVENTS, kind=2) + as_aedat3(EVENTS, valid=0)
    found = read_aedat3(HEAD + noise + as_aedat3(EVENTS[:1], overflow=1))
    assert found.t.tolist() == [2**31 + 1000] and (found.x.tolist(), found.y.tolist()) == ([3], [5])


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    for load in (n_mnist, cifar10_dvs, dvs128_gesture):
        with pytest.raises(FileNotFoundError, match="unpacked"):
            load(tmp_path)
