"""The benchmark's loaders, on small files in the published layouts that the tests write."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from integration_tests.benchmarks import fashion, spikes_in, time_series, vowels
from integration_tests.benchmarks.cases import CASES
from sbc_plugin.demo.saccades import saccade_events

HEADER = "# a comment\n@problemName JapaneseVowels\n@equalLength false\n@classLabel true 1 2\n@data\n"


def idx(values: Tensor) -> bytes:
    """The IDX format: magic number with type and rank, sizes as big-endian integers, then the bytes."""
    head = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    return head + values.numpy().tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, packed: bool) -> None:
    images = torch.randint(0, 256, (300, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = idx(images)
    name = "train-images-idx3-ubyte.gz" if packed else "train-images-idx3-ubyte"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert torch.equal(fashion.read("train-images-idx3", tmp_path), images)


def test_the_split_shares_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 5), ("t10k", 3)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(torch.arange(count, dtype=torch.uint8)))
    monkeypatch.setenv("SBC_DATA", str(tmp_path))
    data = fashion.load(fashion.still)
    assert (len(data.training), len(data.calibration), len(data.test)) == (5, 5, 3)
    assert data.training.x.shape == (fashion.IMAGE_STEPS, 5, 1, 28, 28)
    (x, labels), *_ = data.test.batches(2)
    assert torch.equal(x[0], x[-1]) and labels.tolist() == [0, 1]


def test_events_are_those_of_the_framed_image() -> None:
    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = fashion.events(images)
    framed = torch.zeros(2, 34, 34)
    framed[:, 3:31, 3:31] = images.float() / 255
    assert torch.equal(found, saccade_events(framed, steps=10))


def test_series_of_different_length_end_in_zeros(tmp_path: Path) -> None:
    one = ":".join(f"{channel}.5,{channel}.25" for channel in range(12)) + ":2\n"
    two = ":".join("1.0,2.0,3.0" for _ in range(12)) + ":1\n"
    path = tmp_path / "JapaneseVowels_TRAIN.ts"
    path.write_text(HEADER + one + two)
    series, labels = vowels.read(path)
    assert series.shape == (2, 29, 12) and labels.tolist() == [1, 0]
    assert series[0, :2, 3].tolist() == [3.5, 3.25] and series[1, :3, 0].tolist() == [1.0, 2.0, 3.0]
    assert series[0, 2:].count_nonzero() == 0 and series[1, 3:].count_nonzero() == 0


def test_larger_values_spike_sooner() -> None:
    found = spikes_in.latencies(torch.tensor([[1.0, 0.0, 0.5]]), 5)
    assert found.shape == (5, 1, 6) and found.sum(0).tolist() == [[1.0] * 6]
    assert found[:, 0].argmax(0).tolist() == [0, 4, 2, 4, 0, 2]


def test_channels_that_never_change_are_silent() -> None:
    values = torch.stack([torch.full((2, 3), 7.0), torch.arange(6.0).reshape(2, 3)], 1)
    found = spikes_in.standardised(values)
    assert not found[:, 0].any()
    assert found[:, 1].mean().abs() < 1e-6 and abs(float(found[:, 1].std()) - 1) < 1e-6


def test_absent_data_say_where_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SBC_DATA", str(tmp_path))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setattr(time_series, "find_spec", lambda name: None)
    for case in CASES:
        with pytest.raises(FileNotFoundError, match=r"install|SBC_DATA"):
            case.data()
