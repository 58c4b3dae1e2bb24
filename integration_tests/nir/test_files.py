"""A .nir file in, a compressed .nir file out, and the same spikes from it; real networks; what happens if it fails."""

import os
from pathlib import Path
from typing import Any

import h5py
import nir
import norse
import numpy
import pytest
import torch

from integration_tests.benchmarks import braille
from integration_tests.models.nir_graphs import DT, GRAPHS, dense, graph, lif, run, spikes
from integration_tests.models.one_shot import ONE_SHOT
from sbc_plugin import Prune, Quantize
from sbc_plugin.demo import digits, network
from sbc_plugin.errors import CheckpointError, SettingsError, UnsupportedModelError
from sbc_plugin.nir import compress_file, integers, read, write

DATA = Path(os.environ.get("SBC_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHIPPED = Path(norse.__file__).parent / "torch" / "utils" / "test" / "braille.nir"


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_file_gives_the_spikes_of_the_compressed_model(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "dense.nir", tmp_path / "small.nir"
    nir.write(source, GRAPHS[kind]())
    shape = read(source).input_shape
    small, report = compress_file(
        source, target, [spikes(shape, seed=1)], prune=Prune(0.3), quantize=Quantize(4), calibration=ONE_SHOT, dt=2 * DT
    )
    again = read(target)
    x = spikes(shape, steps=60, batch=8, seed=2)
    expected = run(small, x)
    assert len(expected.unique()) > 1
    assert torch.equal(run(again, x), expected)
    assert not torch.equal(run(read(source, dt=2 * DT), x), expected)
    assert again.dt == small.dt == report.settings["dt"] == 2 * DT  # noted in the file
    assert abs(report.sparsity - 0.3) < 0.1 and all(layer.bits == 4 for layer in report.layers)
    assert all(found.codes.abs().max() <= 7 for found in integers(again).values())
    assert sorted(os.listdir(tmp_path)) == ["dense.nir", "small.nir"]


@pytest.mark.parametrize("kind", ["LIF", "IF", "recurrent CubaLIF"])
def test_the_reset_method_is_noted_in_the_file(kind: str, tmp_path: Path) -> None:
    nir.write(tmp_path / "dense.nir", GRAPHS[kind]())
    data, x = [spikes((5,), seed=1)], spikes((5,), steps=60, batch=8, seed=2)
    small, _ = compress_file(
        tmp_path / "dense.nir", tmp_path / "small.nir", data, quantize=Quantize(3), reset_method="reset_subtract"
    )
    expected = run(small, x)
    assert torch.equal(run(read(tmp_path / "small.nir"), x), expected)
    assert not torch.equal(run(read(tmp_path / "small.nir", reset_method="reset_value"), x), expected)


def test_real_digits(tmp_path: Path) -> None:
    data, model = digits.load(), network.pretrained(seed=0)
    x, labels = data.test.batches(100)[0]
    write(tmp_path / "dense.nir", model, input_shape=(2, 16, 16))
    assert torch.equal(run(read(tmp_path / "dense.nir"), x), run(model, x))
    calibration_data, bits = data.calibration.batches(50)[:2], Quantize(4)
    small, _ = compress_file(tmp_path / "dense.nir", tmp_path / "small.nir", calibration_data, quantize=bits)
    expected = run(small, x)
    assert torch.equal(run(read(tmp_path / "small.nir"), x), expected)
    assert (expected.sum(0).argmax(1) == labels).double().mean() > 0.8


@pytest.mark.skipif(not SHIPPED.exists(), reason="this norse ships no braille.nir")
def test_the_file_that_norse_ships(tmp_path: Path) -> None:
    small, _ = compress_file(
        SHIPPED, tmp_path / "small.nir", [spikes((12,), 40, seed=1)], quantize=Quantize(4), dt=1e-4
    )
    x = spikes((12,), 100, 16, seed=2)
    expected = run(small, x)
    assert expected.any() and torch.equal(run(read(tmp_path / "small.nir"), x), expected)
    before, after = nir.read(SHIPPED), nir.read(tmp_path / "small.nir")
    assert set(before.nodes) == set(after.nodes) and set(before.edges) == set(after.edges)
    for name in ("lif1.lif", "lif2"):
        for field in ("tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset"):
            # Norse computes in float32
            numpy.testing.assert_allclose(
                getattr(after.nodes[name], field), getattr(before.nodes[name], field), rtol=1e-7
            )


@pytest.mark.skipif(braille.folder_of(DATA) is None, reason="no Braille data; set SBC_DATA")
def test_braille_at_4_bits_loses_at_most_2_points(tmp_path: Path) -> None:
    folder = braille.folder_of(DATA)
    assert folder is not None
    x, labels = braille.recordings(folder)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, held_out = order[: braille.CALIBRATION], order[braille.CALIBRATION :]
    source, target = folder / braille.NETWORK, tmp_path / "small.nir"
    small, _ = compress_file(source, target, [x[:, known]], quantize=Quantize(4), dt=1e-4)
    expected, found = run(small, x[:, held_out]), run(read(target), x[:, held_out])
    assert torch.equal(found, expected)
    dense_score = braille.accuracy(read(source, dt=1e-4), x[:, held_out], labels[held_out])
    score = float((found.sum(0).argmax(1) == labels[held_out]).double().mean())
    assert dense_score > 0.9 and score >= dense_score - 0.02


def quantised(source: Any, target: Any, **settings: Any) -> None:
    compress_file(source, target, [spikes((5,))], quantize=Quantize(4), **settings)


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "dense.nir", tmp_path / "small.nir"
    nir.write(source, dense(lif))
    target.write_bytes(b"what was there")

    def broken(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(CheckpointError, match=r"small\.nir cannot be written: No space left.*has space"):
        quantised(source, target)
    assert target.read_bytes() == b"what was there"
    assert sorted(os.listdir(tmp_path)) == ["dense.nir", "small.nir"]


def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    source = tmp_path / "dense.nir"
    nir.write(source, dense(lif))
    with pytest.raises(CheckpointError, match=r"missing.*give the path of a file in a folder that exists"):
        quantised(source, tmp_path / "missing" / "small.nir")
    with pytest.raises(CheckpointError, match="is a folder"):
        quantised(source, tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # the administrator may write anywhere
        with pytest.raises(CheckpointError, match="lets you write"):
            quantised(source, closed / "small.nir")
    assert os.listdir(closed) == []


def test_a_failed_compression_leaves_no_file(tmp_path: Path) -> None:
    nir.write(tmp_path / "dense.nir", dense(lif))
    with pytest.raises(SettingsError, match="nothing to do"):
        compress_file(tmp_path / "dense.nir", tmp_path / "small.nir", [spikes((5,))])
    with pytest.raises(SettingsError, match=r"n1.*dt=0\.1 s is longer than a time constant.*give dt="):
        quantised(tmp_path / "dense.nir", tmp_path / "small.nir", dt=0.1)
    assert os.listdir(tmp_path) == ["dense.nir"]


def test_sources_that_are_no_nir(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.nir is not a file"):
        read(tmp_path / "missing.nir")
    text = tmp_path / "text.nir"
    text.write_text("no hierarchical data")
    with pytest.raises(CheckpointError, match=r"text\.nir cannot be read as NIR"):
        read(text)
    half = tmp_path / "half.nir"
    nir.write(half, dense(lif))
    half.write_bytes(half.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"half\.nir cannot be read as NIR"):
        read(half)


def test_a_damaged_node_is_no_unknown_node(tmp_path: Path) -> None:
    path = tmp_path / "odd.nir"
    nir.write(path, dense(lif))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n1/tau"]
        file["node/nodes/n1/tau"] = numpy.ones(3)
    with pytest.raises(CheckpointError, match="cannot be read as NIR: All parameters must have the same shape"):
        read(path)


def test_unknown_and_unsupported_nodes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Novel(nir.Threshold):  # type: ignore[misc]
        pass

    path = tmp_path / "novel.nir"
    edges = [("input", "odd"), ("odd", "output")]
    nir.write(path, graph((5,), (5,), {"odd": Novel(numpy.ones(5))}, edges))
    with pytest.raises(UnsupportedModelError, match="nodes of type Novel, which nir"):
        read(path)
    with pytest.raises(UnsupportedModelError, match=r"'odd'.*Threshold has no rule; those with one are Linear"):
        read(graph((5,), (5,), {"odd": nir.Threshold(numpy.ones(5))}, edges))


def test_a_file_is_readable_by_others_and_replaced_whole(tmp_path: Path) -> None:
    model = read(dense(lif))
    write(tmp_path / "a.nir", model)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a.nir").stat().st_mode & 0o777 == 0o666 & ~mask
    write(tmp_path / "a.nir", read(GRAPHS["IF"]()))
    assert isinstance(nir.read(tmp_path / "a.nir").nodes["n1"], nir.IF)
