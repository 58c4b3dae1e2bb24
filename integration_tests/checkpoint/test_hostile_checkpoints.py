"""Crafted checkpoints, with a right checksum: refused by what the header says, before memory is taken for it."""

import copy
import hashlib
import json
import resource
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sbc_plugin import Prune, load, save
from sbc_plugin.checkpoint.reading import FORMAT, HEADER, KEY, PACKED, UNSIGNED, parsed
from sbc_plugin.errors import CheckpointError
from sbc_plugin.evaluation import LayerReport, Report
from sbc_plugin.torch_pruning import get_pruner, load_pruned, save_pruned

Tensors = dict[str, Tensor]


def fresh() -> nn.Module:
    return norse.SequentialState(nn.Linear(64, 16, bias=False), norse.LIFCell(), nn.Linear(16, 20, bias=False))


def small() -> nn.Module:
    """Weights as gaps and codes, and as base 3."""
    model = fresh()
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index, operator]
        model[0].weight[:, ::7] = 0.5  # type: ignore[index]
        model[2].weight.copy_(torch.randint(-1, 2, (20, 16), generator=torch.Generator().manual_seed(0)))  # type: ignore[index, operator]
    model[1].p = model[1].p._replace(v_th=torch.rand(16) + 0.5)  # type: ignore[index, operator, union-attr]
    return model


