"""Mutated .nir files: items renamed, retyped, reshaped, moved, linked, or given other values."""

import io
import random
import zlib
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy

from integration_tests.models.nir_graphs import GRAPHS

Random = random.Random
NUMBERS: list[Any] = [-1, 0, 1, 2, 7, 255, 2**16, 2**28, 2**31, 2**33, 2**62, 2**64, -(2**63), 0.5, 1e-320, 1e300]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
VALUES: list[Any] = [*NUMBERS, 10**400, "", "x", "../x", "\udc80", "\0", None, True, [], {}, [0], {"a": 1}, "[[["]


@cache
def nir_bytes(name: str) -> bytes:
    data = io.BytesIO()
    graph = GRAPHS[name]()
    graph.metadata = {"dt": 1e-3, "reset_method": "reset_value"}
    nir.write(data, graph)
    return data.getvalue()


def nir_items(random: Random, path: Path) -> None:
    """One to three items of the file renamed, retyped, reshaped, moved, linked, or given other values."""
    path.write_bytes(nir_bytes(random.choice(list(GRAPHS))))
    with h5py.File(path, "r+") as file:
        for _ in range(random.choice((1, 1, 2, 3))):
            names: list[str] = []
            file.visit(names.append)
            name = random.choice(names)
            if isinstance(file[name], h5py.Dataset) and prod(file[name].shape or ()) > 2**20:
                continue  # made by a change before
            try:
                random.choice(ITEM_CHANGES)(random, file, name)
            except (
                OSError,
                RuntimeError,
                LookupError,
                ValueError,
                TypeError,
                ArithmeticError,
                AttributeError,
                MemoryError,
            ):
                continue  # HDF5 itself refuses to write such a thing


def _put(file: Any, name: str, data: Any = None, **settings: Any) -> None:
    del file[name]
    file.create_dataset(name, data=data, **settings)


def _value(random: Random, file: Any, name: str) -> None:
    array = numpy.array(file[name][()], numpy.float64)
    places = random.choice((slice(None), random.randrange(array.size)))
    array.reshape(-1)[places] = random.choice([n for n in NUMBERS if abs(n) < 1e301])
    _put(file, name, array)


def _type(random: Random, file: Any, name: str) -> None:
    array = file[name][()]
    kinds = (complex, "f2", ">f8", "i1", "u8", "S3", [("a", "f4")], h5py.string_dtype(), h5py.vlen_dtype("f4"))
    kind = random.choice((*kinds, h5py.ref_dtype, bool, "V4"))
    _put(file, name, numpy.zeros(numpy.shape(array), kind) if random.random() < 0.5 else array.astype(kind), dtype=kind)


def _replace(random: Random, file: Any, name: str) -> None:
    other = random.choice([n for n in VALUES if isinstance(n, str | float | list | bool) or n == 3])
    _put(file, name, other if random.random() < 0.8 else h5py.Empty("f4"))


def _shape(random: Random, file: Any, name: str) -> None:
    array = numpy.asarray(file[name][()])
    shape = [random.choice((0, 1, 2, 3, 7, size)) for size in array.shape] + [1] * random.choice((0, 0, 1, 2))
    _put(file, name, numpy.resize(array, shape[: random.choice((len(shape), max(0, len(shape) - 1)))]))


def _huge(random: Random, file: Any, name: str) -> None:
    shape = tuple(random.choice((1, 3, 2**14, 2**20, 2**31)) for _ in range(random.choice((1, 2, 4))))
    chunks = tuple(min(size, random.choice((1, 64))) for size in shape)
    _put(file, name, shape=shape, dtype=random.choice(("f4", "f8", "S100")), chunks=chunks)


def _bomb(random: Random, file: Any, name: str) -> None:
    _put(file, name, shape=(4, 6), dtype="f4", chunks=(4, 6), compression=random.choice(("gzip", "lzf")), shuffle=True)
    data = zlib.compress(bytes(random.choice((96, 100, 10**7, 10**8))), 9)
    file[name].id.write_direct_chunk((0, 0), random.choice((data, data[:9], random.randbytes(50))))


def _link(random: Random, file: Any, name: str) -> None:
    outside = Path(file.filename).parent / "outside" / "other.h5"
    parent = name.rpartition("/")[0] or name
    links = (h5py.SoftLink("/" + name), h5py.SoftLink("/nothing"), h5py.ExternalLink(str(outside), "/w"), file[parent])
    link = random.choice((*links, file["node"]))
    place = random.choice((name, f"{parent}/added"))
    if place in file:
        del file[place]
    file[place] = link


def _stored_outside(random: Random, file: Any, name: str) -> None:
    shape = file[name].shape
    outside = Path(file.filename).parent / "outside"
    if random.random() < 0.5:
        _put(file, name, shape=shape, dtype="f4", external=[(str(outside / "secret"), 0, h5py.h5f.UNLIMITED)])
        return
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(outside / "other.h5", "w", shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _move(random: Random, file: Any, name: str) -> None:
    other = name.rpartition("/")[0] + "/" + random.choice(("x", "type", "tau", "weight", "é", "a" * 300, "metadata"))
    kind = random.randrange(3)
    if kind == 0:
        file.move(name, other)
    elif kind == 1:
        file.copy(file[name], f"{name}/copy" if isinstance(file[name], h5py.Group) else other)
    else:
        del file[name]
        if random.random() < 0.3:
            file.create_group(name + "/x" * random.choice((1, 100)))


def _edges(random: Random, file: Any, name: str) -> None:
    edges = [list(pair) for pair in file["node/edges"][()]]
    known = [end for pair in edges for end in pair]
    for _ in range(random.choice((1, 2, 5))):
        edges.append([random.choice([*known, b"nothing", b""]), random.choice(known)])
    random.shuffle(edges)
    _put(file, "node/edges", edges[random.choice((0, 0, 1)) :], dtype=h5py.string_dtype())


ITEM_CHANGES: tuple[Callable[[Random, Any, str], None], ...] = (
    _value, _value, _type, _replace, _shape, _shape, _huge, _bomb, _link, _stored_outside, _move, _edges,
)  # fmt: skip
