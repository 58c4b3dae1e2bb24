"""Mutated .nir, .safetensors, .npz and .npy files, each made from a kind and a seed.

``python -m integration_tests.strangers.mutations 20000`` makes so many, reads each, and reports what was neither read
right nor refused by an error of ``errors.py``, what took longest, and what took most memory. With ``--only KIND SEED``
it reads a single one, so that a failure is seen again.
"""

import hashlib
import io
import json
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import norse.torch as norse
import numpy
import safetensors.torch
import torch
from torch import nn

from integration_tests.models.nir_graphs import GRAPHS
from integration_tests.strangers.mutated_files import report_on
from integration_tests.strangers.mutated_nir import NUMBERS, VALUES, Random, nir_bytes, nir_items
from sbc_plugin import save
from sbc_plugin.checkpoint.reading import HEADER, KEY, UNSIGNED
from sbc_plugin.torch_pruning import save_pruned

DEEP = 100_000  # brackets inside each other


def bytewise(random: Random, data: bytes) -> bytes:
    """Bits flipped, pieces cut, inserted, doubled, zeroed, exchanged, and numbers put anywhere."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        start = random.randrange(len(changed) or 1)
        size = random.choice((1, 2, 4, 8, 64, 512))
        piece = bytes(changed[start : start + size])
        kind = random.randrange(9)
        if kind == 0:
            for place in random.sample(range(len(changed)), min(len(changed), random.choice((1, 3, 20)))):
                changed[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            changed[start:start] = random.randbytes(size)
        elif kind == 3:
            changed[start:start] = piece
        elif kind == 4:
            changed[start : start + size] = bytes(len(piece))
        elif kind == 5:
            other = random.randrange(len(changed) or 1)
            changed[other : other + len(piece)] = piece
        elif kind == 6:
            del changed[start : start + size]
        else:
            width = random.choice((1, 2, 4, 8))
            number = random.choice([n for n in NUMBERS if isinstance(n, int)]) % 256**width
            changed[start : start + width] = number.to_bytes(width, "little")
    return bytes(changed)


def networks() -> tuple[nn.Module, ...]:
    """What checkpoints are made of, and read into."""
    linear, neuron = nn.Linear(16, 8), norse.LIFBoxCell(norse.LIFBoxParameters(v_th=torch.full((8,), 0.5)))
    convolution = norse.SequentialState(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), norse.LIFCell())
    return norse.SequentialState(linear, neuron, nn.Linear(8, 4, bias=False)), convolution


CUTS = [("0", True, [1, 4])]


@cache
def checkpoint(number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file: of codes, of floats, or with a history of cuts."""
    torch.manual_seed(number)
    model = networks()[number % 2]
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() > 1 and number < 2):
            weight.copy_(((weight * 20).round() / 20).where(torch.rand(weight.shape) < 0.4, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.safetensors"
        save(path, model) if number < 3 else save_pruned(path, model, CUTS)
        tensors = safetensors.torch.load(path.read_bytes())
    return tensors, json.loads(zlib.decompress(tensors.pop(HEADER).numpy().tobytes()))


def json_changed(random: Random, content: Any) -> bytes:
    """One to three values anywhere in it replaced, taken out, doubled, or moved by one."""
    content = json.loads(json.dumps(content))
    deep = False
    for _ in range(random.choice((1, 1, 2, 3))):
        holders = [holder for holder in _holders(content) if holder]
        if not holders:
            break
        holder = random.choice(holders)
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind, value = random.randrange(6), holder[key]
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(value, int | float):
            holder[key] = value + random.choice((-1, 1, 8))
        elif kind == 2:
            other = random.choice(holders)
            holder[key] = json.loads(
                json.dumps(random.choice(list(other.values() if isinstance(other, dict) else other)))
            )
        elif kind == 3 and isinstance(holder, dict):
            holder[random.choice(("x", "bits", "0.weight", "same", ""))] = value
        else:
            holder[key] = random.choice(VALUES)
        deep = deep or holder.get(key) == "[[[" if isinstance(holder, dict) else deep
    text = json.dumps(content).encode()
    if random.random() < 0.05:
        text = text.replace(b"{", b'{"bits":1,"bits":2,', 1)
    return text.replace(b'"[[["', b"[" * DEEP) if deep else text


def _holders(content: Any) -> list[Any]:
    inside = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    return [content, *(holder for item in inside if isinstance(item, dict | list) for holder in _holders(item))]


def signed(data: bytes) -> bytes:
    return data.replace(UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def checkpoint_bytes(tensors: dict[str, torch.Tensor], header: bytes) -> bytes:
    stored = torch.frombuffer(bytearray(zlib.compress(header, 9)), dtype=torch.uint8)
    note = json.dumps({"format": 2, "sha256": UNSIGNED, "version": "x"})
    return safetensors.torch.save(tensors | {HEADER: stored}, {KEY: note})


def whole(number: int) -> bytes:
    tensors, header = checkpoint(number)
    return checkpoint_bytes(tensors, json.dumps(header).encode())


def header_changed(random: Random, number: int) -> bytes:
    tensors, header = checkpoint(number)
    return signed(checkpoint_bytes(tensors, json_changed(random, header)))


def table_changed(random: Random, number: int) -> bytes:
    data = whole(number)
    length = int.from_bytes(data[:8], "little")
    text = json_changed(random, json.loads(data[8 : 8 + length]))
    return signed(len(text).to_bytes(8, "little") + text + data[8 + length :])


def tensors_changed(random: Random, number: int) -> bytes:
    tensors, header = checkpoint(number)
    tensors = dict(tensors)
    name = random.choice(list(tensors))
    tensor = tensors.pop(name)
    others = (tensor.flatten(), tensor[:-1] if tensor.dim() else tensor, tensor[None], tensor.double() * float("nan"),
              tensor.to(torch.uint8), tensor.bool(), tensor.bfloat16(), torch.zeros(0))  # fmt: skip
    for other in random.sample((name, "x", "1:p.v_th", "0.weight", HEADER), random.choice((0, 1, 2))):
        tensors[other] = random.choice(others).contiguous().clone()
    return signed(checkpoint_bytes(tensors, json.dumps(header).encode()))


def arrays(random: Random) -> dict[str, Any]:
    """Spikes, or events."""
    generator = numpy.random.default_rng(random.randrange(2**32))
    if random.random() < 0.3:
        return {"x": (generator.random((5, 4, 6)) < 0.3).astype("u1"), "labels": numpy.arange(4)}
    events = {name: generator.integers(0, most, 40) for name, most in (("t", 20), ("n", 4), ("x", 6), ("p", 2))}
    return events | random.choice(({}, {"dt": numpy.array(1e-3)}, {"shape": numpy.array([20, 4, 2, 6])}))


def arrays_changed(random: Random) -> bytes:
    """Members replaced, lying about their sizes, packed tightly, or no arrays at all."""
    given = arrays(random)
    for name in random.sample(list(given), random.choice((0, 1, 2))):
        array = numpy.array(
            given[name], random.choice((given[name].dtype, "f8", "f4", "i8", "u8", "S4", "c8", "M8[s]"))
        )
        if array.dtype.kind in "fiu":
            most = numpy.iinfo(array.dtype).max if array.dtype.kind in "iu" else float("inf")
            array.reshape(-1)[random.randrange(array.size) :] = random.choice(
                [n for n in NUMBERS if 0 <= n <= most] or [1]
            )
        given[random.choice((name, name, "y", "shape", "dt", "labels"))] = random.choice(
            (array, array.reshape(-1)[:3], array[None])
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in given.items():
            member = io.BytesIO()
            numpy.save(member, array)
            data = member.getvalue()
            if random.random() < 0.3:
                data = npy_changed(random, data)
            archive.writestr(name + random.choice((".npy",) * 9 + ("", ".npy.npy")), data)
        if random.random() < 0.1:
            archive.writestr("x.npy", data + bytes(random.choice((10, 10**7))))
    return file.getvalue()


def npy_changed(random: Random, data: bytes) -> bytes:
    """Another header, of the same length where that can be."""
    text = data.decode("latin-1")
    start, end = text.find("{"), text.find("}") + 1
    shape = random.choice(("(1000000, 1000000)", "(-1, 4)", "(2.5,)", "('x',)", "()", "(" * 300, f"({2**70},)", "1"))
    kind = random.choice(("<f8", "<f4", "|O", "<U9", "<c16", "|V8", "x", "<f8, (9,)f4", "|S1000000000"))
    header = random.choice(
        (f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}", "{" * 90, "[]", shape)
    )
    header = header.ljust(end - start)
    length = (len(header) + len(text[end : text.find("\n") + 1])) % 65536
    data = data[:start] + header.encode("latin-1") + data[end:]
    return data[:8] + length.to_bytes(2, "little") + data[10:] if random.random() < 0.5 else data


@cache
def npy_bytes() -> bytes:
    file = io.BytesIO()
    numpy.save(file, (numpy.random.default_rng(0).random((5, 4, 6)) < 0.3).astype("u1"))
    return file.getvalue()


def zipped(random: Random) -> bytes:
    file = io.BytesIO()
    (numpy.savez_compressed if random.random() < 0.5 else numpy.savez)(file, **arrays(random))
    return file.getvalue()


def _written(make: Callable[[Random], bytes], suffix: str) -> Callable[[Random, Path], Path]:
    def write(random: Random, folder: Path) -> Path:
        path = folder / f"mutated{suffix}"
        path.write_bytes(make(random))
        return path

    return write


def _items(random: Random, folder: Path) -> Path:
    path = folder / "mutated.nir"
    nir_items(random, path)
    return path


SAFE = ".safetensors"
KINDS: dict[str, Callable[[Random, Path], Path]] = {
    "nir-bytes": _written(lambda r: bytewise(r, nir_bytes(r.choice(list(GRAPHS)))), ".nir"),
    "nir-items": _items,
    "safetensors-bytes": _written(lambda r: bytewise(r, signed(whole(r.randrange(4)))), SAFE),
    "safetensors-signed": _written(lambda r: signed(bytewise(r, whole(r.randrange(4)))), SAFE),
    "safetensors-header": _written(lambda r: header_changed(r, r.randrange(4)), SAFE),
    "safetensors-table": _written(lambda r: table_changed(r, r.randrange(4)), SAFE),
    "safetensors-tensors": _written(lambda r: tensors_changed(r, r.randrange(4)), SAFE),
    "npz-bytes": _written(lambda r: bytewise(r, zipped(r)), ".npz"),
    "npz-members": _written(arrays_changed, ".npz"),
    "npy-bytes": _written(lambda r: bytewise(r, npy_bytes()), ".npy"),
    "npy-header": _written(lambda r: npy_changed(r, npy_bytes()), ".npy"),
}


def mutated(kind: str, seed: int, folder: Path) -> Path:
    """The file of this kind and seed, in a folder that holds a folder "outside" with files that nobody may open."""
    outside = folder / "outside"
    if not outside.exists():
        outside.mkdir()
        (outside / "secret").write_bytes(b"x" * 4096)
        with h5py.File(outside / "other.h5", "w") as file:
            file["w"] = numpy.ones((4, 6), numpy.float32)
    with numpy.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind](Random(f"{kind} {seed}"), folder)


if __name__ == "__main__":
    sys.exit(report_on(sys.argv[1:], list(KINDS), mutated))
