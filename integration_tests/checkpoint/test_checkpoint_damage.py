"""Damaged and foreign files, models that do not fit, full disks: named, and nothing is lost."""

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import norse.torch as norse
import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from integration_tests.checkpoint.test_checkpoint import KINDS, linear, neuron
from sbc_plugin import load, save
from sbc_plugin.checkpoint import file as checkpoint
from sbc_plugin.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    small, _, _, report = KINDS["unstructured"](4)
    path = tmp_path / "small.safetensors"
    save(path, small, report)
    return path


def test_every_truncation_is_found(file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"small\.safetensors"):
            load(file)


def test_every_flipped_bit_is_found_and_the_model_stays(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    model = linear(seed=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load(file, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_foreign_files_are_named(tmp_path: Path, file: Path) -> None:
    text, arrays, foreign = tmp_path / "text", tmp_path / "a.npz", tmp_path / "b.safetensors"
    text.write_text("not a checkpoint at all")
    numpy.savez(arrays, a=numpy.ones(3))
    safetensors.torch.save_file({"a": torch.ones(3)}, foreign)
    for path, told in ((text, "no safetensors file"), (arrays, "no safetensors file"), (foreign, "did not write")):
        with pytest.raises(CheckpointError, match=told):
            load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)


def test_a_newer_format_is_named(file: Path) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    told = json.loads(table["__metadata__"][checkpoint.KEY])
    table["__metadata__"][checkpoint.KEY] = json.dumps(told | {"format": checkpoint.FORMAT + 1})
    text = json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=rf"format {checkpoint.FORMAT + 1}.*update"):
        load(file)


def other_widths() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(16, 7), norse.LIFBoxCell(neuron(0)), nn.Linear(7, 8, bias=False), norse.LIFCell()
    )


def other_neuron() -> nn.Module:
    return norse.SequentialState(nn.Linear(16, 8), norse.LIFCell(), nn.Linear(8, 8, bias=False), norse.LIFCell())


def other_names() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(16, 8, bias=False), norse.LIFBoxCell(neuron(0)), nn.Linear(8, 8), norse.LIFCell()
    )


def shorter() -> nn.Module:
    return norse.SequentialState(nn.Linear(16, 8), norse.LIFBoxCell(neuron(0)))


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (other_widths, ["layer '0'", "(8,)", "(7,)"]),
        (other_neuron, ["1"]),
        (other_names, ["the model lacks '0.bias'", "the file lacks '2.bias'"]),
        (shorter, ["no module '3'"]),
    ],
)
def test_a_model_that_does_not_fit_is_named_and_left_alone(
    file: Path, build: Callable[[], nn.Module], parts: list[str]
) -> None:
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load(file, model)
    assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as half:
            half.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(file, linear())
    assert file.read_bytes() == old and os.listdir(file.parent) == [file.name]


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no folder"):
        save(tmp_path / "nowhere" / "a.safetensors", linear())
