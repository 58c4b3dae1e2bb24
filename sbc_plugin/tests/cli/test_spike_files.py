"""Files of spikes: the layouts that docs/spike-files.md allows, and what is said about any other."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from sbc_plugin.cli.spike_files import Batches, read_spikes
from sbc_plugin.errors import CalibrationError

GENERATOR = numpy.random.default_rng(0)
DENSE = (GENERATOR.random((5, 4, 2, 3, 6)) < 0.3).astype(numpy.uint8)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "spikes.npz"
    numpy.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", [bool, numpy.uint8, numpy.int64, numpy.float32, numpy.float64])
def test_an_array_is_read_as_it_is(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "spikes.npy"
    numpy.save(path, DENSE.astype(kind))
    x, labels = read_spikes(path)
    assert labels is None
    assert x.dtype == (torch.float32 if numpy.dtype(kind).kind == "f" else torch.uint8)
    assert numpy.array_equal(x.numpy(), DENSE)


def test_numbers_that_uint8_cannot_hold_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "currents.npy"
    numpy.save(path, numpy.array([[[-1], [300]]]))
    assert read_spikes(path)[0].flatten().tolist() == [-1.0, 300.0]


def test_the_array_may_have_any_name_and_labels_beside_it(tmp_path: Path) -> None:
    x, labels = read_spikes(saved(tmp_path, anything=DENSE, labels=numpy.array([3, 1, 0, 2])))
    assert numpy.array_equal(x.numpy(), DENSE)
    assert labels is not None and labels.tolist() == [3, 1, 0, 2] and labels.dtype == torch.int64


@pytest.mark.parametrize("seconds", [False, True])
def test_events_give_the_array_they_come_from(tmp_path: Path, seconds: bool) -> None:
    """The oracle is the dense array: its nonzero entries are the events."""
    t, n, p, y, x = DENSE.nonzero()
    time = {"t": t * 1e-3, "dt": numpy.array(1e-3)} if seconds else {"t": t}
    found, _ = read_spikes(saved(tmp_path, **time, n=n, p=p, y=y, x=x, shape=numpy.array(DENSE.shape)))
    assert numpy.array_equal(found.numpy(), DENSE)


def test_events_without_polarity_rows_or_shape(tmp_path: Path) -> None:
    found, _ = read_spikes(
        saved(tmp_path, t=numpy.array([0, 2, 2]), n=numpy.array([1, 0, 0]), x=numpy.array([4, 1, 1]))
    )
    assert found.shape == (3, 2, 5)
    assert found.nonzero().tolist() == [[0, 1, 4], [2, 0, 1]]


def test_events_after_the_border_of_a_step_belong_to_it(tmp_path: Path) -> None:
    """0.3 / 0.1 is 2.9999999999999996 in floating point, and step 3 all the same."""
    data = {"t": numpy.array([0.05, 0.3]), "dt": numpy.array(0.1), "n": numpy.zeros(2, int), "x": numpy.zeros(2, int)}
    assert read_spikes(saved(tmp_path, **data))[0].flatten().tolist() == [1, 0, 0, 1]


EVENTS = {"t": numpy.array([0, 1]), "n": numpy.array([0, 0]), "x": numpy.array([0, 1])}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": DENSE, "b": DENSE}, "arrays ['a', 'b']; one array"),
        ({"a": DENSE[0, 0, 0]}, "shape is (3, 6); (T, N, ...)"),
        ({"a": DENSE[:0]}, "shape is (0, 4, 2, 3, 6)"),
        ({"a": numpy.full((2, 2, 2), "x")}, "numbers are needed"),
        ({"a": DENSE, "labels": numpy.arange(3)}, "labels: int64 (3,); a whole number for each of 4"),
        ({"a": DENSE, "labels": numpy.ones(4)}, "labels: float64 (4,)"),
        ({"t": EVENTS["t"], "n": EVENTS["n"]}, "lacks ['x']"),
        (EVENTS | {"q": DENSE}, "holds ['q']"),
        (EVENTS | {"x": numpy.array([0])}, "x: its shape is (1,), that of t is (2,)"),
        (EVENTS | {"x": numpy.array([0, -1])}, "x: -1 is below 0"),
        (EVENTS | {"t": numpy.array([0.0, 0.5])}, "t: 0.5 is not whole; give dt"),
        (EVENTS | {"n": numpy.array([0.0, 0.5])}, "n: 0.5 is not whole; give whole numbers"),
        (EVENTS | {"dt": numpy.array(0.0)}, "dt: 0 is no step of time"),
        (EVENTS | {"shape": numpy.array([2, 1, 1])}, "shape: (2, 1, 1) does not hold events up to (2, 1, 2)"),
        ({name: values[:0] for name, values in EVENTS.items()}, "holds no event"),
    ],
)
def test_any_other_layout_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(CalibrationError) as raised:
        read_spikes(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_no_file_a_text_and_a_cut_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no file"):
        read_spikes(tmp_path / "nothing.npz")
    text, cut = tmp_path / "text.npz", saved(tmp_path, a=DENSE)
    text.write_text("spikes")
    cut.write_bytes(cut.read_bytes()[:-30])
    for path in (text, cut):
        with pytest.raises(CalibrationError, match=r"is no whole \.npy or \.npz file"):
            read_spikes(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    numpy.save(path, numpy.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match=r"is no whole \.npy"):
        read_spikes(path)


def test_batches_hold_everything_once() -> None:
    x, labels = torch.from_numpy(DENSE), torch.arange(4)
    pairs = list(Batches(x, labels, 3))
    assert [tuple(a.shape) for a, _ in pairs] == [(5, 3, 2, 3, 6), (5, 1, 2, 3, 6)]
    assert torch.equal(torch.cat([a for a, _ in pairs], dim=1), x.float())
    assert torch.cat([y for _, y in pairs]).tolist() == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for a, (b, _) in zip(Batches(x, None, 3), pairs, strict=True))


EVENTS = {"t": numpy.array([0, 1]), "n": numpy.array([0, 1]), "x": numpy.array([3, 1])}
FRAMES = numpy.zeros((4, 2, 3), numpy.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (EVENTS | {"shape": numpy.array([numpy.nan] * 3)}, "shape: .*positive whole numbers"),
        (EVENTS | {"shape": numpy.array([2**40, 2, 4])}, "max_bytes"),
        (EVENTS | {"shape": numpy.array([2**64 - 1, 2, 4], numpy.uint64)}, "shape: "),
        (EVENTS | {"shape": numpy.array([9j, 2, 4])}, "shape: "),
        (EVENTS | {"dt": numpy.array([])}, "dt: .* no step of time"),
        (EVENTS | {"dt": numpy.array(["a"])}, "dt: .* no step of time"),
        (EVENTS | {"dt": numpy.array(numpy.inf)}, "dt: inf is no step of time"),
        (EVENTS | {"dt": numpy.array(1e-300)}, "t: it holds NaN, infinity"),
        (EVENTS | {"t": numpy.array([0, 3 * 10**9])}, r"t is in another unit.*microseconds, give dt \(s\)"),
        (EVENTS | {"t": numpy.array([0, numpy.nan])}, "t: it holds NaN"),
        (EVENTS | {"x": numpy.array([0, 2**64 - 1], numpy.uint64)}, "x: it holds NaN, infinity or numbers up to"),
        (EVENTS | {"x": numpy.array([0, 1j])}, "x: its type is complex128"),
        ({"x": FRAMES, "labels": numpy.array([0, 2**63], numpy.uint64)}, "labels: "),
        ({"x": FRAMES * 1j}, "its type is complex128"),
        ({"x": numpy.full((4, 2, 3), 1e300)}, "NaN, infinity or numbers beyond float32"),
        ({"x": numpy.array([None], dtype=object)}, "no whole .npy or .npz file of numbers"),
    ],
)
def test_numbers_that_no_file_should_hold_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "spikes.npz", **arrays)
    with pytest.raises(CalibrationError, match=message):
        read_spikes(tmp_path / "spikes.npz")


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    numpy.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize("name", ["x", "labels", "t", "t.txt"])
def test_a_member_that_is_no_array_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "spikes.npz", "w") as archive:
        archive.writestr(name, b"hello")
        archive.writestr("other.npy", npy(FRAMES))
    with pytest.raises(CalibrationError, match="which is no array"):
        read_spikes(tmp_path / "spikes.npz")


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_declares_more_than_there_is_takes_no_memory(packed: bool, tmp_path: Path) -> None:
    honest = npy(FRAMES)
    place = honest.index(b"(4, 2, 3)")
    content = honest[:place] + b"(999999, 99999, 9)" + honest[place + 18 :]
    path = tmp_path / ("spikes.npz" if packed else "spikes.npy")
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"its header declares shape|no whole \.npy"):
        read_spikes(path)


def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused_unread(tmp_path: Path) -> None:
    numpy.savez_compressed(tmp_path / "bomb.npz", x=numpy.zeros((100, 100, 100), numpy.uint8))
    with pytest.raises(CalibrationError, match=r"takes 1,000,000 bytes, more than max_bytes=999,999"):
        read_spikes(tmp_path / "bomb.npz", max_bytes=999_999)
    assert read_spikes(tmp_path / "bomb.npz", max_bytes=10**6)[0].shape == (100, 100, 100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    member = io.BytesIO()
    numpy.save(member, DENSE)
    with zipfile.ZipFile(tmp_path / "spikes.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", member.getvalue())
    with pytest.raises(CalibrationError, match="holds 'x' twice"):
        read_spikes(tmp_path / "spikes.npz")