def signed(tensors: Tensors, metadata: Any = None) -> bytes:
    entry = {"format": FORMAT, "sha256": UNSIGNED, "version": "x"} if metadata is None else metadata
    data = safetensors.torch.save(tensors, {KEY: entry if isinstance(entry, str) else json.dumps(entry)})
    return data.replace(UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


class Crafted:
    """A file, and how it is changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        row = LayerReport("0", "Linear", 16, 64, 1, 1, 0.9, 4, 0.1, 0.1)
        save(path, small(), Report([row], {}, {"prune": Prune(0.5)}, 1.0))
        self.tensors = safetensors.torch.load(path.read_bytes())
        self.header = json.loads(zlib.decompress(self.tensors[HEADER].numpy().tobytes()))

    def text(self, header: bytes, **tensors: Tensor) -> None:
        stored = torch.frombuffer(bytearray(zlib.compress(header, 9)), dtype=torch.uint8)
        self.path.write_bytes(signed(self.tensors | {HEADER: stored} | tensors))

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        header = copy.deepcopy(self.header)
        change(header)
        self.text(json.dumps(header).encode())

    def form(self, name: str = "0.weight", **fields: Any) -> None:
        self.edit(lambda header: header["packed"][name].update(fields))


@pytest.fixture
def crafted(tmp_path: Path) -> Crafted:
    return Crafted(tmp_path / "crafted.safetensors")


def refused(path: Path, message: str, model: nn.Module | None = None, **settings: Any) -> None:
    """With a model and without; the model stays as it was, and little memory is taken."""
    model = fresh() if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for given in ((), (model,)):
        with pytest.raises(CheckpointError, match=message) as raised:
            load(path, *given, **settings)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 150_000  # kB


def test_an_intact_one_is_read(crafted: Crafted) -> None:
    crafted.edit(lambda header: None)
    model, report = load(crafted.path, fresh())
    expected = small().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert report is not None and {crafted.header["packed"][name]["bits"] for name in expected} == {1, 1.6}


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "bits -3": ({"bits": -3}, "'bits' is -3"),
    "bits 0": ({"bits": 0}, "'bits' is 0"),
    "bits 9": ({"bits": 9}, "'bits' is 9"),
    "bits 2^33": ({"bits": 2**33}, "'bits' is"),
    "bits 10^400": ({"bits": 10**400}, "'bits' is a number beyond"),
    "bits 1.5": ({"bits": 1.5}, "'bits' is 1.5"),
    "bits true": ({"bits": True}, "'bits' is True"),
    "bits NaN": ({"bits": float("nan")}, "'bits' is nan"),
    "bits null": ({"bits": None}, "'bits' is None"),
    "bytes -1": ({"bytes": -1}, "'bytes' is -1"),
    "bytes 10": ({"bytes": 10}, "bytes of packed weights"),
    "bytes 2^62": ({"bytes": 2**62}, "'bytes' is"),
    "bytes text": ({"bytes": "10"}, "'bytes' is '10'"),
    "zero text": ({"zero": "x"}, "'zero' is 'x'"),
    "zero -1": ({"zero": -1}, "'zero' is -1"),
    "zero 256": ({"zero": 256}, "'zero' is 256"),
    "zero of each": ({"zero": None}, "bytes are no weight|positions of 160 weights do not fit"),
    "shape -1": ({"shape": [-1, 64]}, "'shape' is -1"),
    "shape halves": ({"shape": [0.5, 2048]}, "'shape' is 0.5"),
    "shape text": ({"shape": "16x64"}, "its shape is"),
    "shape empty": ({"shape": []}, "its shape is"),
    "shape null": ({"shape": None}, "its shape is"),
    "shape of 1000 axes": ({"shape": [1] * 1000}, "its shape is"),
    "shape 2^80": ({"shape": [2**40, 2**40]}, "'shape' is"),
    "no kept": ({"places": "mask", "kept": -1}, "'kept' is -1"),
    "more kept than there are": ({"kept": 2000}, "'kept' is 2,?000"),
    "kept as text": ({"kept": "1"}, "'kept' is '1'"),
    "places 0": ({"places": 0}, "'places' is 0"),
    "places 2^28": ({"places": 2**28}, "'places' is"),
    "places text": ({"places": "gaps"}, "'places' is 'gaps'"),
    "a mask of other bytes": ({"places": "mask"}, "bytes are no weight"),
    "scales 0": ({"scales": 0}, "'scales' is 0"),
    "scales 3": ({"scales": 3}, "bytes are no weight"),
    "scales 10^9": ({"scales": 10**9}, "'scales' is"),
    "dtype I64": ({"dtype": "I64"}, "'dtype' is 'I64', no floating"),
    "dtype unknown": ({"dtype": "F99"}, "'dtype' is 'F99'"),
    "dtype list": ({"dtype": []}, "'dtype' is"),
    "scale BOOL": ({"scale": "BOOL"}, "'scale' is 'BOOL'"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_a_form_are_checked(case: str, crafted: Crafted) -> None:
    fields, message = FIELDS[case]
    crafted.form(**fields)
    refused(crafted.path, message)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [1, 2**28], "places": 16, "kept": 0},
        {"shape": [1, 2**28], "places": "mask", "kept": 0},
        {"shape": [2**20, 2**20]},
        {"shape": [2**22, 2**22], "places": 1, "kept": 0},
    ],
)
def test_shapes_are_compared_before_anything_is_unpacked(fields: dict[str, Any], crafted: Crafted) -> None:
    crafted.form(**fields)
    refused(crafted.path, "more than max_bytes|in the file and")
    with pytest.raises(CheckpointError, match=r"weight is \(.*\) in the file and \(16, 64\) in this model"):
        load(crafted.path, fresh())


def test_a_small_file_of_many_zeros_is_bounded_by_what_the_user_allows(tmp_path: Path) -> None:
    model = nn.Linear(4096, 1024, bias=False)
    nn.init.zeros_(model.weight)
    save(tmp_path / "zeros.safetensors", model)
    assert (tmp_path / "zeros.safetensors").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"16,777,216 bytes unpacked, more than max_bytes=1,000,000; give a larg"):
        load(tmp_path / "zeros.safetensors", max_bytes=10**6)
    assert not load(tmp_path / "zeros.safetensors").tensors["weight"].any()
    assert not load(tmp_path / "zeros.safetensors", nn.Linear(4096, 1024, bias=False), max_bytes=1000)[0].weight.any()


HEADERS: dict[str, tuple[bytes, str]] = {
    "a list": (b"[1]", "is a list, not a table"),
    "text": (b'"x"', "is a str, not a table"),
    "nothing": (b"", "is damaged"),
    "no JSON": (b"{", "is damaged"),
    "no text": (b"\xff\xfe", "is damaged"),
    "100000 [": (b"[" * 100000, "nested too deep"),
    "100000 tables": (b'{"a":' * 100000, "nested too deep"),
    "an empty table": (b"{}", "no 'packed'"),
    "40 MB of spaces": (b"{}" + b" " * 40_000_000, "does not end within"),
    "a name twice": (b'{"packed": {}, "packed": {}}', "'packed' stands twice"),
    "a number of 5000 digits": (b'{"packed": ' + b"9" * 5000 + b"}", "is damaged"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_none(case: str, crafted: Crafted) -> None:
    header, message = HEADERS[case]
    crafted.text(header)
    refused(crafted.path, message)


def test_bombs_of_zlib_are_left_packed(crafted: Crafted) -> None:
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(b" " * 2**20) for _ in range(300)) + packer.flush()
    crafted.path.write_bytes(signed({HEADER: torch.frombuffer(bytearray(data), dtype=torch.uint8)}))
    refused(crafted.path, "does not end within 33,554,432 bytes")


def test_streams_of_zlib_that_are_none(crafted: Crafted) -> None:
    whole = crafted.tensors[HEADER]
    for data in (whole[:-5], whole[:0], torch.zeros_like(whole), whole[:, None], whole.float(), whole.bfloat16()):
        crafted.path.write_bytes(signed(crafted.tensors | {HEADER: data.contiguous()}))
        refused(crafted.path, "is damaged")


TABLES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "packed a list": (lambda h: h.update(packed=[]), "'packed' is no table"),
    "packed of numbers": (lambda h: h.update(packed={"0.weight": 3}), "'packed' is no table"),
    "packed twice": (
        lambda h: h["packed"].update({"2.weight": h["packed"]["0.weight"]}),
        "packed weights|in the file and",
    ),
    "packed and stored": (lambda h: h["packed"].update({"1:p.v_th": h["packed"]["0.weight"]}), "."),
    "same a list": (lambda h: h.update(same=[]), "'same' is no table"),
    "same as nothing": (lambda h: h.update(same={"x": "nothing"}), "contradicts itself"),
    "same of numbers": (lambda h: h.update(same={"x": 3}), "'same' is no table"),
    "modules a table": (lambda h: h.update(modules={}), "'modules' is no list"),
    "modules of numbers": (lambda h: h.update(modules=[3]), "'modules' is no list"),
    "modules of three": (lambda h: h.update(modules=[[["1"], {}, 3]]), "'modules' is no list"),
    "modules without names": (lambda h: h.update(modules=[["1", {}]]), "'modules' is no list"),
    "a tensor that is not there": (lambda h: h["modules"][0][1].update(p={"tensor": "x"}), "contradicts itself"),
    "a tensor called by a list": (lambda h: h["modules"][0][1].update(p={"tensor": []}), "contradicts itself"),
    "report a list": (lambda h: h.update(report=[]), "'report' is no table"),
    "report of nothing": (lambda h: h.update(report={}), "no report of compress"),
    "report of text": (lambda h: h["report"].update(seconds="x"), "contradicts itself|report"),
    "report of layers of numbers": (lambda h: h["report"].update(layers=[3]), "no report of compress"),
    "no modules": (lambda h: h.pop("modules"), "no 'modules'"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_the_header_are_checked(case: str, crafted: Crafted) -> None:
    change, message = TABLES[case]
    crafted.edit(change)
    refused(crafted.path, message)


RECORDS: dict[str, Any] = {
    "an empty value": {},
    "two values": {"F32": 1.0, "I64": 1},
    "text": "x",
    "a list": [1],
    "a number": 3.0,
    "fields of numbers": {"fields": 3},
    "fields of others": {"fields": {"nothing": 1.0}},
    "a field of text": {"fields": {"v_th": "x"}},
    "a field of lists": {"fields": {"v_th": {"F32": [1.0]}}},
    "a field of 2^80": {"fields": {"v_th": {"I64": 2**80}}},
    "a field of fields": {"fields": {"v_th": {"fields": {}}}},
    "a field of an unknown kind": {"fields": {"v_th": {"F99": 1.0}}},
    "a field of a float of text": {"fields": {"v_th": {"float": "x"}}},
    "a field of true": {"fields": {"v_th": True}},
    "a function": {"function": "os.system"},
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_of_modules_are_checked(case: str, crafted: Crafted) -> None:
    crafted.edit(lambda header: header.update(modules=[[["1"], {"p": RECORDS[case]}]]))
    model = fresh()
    before = model[1].p  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"crafted\.safetensors"):
        load(crafted.path, model)
    assert model[1].p is before  # type: ignore[index]


@pytest.mark.parametrize("value", [3.0, True, "circular", None, {"F32": 1.0}])
@pytest.mark.parametrize("name", ["training", "forward", "_modules", "activation", "name", "register_forward_hook"])
def test_only_values_are_set(name: str, value: Any, crafted: Crafted) -> None:
    """What else a module has is not for a file to change."""
    crafted.edit(lambda header: header["modules"].append([["0"], {name: value}]))
    model = fresh()
    model[0].name = "zeros"  # type: ignore[index, assignment]
    before = getattr(model[0], name, None)  # type: ignore[index]
    with suppress(CheckpointError):
        load(crafted.path, model)
    assert getattr(model[0], name, None) == before  # type: ignore[index]


METADATA: dict[str, tuple[Any, str]] = {
    "no JSON": ("x", "damaged header"),
    "100000 [": ("[" * 100000, "damaged header"),
    "a list": ([1], "damaged header"),
    "format as text": ({"format": "2", "sha256": UNSIGNED}, "damaged header"),
    "format true": ({"format": True, "sha256": UNSIGNED}, "damaged header"),
    "format 0": ({"format": 0, "sha256": UNSIGNED}, "damaged header"),
    "format NaN": ({"format": float("nan"), "sha256": UNSIGNED}, "damaged header"),
    "format 99": ({"format": 99, "sha256": UNSIGNED}, "update sbc-plugin"),
    "no checksum": ({"format": 2}, "damaged header"),
    "an empty checksum": ({"format": 2, "sha256": ""}, "checksum"),
    "a checksum that is no text": ({"format": 2, "sha256": 3}, "checksum"),
    "a checksum of no digits": ({"format": 2, "sha256": "\udc80" * 64}, "checksum|damaged"),
    "a checksum in capitals": ({"format": 2, "sha256": "A" * 64}, "checksum"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_are_checked(case: str, crafted: Crafted) -> None:
    metadata, message = METADATA[case]
    crafted.path.write_bytes(signed(crafted.tensors, metadata))
    refused(crafted.path, message)


def framed(table: bytes, length: int | None = None, rest: bytes = b"") -> bytes:
    return (len(table) if length is None else length).to_bytes(8, "little") + table + rest


SIGNATURE = json.dumps(json.dumps({"format": 2, "sha256": UNSIGNED, "version": "x"})).encode()
ENTRIES = b'{"__metadata__":{"sbc_plugin":' + SIGNATURE + b'},"a":{"dtype":%s,"shape":%s,"data_offsets":%s}}'
FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no safetensors file"),
    "a length alone": (b"\xff" * 8, "promise a table of"),
    "a length beyond the file": (framed(b"{}", 2**40), "promise a table of 1,099,511,627,776 bytes"),
    "a table of 100000 [": (framed(b'{"__metadata__":' + b"[" * 100000), "nested too deep"),
    "a table that is a list": (framed(b"[]"), "no safetensors file"),
    "metadata of a number": (framed(b'{"__metadata__":3}'), "did not write"),
    "a tensor that is a number": (framed(b'{"a":3}'), "no safetensors file"),
    "a tensor without a place": (framed(b'{"a":{}}'), "no safetensors file"),
    "a name twice": (framed(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' stands twice"),
    "offsets below 0": (framed(ENTRIES % (b'"U8"', b"[1]", b"[-1,0]")), "lies from -1"),
    "offsets backwards": (framed(ENTRIES % (b'"U8"', b"[1]", b"[5,1]")), "lies from 5"),
    "offsets of text": (framed(ENTRIES % (b'"U8"', b"[1]", b'["a","b"]')), "lies from 'a'"),
    "offsets of one": (framed(ENTRIES % (b'"U8"', b"[1]", b"[1]")), "no safetensors file"),
    "offsets beyond the file": (framed(ENTRIES % (b'"U8"', b"[1]", b"[0,99]")), "truncated"),
}


@pytest.mark.parametrize("case", FILES)
def test_frames_that_lie(case: str, crafted: Crafted) -> None:
    data, message = FILES[case]
    crafted.path.write_bytes(data)
    refused(crafted.path, message)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(b'"U8"', b"[9]"), (b'"F99"', b"[4]"), (b"3", b"[4]"), (b'"U8"', b"[-4]"), (b'"U8"', b"[4,0.5]"),
     (b'"U8"', b'"x"'), (b'"F32"', b"[4]"), (b'"F32"', b"[1099511627776,1099511627776,1099511627776]")],
)  # fmt: skip
def test_tensors_that_lie(dtype: bytes, shape: bytes, crafted: Crafted) -> None:
    """Types and shapes that are not those of the bytes, under a right checksum."""
    data = framed(ENTRIES % (dtype, shape, b"[0,4]"), rest=b"abcd")
    crafted.path.write_bytes(data.replace(UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1))
    refused(crafted.path, "is damaged")


def test_a_file_larger_than_allowed_is_not_opened(crafted: Crafted, monkeypatch: pytest.MonkeyPatch) -> None:
    with crafted.path.open("wb") as file:
        file.truncate(2**40)
    refused(crafted.path, "1,099,511,627,776 bytes, more than max_bytes=1,073,741,824; give a larger limit")
    refused(Path("/dev/zero"), "it is no file")


def test_parsed_takes_what_json_takes() -> None:
    assert parsed(b'{"a": {"b": [1, 2.5, null]}}') == {"a": {"b": [1, 2.5, None]}}


def pruned(path: Path) -> tuple[Callable[[], nn.Module], Tensor]:
    x = torch.rand(2, 10)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))

    model = build()
    pruner = get_pruner("l1", model, x, pruning_ratio=0.5, ignored_layers=[model[2]])  # type: ignore[index]
    pruner.step()
    save_pruned(path, model, pruner.pruning_history())
    return build, x


HISTORIES: dict[str, Any] = {
    "a number": 3,
    "null": None,
    "numbers": [3],
    "names alone": [["0"]],
    "a name of another model": [["9", True, [0]]],
    "channels that are not there": [["0", True, [99]]],
    "channels below 0": [["0", True, [-99]]],
    "a channel of 2^80": [["0", True, [2**80]]],
    "channels of text": [["0", True, ["x"]]],
    "channels of true": [["0", True, [True]]],
    "channels that are a number": [["0", True, 3]],
    "outputs as text": [["0", "x", [0]]],
    "a name that is a number": [[0, True, [0]]],
    "all channels": [["0", True, list(range(12))]],
    "a channel twice": [["0", True, [1, 1]]],
    "a module that cannot be cut": [["1", True, [0]]],
    "the model itself": [["", True, [0]]],
}


@pytest.mark.parametrize("case", HISTORIES)
def test_histories_of_cuts_are_checked(case: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted.safetensors"
    build, x = pruned(path)
    tensors = safetensors.torch.load(path.read_bytes())
    header = json.loads(zlib.decompress(tensors[HEADER].numpy().tobytes()))
    header["history"] = HISTORIES[case]
    text = torch.frombuffer(bytearray(zlib.compress(json.dumps(header).encode(), 9)), dtype=torch.uint8)
    path.write_bytes(signed(tensors | {HEADER: text}))
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"crafted\.safetensors"):
        load_pruned(path, model, x)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert PACKED not in after and model(x).shape == (2, 3)
