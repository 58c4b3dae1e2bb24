"""Hostile and damaged .nir files: refused in one sentence, before anything is read, in bounded memory and time."""

import resource
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import norse.torch as norse
import numpy
import pytest
import torch
from torch import nn

from integration_tests.models.nir_graphs import GRAPHS, chain, cuba, dense, graph, lif, run, spikes, weight
from sbc_plugin.errors import CheckpointError, CompressionError, SettingsError, UnsupportedModelError
from sbc_plugin.nir import compress_file, read, write

W = "node/nodes/fc2/weight"  # (4, 6)
Edit = Callable[[Any], Any]


def put(name: str, data: Any = None, **settings: Any) -> Edit:
    """A dataset in the place of what is there."""

    def edit(file: Any) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=data, **settings)

    return edit


def link(name: str, to: Any) -> Edit:
    def edit(file: Any) -> None:
        if name in file:
            del file[name]
        file[name] = to(file) if callable(to) else to

    return edit


def edited(tmp_path: Path, edit: Edit, source: Any = None) -> Path:
    path = tmp_path / "edited.nir"
    nir.write(path, dense(lif) if source is None else source)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def refused(path: Any, message: str, error: type[CompressionError] = CheckpointError, **settings: Any) -> None:
    with pytest.raises(error, match=message) as raised:
        read(path, **settings)
    assert "\n" not in str(raised.value)


def external(file: Any) -> None:
    """The bytes of another file as a weight."""
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(b"x" * 96)
    del file[W]
    file.create_dataset(W, (4, 6), "f4", external=[(str(secret), 0, 96)])


def virtual(file: Any) -> None:
    """A dataset of another file as a weight."""
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as second:
        second["w"] = numpy.ones((4, 6), numpy.float32)
    layout = h5py.VirtualLayout((4, 6), "f4")
    layout[:] = h5py.VirtualSource(other, "w", (4, 6))
    del file[W]
    file.create_virtual_dataset(W, layout)


def outside(file: Any) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as second:
        second["w"] = numpy.ones((4, 6), numpy.float32)
    del file[W]
    file[W] = h5py.ExternalLink(str(other), "/w")


