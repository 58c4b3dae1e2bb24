"""Pieces come back as they were, in every bit; what is damaged does not come back at all."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sbc_plugin.checkpoint.folder import JOB, Folder, opened
from sbc_plugin.errors import CheckpointError


@dataclass(frozen=True)
class Row:
    name: str
    values: Tensor
    inner: Any = None


def same(a: Any, b: Any) -> bool:
    """Equality in type, value and layout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        bits = [x.contiguous().reshape(-1).view(torch.uint8).tolist() for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and bits[0] == bits[1]
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Row):
        return same(vars(a), vars(b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


X = torch.arange(12.0).view(4, 3) / 7
VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 0.1, 1e-320, float("inf"), float("nan"), "", "a/\ud800\n", [], (), {}, X, X.mT,
    X.double(), X.bfloat16(), X > 0, X[:0], torch.tensor(3),
    torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    {"b": 1, "a": (X, [X, None]), 3: "x"}, Row("a", X, Row("b", X.mT, {"c": (1,)})), [Row("a", X[1:])] * 2,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_values_come_back_in_every_bit(number: int, tmp_path: Path) -> None:
    folder = Folder(tmp_path, (Row,))
    folder.write(("a",), VALUES[number])
    kept = folder.read(("a",))
    assert kept is not None and same(kept.value, VALUES[number])


def test_what_is_read_lies_where_torch_lays_tensors(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ())
    folder.write(("a",), [torch.ones(1, dtype=torch.uint8), torch.ones(5, 5)])
    kept = folder.read(("a",))
    assert kept is not None
    assert all(x.data_ptr() % 64 == torch.empty(25).data_ptr() % 64 for x in kept.value)


def test_an_expanded_tensor_keeps_its_values(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ())
    folder.write(("a",), torch.ones(3, 1).expand(3, 4))
    kept = folder.read(("a",))
    assert kept is not None and kept.value.tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("value", [object(), {1}, [Row("a", X)], 1j, b"x", torch.nn.Linear(1, 1)])
def test_nothing_else_can_be_kept(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is no record that can be kept"):
        Folder(tmp_path, ()).write(("a",), value)
    assert os.listdir(tmp_path) == []


def test_names_of_all_kinds_are_files_of_their_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ())
    names = [("a", "b"), ("a b",), ("a-b",), ("a/b",), ("../a",), ("a" * 999,), ("a" * 998,), ("",), (), ("\ud800",)]
    for number, name in enumerate(names):
        folder.write(name, number)
    read = [folder.read(name) for name in names]
    assert [kept and kept.value for kept in read] == list(range(len(names)))
    assert len(os.listdir(tmp_path)) == len(names) and not list(tmp_path.parent.glob("a*.safetensors"))


def test_every_byte_counts(tmp_path: Path) -> None:
    folder = Folder(tmp_path, (Row,), job="j")
    folder.write(("a",), Row("b", torch.arange(3)))
    file = folder.file(("a",))
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            kept = folder.read(("a",))
        except CheckpointError:
            continue
        assert kept is None or same(kept.value, Row("b", torch.arange(3))), place  # padding may change
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert folder.read(("a",)) is None
    file.write_bytes(whole)
    assert folder.read(("a",)) is not None and folder.read(("b",)) is None


def test_pieces_of_other_jobs_names_and_formats_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, (), job="one")
    folder.write(("a",), 1)
    folder.file(("a",)).rename(folder.file(("b",)))
    assert folder.read(("b",)) is None
    folder.write(("a",), 1)
    with pytest.raises(CheckpointError, match="belongs to another job"):
        Folder(tmp_path, (), job="two").read(("a",))
    monkeypatch.setattr("sbc_plugin.checkpoint.folder.FORMAT", 99)
    folder.write(("a",), 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1"):
        folder.read(("a",))


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "job"
    with opened(path, ()) as folder:
        folder.write(JOB, "x")
        for _ in range(2):
            with (
                pytest.raises(CheckpointError, match="is in use"),
                opened(tmp_path / "deep" / ".." / "deep" / "job", ()),
            ):
                pass
    with pytest.raises(ZeroDivisionError), opened(path, ()):
        raise ZeroDivisionError
    with opened(path, ()) as folder:
        assert folder.holds(JOB) and folder.is_empty()
        folder.write(("a",), 1)
        folder.write(("b",), 1)
        assert not folder.is_empty()
        folder.remove_all_but([("a",)])
        assert not folder.holds(("b",)) and folder.holds(("a",)) and folder.holds(JOB)


def test_errors_of_the_block_are_its_own(tmp_path: Path) -> None:
    for error in (OSError(5, "of a disk"), ValueError("of a user")):
        with pytest.raises(type(error)) as caught, opened(tmp_path / "a", ()):
            raise error
        assert caught.value is error


def test_what_a_process_left_that_was_killed_at_once_is_no_other_folder(tmp_path: Path) -> None:
    own = Folder(tmp_path, ()).file(JOB)
    (tmp_path / "lock").touch()
    (tmp_path / f".{own.stem}-{'0' * 32}{own.suffix}").write_text("half")
    with opened(tmp_path, ()) as folder:
        folder.write(JOB, "x")
    assert sorted(os.listdir(tmp_path)) == sorted([own.name, "lock"])


@pytest.mark.parametrize("name", ["\0", "a" * 5000])
def test_impossible_paths_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used"), opened(tmp_path / name, ()):
        pass
