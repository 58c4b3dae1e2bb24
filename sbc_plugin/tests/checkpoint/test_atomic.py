"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from sbc_plugin.checkpoint.atomic import check_target, replacing
from sbc_plugin.errors import CheckpointError


def test_a_block_that_ends_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    target.chmod(0o640)
    with replacing(target) as beside:
        beside.write_text("new")
        assert target.read_text() == "old" and beside.suffix == ".txt"
    assert target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_new_file_has_the_rights_that_any_new_file_has(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with replacing(tmp_path / "new") as beside:
        beside.write_text("x")
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [ValueError("mistake"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), replacing(target) as beside:
        beside.write_text("ne")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    whole, link = tmp_path / "whole", tmp_path / "link"
    whole.write_text("old")
    link.symlink_to(whole)
    with replacing(link) as beside:
        beside.write_text("new")
    assert link.is_symlink() and whole.read_text() == "new"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"a\.txt cannot be written: No space left"),
        replacing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_folder_and_no_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(CheckpointError, match="has no folder"):
        check_target(tmp_path / "nowhere" / "a.txt")
    assert check_target(tmp_path / "a.txt") == tmp_path / "a.txt"


def test_what_a_killed_process_has_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    target, others = tmp_path / "a[1].txt", (f".a1-{'0' * 32}.txt", f".a[1]-{'0' * 31}.txt", f".a[1]-{'0' * 32}.nir")
    for name in (f".a[1]-{'0' * 32}.txt", *others):
        (tmp_path / name).write_text("left")
    with replacing(target) as first:
        first.write_text("first")
        assert sorted(os.listdir(tmp_path)) == sorted([first.name, *others])
        with replacing(target) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert target.read_text() == "second"
    assert target.read_text() == "first" and sorted(os.listdir(tmp_path)) == sorted([target.name, *others])
