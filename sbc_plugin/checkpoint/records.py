"""Values as JSON and tensors, and back, equal in every bit: what a folder of pieces keeps of a computation.

Numbers, texts, tuples, lists, dicts and tensors, and records: instances of classes that the caller lists, taken apart
into their attributes. Nothing else can be written, and reading makes instances of no other class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any  # what JSON can hold


def encode(value: Any, records: Sequence[type], tensors: list[Tensor]) -> Tree:
    """What JSON can hold of a value; its tensors are put behind those in ``tensors``, and the JSON counts them.

    Args:
        value: to be written.
        records: classes of which it may hold instances.
        tensors: grows; each is contiguous, on the CPU.

    Raises:
        TypeError: it holds something else.

    >>> encode({"a": (1, torch.ones(1))}, (), [])
    {'dict': [['a', {'tuple': [1, {'tensor': 0, 'device': 'cpu', 'strides': [1]}]}]]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        strides = list(torch.empty_like(value, device="meta").stride())  # a matrix product may round by them
        tensors.append(value.detach().cpu().contiguous())
        return {"tensor": len(tensors) - 1, "device": str(value.device), "strides": strides}
    if type(value) in records:
        return {"record": type(value).__name__, "of": encode(dict(vars(value)), records, tensors)}
    if isinstance(value, Mapping):
        parts = [[encode(part, records, tensors) for part in item] for item in value.items()]
        return {"dict": parts}
    if type(value) in (tuple, list):
        return {type(value).__name__: [encode(part, records, tensors) for part in value]}
    raise TypeError(f"{type(value).__name__} is no record that can be kept")


def decode(tree: Tree, records: Sequence[type], tensors: Sequence[Tensor]) -> Any:
    """The value that :func:`encode` was given, its tensors copied to where they were.

    Args:
        tree: of :func:`encode`.
        records: as of :func:`encode`.
        tensors: as of :func:`encode`.

    Raises:
        ValueError: it is no such tree.
    """
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"tensor": int(number), "device": str(device), "strides": list(strides)}:
            tensor = tensors[number]
            # A copy lies where torch lays tensors; where the file lays them, products may round differently.
            return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device).copy_(tensor)
        case {"record": str(name), "of": fields}:
            kind = next((kind for kind in records if kind.__name__ == name), None)
            if kind is None:
                raise ValueError(f"a record {name!r} is not known")
            made: Any = object.__new__(kind)
            vars(made).update(decode(fields, records, tensors))
            return made
        case {"dict": list(items)}:
            return {decode(key, records, tensors): decode(value, records, tensors) for key, value in items}
        case {"tuple": list(parts)}:
            return tuple(decode(part, records, tensors) for part in parts)
        case {"list": list(parts)}:
            return [decode(part, records, tensors) for part in parts]
        case _:
            raise ValueError(f"{list(tree)} is no value that is known")
