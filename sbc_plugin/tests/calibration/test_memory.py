"""What is left is what the machine and each control group leave; files of a made-up system say how much."""

from pathlib import Path

import pytest
import torch

from sbc_plugin.calibration import memory
from sbc_plugin.core.sizes import bytes_of, in_words
from sbc_plugin.errors import SettingsError


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 KiB available, whose process holds 100 KiB."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "KEPT_FREE", 0.0)
    _write(tmp_path / "proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    _write(tmp_path / "proc/self/status", "Name: python\nVmRSS:\t 100 kB\n")
    return tmp_path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_groups_the_machine_counts(system: Path) -> None:
    assert memory.memory_left() == 1000 * 1024
    assert memory.memory_left(400 * 1024) == 300 * 1024
    assert memory.memory_left(50 * 1024) == 0


@pytest.mark.parametrize("place", ["", "jobs", "jobs/mine"])
def test_the_narrowest_group_counts_wherever_it_stands(system: Path, place: str) -> None:
    _write(system / "proc/self/cgroup", "0::/jobs/mine\n")
    for folder in ("", "jobs", "jobs/mine"):
        _write(system / "groups" / folder / "memory.max", "max\n")
        _write(system / "groups" / folder / "memory.current", "5000\n")
    _write(system / "groups" / place / "memory.max", "9000\n")
    _write(system / "groups" / place / "memory.stat", "anon 3000\ninactive_file 1500\n")
    assert memory.memory_left() == 9000 - 5000 + 1500


def test_groups_of_the_first_version_are_read_as_well(system: Path) -> None:
    _write(system / "proc/self/cgroup", "4:cpu:/a\n3:memory:/a\n")
    _write(system / "groups/memory/a/memory.limit_in_bytes", "7000\n")
    _write(system / "groups/memory/a/memory.usage_in_bytes", "8000\n")
    assert memory.memory_left() == 0


def test_a_system_that_does_not_tell_leaves_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.memory_left() is None
    assert memory.memory_left(1000) == 900


@pytest.mark.parametrize(
    ("size", "count"),
    [("8 GiB", 8 * 2**30), ("0.5kB", 500), (" 3 MB ", 3_000_000), ("7", 7), ("2b", 2), (2.0, 2), ("1 TiB", 2**40)],
)
def test_sizes_in_words(size: object, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", ["8 gibi", "", "GiB", "-3 MB", "1e3", 0, -1, True, None, float("nan"), "0 MB", [3]])
def test_what_is_no_size_is_refused_by_its_value(size: object) -> None:
    with pytest.raises(SettingsError, match="memory="):
        bytes_of(size, "memory")


def test_sizes_are_told_in_the_largest_fitting_unit() -> None:
    assert [in_words(count) for count in (0, 1023, 1024, 5 * 2**20, 3 * 2**40)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "5.0 MiB", "3.0 TiB",
    ]  # fmt: skip


@pytest.mark.skipif(not memory.give_back(), reason="the C library does not give memory back when asked")
def test_what_is_freed_counts_as_left() -> None:
    limit, count, elements = 8 * 2**30, 3000, 20_000  # 240 MB in pieces that the C library keeps when they are freed
    before = memory.memory_left(limit)
    pieces = [torch.ones(elements) for _ in range(count)]
    last = torch.ones(elements)
    pieces.clear()
    after = memory.memory_left(limit)
    assert before is not None and after is not None and before - after < count * elements  # a quarter of them
    assert last.sum() == elements