ELSEWHERE: dict[str, tuple[Edit, str]] = {
    "external storage": (external, "fc2/weight' is stored in another file"),
    "external link": (outside, "fc2/weight' is a link into another file"),
    "external link to a node": (link("node/nodes/fc2", h5py.ExternalLink("other.h5", "/n")), "link into another file"),
    "external link in the notes": (link("node/metadata/x", h5py.ExternalLink("other.h5", "/n")), "into another file"),
    "the root itself": (link("node", h5py.ExternalLink("other.h5", "/n")), "'node' is a link into another file"),
    "virtual dataset": (virtual, "fc2/weight' is a virtual dataset"),
    "soft link to itself": (link("node/edges", h5py.SoftLink("/node/edges")), "edges' is a soft link"),
    "soft links in a circle": (link("node/nodes/fc2", h5py.SoftLink("/node")), "fc2' is a soft link"),
    "soft link to nothing": (link(W, h5py.SoftLink("/nothing")), "is a soft link"),
    "hard links in a circle": (link("node/nodes/fc2/inner", lambda file: file["node/nodes"]), "or inside itself"),
    "a graph inside itself": (link("node/nodes/fc2", lambda file: file["node"]), "or inside itself"),
    "a node twice": (link("node/nodes/other", lambda file: file["node/nodes/fc2"]), "stands in the file twice"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_links_that_lead_elsewhere_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, message = ELSEWHERE[case]
    path = edited(tmp_path, edit)

    def reading(dataset: Any, index: Any) -> None:
        raise AssertionError(f"{dataset} was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", reading)
    refused(path, message)


def many_groups(file: Any) -> None:
    for i in range(120):
        file.create_group(f"node/nodes/fc2/{i}")


def deep(file: Any) -> None:
    file.create_group("node/nodes/fc2" + "/x" * 100)


def doubled(file: Any) -> None:
    """2^40 paths through 40 groups."""
    group = file["node/nodes/fc2"]
    for _ in range(30):
        first = group.create_group("a")
        group["b"] = first
        group = first


def bomb(file: Any) -> None:
    """A chunk of zlib that inflates to more than its dataset declares."""
    del file[W]
    made = file.create_dataset(W, (4, 6), "f4", chunks=(4, 6), compression="gzip")
    made.id.write_direct_chunk((0, 0), zlib.compress(b"\0" * 10**7, 9))


def referring(file: Any) -> None:
    file.create_dataset("node/metadata/ref", data=file["node"].ref, dtype=h5py.ref_dtype)


SIZES: dict[str, tuple[Edit, str]] = {
    "3.6 GB in chunks": (put(W, shape=(30000, 30000), dtype="f4", chunks=(64, 1)), "more than max_bytes"),
    "4 TB in chunks": (put(W, shape=(2**20, 2**20), dtype="f4", chunks=(64, 1)), "more than max_bytes"),
    "no chunk stored": (put(W, shape=(4, 6), dtype="f4", chunks=(2, 2)), "holds 0 of 6 chunks"),
    "nothing stored": (put(W, shape=(4, 6), dtype="f4"), "96 bytes, and 0 are stored"),
    "a large chunk": (
        put(W, data=numpy.ones((1, 1)), chunks=(2**11, 2**11), maxshape=(None, None), compression="gzip"),
        "more than max_bytes",
    ),
    "a zlib bomb": (bomb, "does not unpack to 96"),
    "long text": (put("node/type", data=b"x" * 2, dtype="S20000000"), "more than max_bytes"),
    "a filter of others": (put(W, numpy.ones((4, 6), "i4"), chunks=(4, 6), scaleoffset=2), "packed by filter 6"),
    "no extent": (put(W, data=h5py.Empty("f4")), "is empty"),
}


@pytest.mark.parametrize("case", SIZES)
def test_declared_sizes_are_compared_with_what_is_stored(case: str, tmp_path: Path) -> None:
    edit, message = SIZES[case]
    path = edited(tmp_path, edit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, message, max_bytes=10**7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_the_number_of_items_and_their_depth_are_bounded(tmp_path: Path) -> None:
    refused(edited(tmp_path, deep), "groups deep")
    refused(edited(tmp_path, doubled), "stands in the file twice")
    refused(edited(tmp_path, many_groups), "more than max_bytes=1,000,000", max_bytes=10**6)


def test_one_text_named_often_is_counted_each_time(tmp_path: Path) -> None:
    """A text of 1 MB, at which a hundred entries point."""
    path = edited(tmp_path, put("node/metadata/x", ["y" * 10**6] + ["z"] * 99, dtype=h5py.string_dtype()))
    data = path.read_bytes()
    with h5py.File(path, "r") as file:
        start = file["node/metadata/x"].id.get_offset()
    first = data[start : start + 16]  # length, and where the text lies
    path.write_bytes(data[:start] + first * 100 + data[start + 1600 :])
    refused(path, "more than max_bytes=20,000,000", max_bytes=20_000_000)


@pytest.mark.parametrize("settings", [{}, {"chunks": (2,)}, {"chunks": (2,), "compression": "gzip"}])
@pytest.mark.parametrize("length", [None, 2**31, 2**32 - 1])
def test_the_length_of_a_text_is_that_of_its_entry(length: int | None, settings: Any, tmp_path: Path) -> None:
    """HDF5 would take so much memory before it looks for the text."""
    path = edited(tmp_path, put("node/metadata/x", ["y" * 9, "z"], dtype=h5py.string_dtype(), **settings))
    with h5py.File(path, "r+") as file:
        dataset = file["node/metadata/x"]
        if settings:
            data = dataset.id.read_direct_chunk((0,))[1]
            data = zlib.decompress(data) if "compression" in settings else data
            changed = (9 if length is None else length).to_bytes(4, "little") + data[4:]
            dataset.id.write_direct_chunk((0,), zlib.compress(changed) if "compression" in settings else changed)
        start = dataset.id.get_offset()
    if length is not None and not settings:
        data = path.read_bytes()
        path.write_bytes(data[:start] + length.to_bytes(4, "little") + data[start + 4 :])
    if length is None:
        assert read(path).input_shape == (5,)
    else:
        refused(path, f"declares a text of {length:,} bytes")


def test_heaps_of_texts_are_checked_before_hdf5_reads_them(tmp_path: Path) -> None:
    """In a heap without sizes HDF5 goes round for ever."""
    path = tmp_path / "a.nir"
    nir.write(path, dense(lif))
    whole = path.read_bytes()
    heap = whole.find(b"GCOL")
    size = int.from_bytes(whole[heap + 8 : heap + 16], "little")
    for start, stop in ((16, size), (16, 32), (40, size), (0, 4), (4, 5), (8, 16)):
        path.write_bytes(whole[: heap + start] + bytes(stop - start) + whole[heap + stop :])
        refused(path, "is text: it|cannot be read as NIR")
    for number in (2**31, 2**63, size * 2):
        path.write_bytes(whole[: heap + 24] + number.to_bytes(8, "little") + whole[heap + 32 :])
        refused(path, "a heap whose objects do not fit into it")


def test_a_file_with_a_block_of_the_users_in_front_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.nir"
    nir.write(path, dense(lif))
    with h5py.File(path, "r") as source, h5py.File(tmp_path / "a.nir", "w", userblock_size=512) as target:
        for name in source:
            source.copy(name, target)
    assert torch.equal(run(read(tmp_path / "a.nir"), spikes((5,))), run(read(path), spikes((5,))))


def test_the_user_can_raise_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    nir.write(path, dense(lif))
    refused(path, r"more than max_bytes=100,000; give a larger limit", max_bytes=100_000)
    assert read(path, max_bytes=1_000_000).input_shape == (5,)
    with pytest.raises(CheckpointError, match="max_bytes=100,000"):
        compress_file(path, tmp_path / "b.nir", [spikes((5,))], max_bytes=100_000)


N1 = "node/nodes/n1"
VALUES: dict[str, tuple[Edit, str]] = {
    "complex weights": (put(W, numpy.ones((4, 6), complex)), "fc2/weight' is of type complex128"),
    "references": (referring, "neither numbers nor text"),
    "records": (put(W, numpy.zeros((4, 6), [("a", "f4")])), "neither numbers nor text"),
    "arrays of any length": (put(W, shape=(4,), dtype=h5py.vlen_dtype("f4")), "neither numbers nor text"),
    "text for numbers": (put(W, "text"), "cannot be read as NIR"),
    "texts for numbers": (put(W, numpy.full((4, 6), b"1.5")), "'fc2'.*where real numbers are needed"),
    "a type in a file": (link(W, numpy.dtype("f4")), "neither a group nor a dataset"),
    "a number for the nodes": (put("node/nodes", 3), "cannot be read as NIR"),
    "a number for a node": (put("node/nodes/fc2", 3), "cannot be read as NIR"),
    "a number for the edges": (put("node/edges", 3), "cannot be read as NIR"),
    "edges of three": (put("node/edges", [["a", "b", "c"]]), "cannot be read as NIR"),
    "a group for a weight": (lambda file: (file.__delitem__(W), file.create_group(W)), "cannot be read as NIR"),
    "a number for the root": (put("node", 3), "'node' is no group"),
    "no root": (lambda file: file.__delitem__("node"), "'node' is missing"),
    "a number for the type": (put("node/nodes/fc2/type", 3.0), "cannot be read as NIR"),
    "a list for the type": (put("node/nodes/fc2/type", ["Linear", "LIF"]), "cannot be read as NIR"),
    "a single node": (put("node/type", "Linear"), "cannot be read as NIR"),
    "a number for the notes": (put("node/metadata", 3), "its metadata is no table"),
    "a number for a node's notes": (put("node/nodes/fc2/metadata", 3), "its metadata is no table"),
    "dt as text": (put("node/metadata/dt", "text"), "notes the step of time dt='text'.*give dt="),
    "two dt": (put("node/metadata/dt", [1.0, 2.0]), "no positive number; give dt="),
    "dt NaN": (put("node/metadata/dt", numpy.nan), "no positive number"),
    "dt infinite": (put("node/metadata/dt", numpy.inf), "no positive number"),
    "dt below 0": (put("node/metadata/dt", -1e-3), "no positive number"),
    "dt a group": (lambda file: file.create_group("node/metadata/dt"), "no positive number"),
    "reset as a number": (put("node/metadata/reset_method", 2), "reset_method=.*no name"),
    "resets": (put("node/metadata/reset_method", ["reset_value"] * 2), "reset_method=.*no name"),
    "weights NaN": (put(W, numpy.full((4, 6), numpy.nan)), "'fc2'.*NaN"),
    "weights infinite": (put(W, numpy.full((4, 6), numpy.inf)), "'fc2'.*infinity"),
    "weights beyond float32": (put(W, numpy.full((4, 6), 1e300)), "'fc2'.*beyond float32"),
    "a bias for one": (put("node/nodes/fc1/bias", numpy.ones(1)), r"'fc1': a bias of shape \(1,\) for 6 outputs"),
    "a bias of a matrix": (put("node/nodes/fc1/bias", numpy.ones((6, 1))), "'fc1': a bias of shape"),
    "a bias of one more": (put("node/nodes/fc1/bias", numpy.ones(7)), "'fc1': a bias of shape"),
    "a threshold NaN": (put(f"{N1}/v_threshold", numpy.full(6, numpy.nan)), "'n1'.*v_threshold.*NaN"),
    "a leak infinite": (put(f"{N1}/v_leak", numpy.full(6, numpy.inf)), "'n1'.*v_leak.*infinity"),
    "a leak beyond float32": (put(f"{N1}/v_leak", numpy.full(6, 1e300)), "'n1'.*float32 cannot hold"),
    "no time": (put(f"{N1}/tau", numpy.zeros(6)), "'n1'.*time constant of 0 s"),
    "input of halves": (put("node/nodes/input/shape", [2.5]), "'input'.*whole numbers"),
    "input of nothing": (put("node/nodes/input/shape", [0]), "'input'.*without values"),
    "input below 0": (put("node/nodes/input/shape", [-5]), "'input'.*without values"),
    "input as text": (put("node/nodes/input/shape", "x"), "'input'.*real numbers"),
    "input of terabytes": (put("node/nodes/input/shape", [2**20, 2**20]), "'input'.*more than max_bytes"),
    "input of a matrix": (put("node/nodes/input/shape", [[5]]), "'input'.*whole numbers"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_of_wrong_types_and_shapes_are_refused(case: str, tmp_path: Path) -> None:
    edit, message = VALUES[case]
    path = edited(tmp_path, edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(path, message)


CONVOLUTION: dict[str, tuple[Edit, str]] = {
    "padding of terabytes": (put("node/nodes/conv1/padding", 2**15), "more than max_bytes"),
    "padding beyond 2^31": (put("node/nodes/conv1/padding", 2**62), "whole numbers"),
    "padding below 0": (put("node/nodes/conv1/padding", -1), "'conv1'.*numbers from 0"),
    "padding of three": (put("node/nodes/conv1/padding", [1, 1, 1]), "2 whole numbers are needed"),
    "groups of none": (put("node/nodes/conv2/groups", 0), "'conv2'.*numbers from 1"),
    "groups beyond the channels": (put("node/nodes/conv2/groups", 4), "'conv2'"),
    "two groups": (put("node/nodes/conv2/groups", [2, 2]), "whole numbers"),
    "stride 0": (put("node/nodes/conv1/stride", 0), "numbers from 1|divide|cannot be read"),
    "stride of a half": (put("node/nodes/conv1/stride", 0.5), "whole numbers|cannot be read"),
    "a kernel of one axis": (put("node/nodes/conv1/weight", numpy.ones((4, 2, 3))), "conv1|cannot be read"),
    "pooling of nothing": (put("node/nodes/pool1/kernel_size", [0, 0]), "'pool1'.*numbers from 1"),
    "pooling NaN": (put("node/nodes/pool1/stride", [numpy.nan, 1]), "'pool1'.*NaN"),
    "an axis of text": (put("node/nodes/flat/start_dim", "x"), "'flat'|cannot be read"),
    "padding wider than the pool": (put("node/nodes/pool1/padding", [2, 2]), "'pool1'"),
    "a kernel larger than its input": (put("node/nodes/pool2/kernel_size", [9, 9]), "'pool2'"),
}


@pytest.mark.parametrize("case", CONVOLUTION)
def test_convolutions_are_checked_without_running_them(case: str, tmp_path: Path) -> None:
    edit, message = CONVOLUTION[case]
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        read(edited(tmp_path, edit, GRAPHS["conv"]()))


@pytest.mark.parametrize("shape", [(6, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("kind", ["Linear", "Affine"])
def test_a_weight_without_values_is_refused(kind: str, shape: tuple[int, int]) -> None:
    bias = {} if kind == "Linear" else {"bias": numpy.zeros(shape[0])}
    node = getattr(nir, kind)(weight=numpy.zeros(shape), **bias)
    graph = nir.NIRGraph.from_list(node, type_check=False)
    refused(graph, "'(linear|affine)'.*has no values|'input'.*axis without values")


def test_input_weights_are_not_spread_to_any_size(tmp_path: Path) -> None:
    edit = put("node/nodes/n1/w_in", numpy.ones((2000, 1, 6)))
    refused(edited(tmp_path, edit, dense(cuba)), "w_in has shape", max_bytes=10**8)


def test_what_is_infinite_on_purpose_is_read(tmp_path: Path) -> None:
    """An infinite time constant is a neuron that does not leak, an infinite threshold one that does not spike."""
    path = edited(tmp_path, put(f"{N1}/tau", numpy.full(6, numpy.inf)))
    model, x = read(path), spikes((5,), steps=40, seed=2)
    assert (model.module_of("n1").cell.p.tau_mem_inv == 0).all()  # type: ignore[union-attr]
    assert run(model, x).isfinite().all()
    path = edited(tmp_path, put("node/nodes/n2/v_threshold", numpy.full(4, numpy.inf)))
    assert not run(read(path), x).any()
    refused(path, "v_threshold", reset_method="reset_subtract")


def test_settings_are_checked(tmp_path: Path) -> None:
    source = dense(lif)
    for dt in (0.0, -1.0, float("nan"), float("inf"), "text", [1e-3, 1e-3], None.__class__):
        refused(source, "no step of time", SettingsError, dt=dt)
    for reset in ("other", 3, [1]):
        refused(source, "reset_method=.*unknown", SettingsError, reset_method=reset)


def test_graphs_that_cannot_be_unfolded_right_are_refused() -> None:
    inner = graph((5,), (5,), {"n": lif(5)}, [("input", "n"), ("n", "output")])
    edges = [("input", "a"), ("a", "a.n"), ("a.n", "output")]
    refused(graph((5,), (5,), {"a": inner, "a.n": lif(5)}, edges), "two nodes are called 'a.n'")
    inner.nodes["round"] = inner
    refused(graph((5,), (5,), {"a": inner}, [("input", "a"), ("a", "output")]), "40 deep")
    back = [("input", "n"), ("n", "output"), ("n", "input")]
    refused(graph((5,), (5,), {"n": lif(5)}, back), r"\('n', 'input'\) leads into the graph's input")


def test_gains_of_more_axes_than_the_signal_are_refused() -> None:
    """They would be multiplied with the batch."""
    for size in ((5, 5), (1, 5), (7,)):
        refused(chain((5,), (5,), gain=nir.Scale(numpy.ones(size))), f"'gain'.*Scale of shape .*{size[0]}")
    for size in ((5,), (1,), ()):
        assert run(read(chain((5,), (5,), gain=nir.Scale(numpy.full(size, 2.0)))), spikes((5,))).max() == 2


@pytest.mark.parametrize("name", ["net/fc", "/", "a/", ".", "", "a\0b", "\udc80"])
def test_names_that_no_file_holds_are_refused_before_it_is_written(name: str, tmp_path: Path) -> None:
    edges = [("input", name), (name, "n"), ("n", "output")]
    model = read(graph((5,), (6,), {name: nir.Linear(weight(0, 6, 5)), "n": lif(6)}, edges))
    with pytest.raises(UnsupportedModelError, match=r"a \.nir file takes no names.*rename it"):
        write(tmp_path / "a.nir", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "net.fc", "a b", "é", "node", "metadata", "type", "-"])
def test_other_names_come_back(name: str, tmp_path: Path) -> None:
    edges = [("input", name), (name, "n"), ("n", "output")]
    model = read(graph((5,), (6,), {name: nir.Linear(weight(0, 6, 5)), "n": lif(6)}, edges))
    write(tmp_path / "a.nir", model)
    again, x = read(tmp_path / "a.nir"), spikes((5,), steps=40)
    assert torch.equal(run(again, x), run(model, x)) and name in again.nodes.values()


def test_names_of_modules_are_checked_too(tmp_path: Path) -> None:
    model = norse.SequentialState()
    model.add_module("net/fc", nn.Linear(5, 4))
    with pytest.raises(UnsupportedModelError, match="'net/fc'"):
        write(tmp_path / "a.nir", model)


def test_a_file_that_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    refused("/dev/zero", "is not a file")
    refused(tmp_path, "is not a file")
