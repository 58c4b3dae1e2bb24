"""Short texts that tell one batch of data, or one model, from another: checksums of all values that decide results."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbc_plugin.calibration.attributes import constructed_with
from sbc_plugin.calibration.batches import dense
from sbc_plugin.errors import CalibrationError

NUMBERS = (bool, int, float, complex, str, bytes, type(None))
KINDS = (torch.dtype, torch.device, torch.layout, np.generic)  # whose text says all


def of_batch(batch: Any) -> str:
    """The checksum of a batch: of all tensors, arrays, numbers and texts in it, with their types and shapes.

    Raises:
        CalibrationError: it holds something whose values cannot be seen.

    >>> of_batch(torch.zeros(2)) == of_batch(torch.zeros(2)), of_batch((torch.zeros(2), 1)) == of_batch(torch.zeros(2))
    (True, False)
    """
    seen = _Seen()
    try:
        seen.add(batch)
    except RecursionError:
        seen.unknown = type(batch).__name__
    if seen.unknown is not None:
        raise CalibrationError(
            f"a batch holds a {seen.unknown}, of which it cannot be said whether it is the same at another time; give "
            "tensors, arrays, numbers and texts, or tuples, lists, dicts and dataclasses of them"
        )
    return seen.checksum


def digest(thing: Any) -> str:
    """16 digits that tell a batch or a value from others; of what cannot be seen only the type counts.

    >>> digest([torch.zeros(2)]) == digest([torch.zeros(2)]) != digest([torch.zeros(3)])
    True
    """
    seen = _Seen()
    try:
        seen.add(thing)
    except RecursionError:  # it holds itself
        return type(thing).__name__
    return seen.checksum[:16]


def of_model(model: nn.Module) -> dict[str, str]:
    """The checksum of every weight, buffer and module of a model, by name.

    That of a module is made of its class and of what it was constructed with, neuron parameters among it. What a
    forward leaves in plain attributes does not count.

    >>> list(of_model(nn.Linear(2, 1)))
    ['class Linear', 'weight', 'bias']
    """
    found = {}
    for name, module in model.named_modules():
        seen, kind = _Seen(), type(module)
        seen.add(f"{kind.__module__}.{kind.__qualname__}")
        if not isinstance(module, torch.jit.ScriptModule):
            given = constructed_with(module)
            seen.add({key: value for key, value in vars(module).items() if key in given or hasattr(value, "_fields")})
        found[f"{name or 'class'} {kind.__name__}"] = seen.checksum
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = of_batch(tensor)
    return found


class _Seen:
    """Takes values one after the other.

    Attributes:
        unknown: the type of a value of which nothing but the type could be seen; None if there is none.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.unknown: str | None = None

    @property
    def checksum(self) -> str:
        """64 digits."""
        return self._digest.hexdigest()

    def add(self, value: Any) -> None:
        """Take a value, with its type."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._text(f"array {value.dtype} {value.shape}")
            self._digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        elif isinstance(value, (*NUMBERS, *KINDS)):
            self._text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, Mapping):
            self._items(value, [part for item in value.items() for part in item])
        elif isinstance(value, tuple | list):
            self._items(value, list(value))
        elif is_dataclass(value) and not isinstance(value, type):
            self._items(value, [getattr(value, field.name) for field in fields(value)])
        elif isinstance(value, FunctionType | BuiltinFunctionType | type):
            self._text(f"code {value.__module__}.{value.__qualname__}")
        else:
            self.unknown = type(value).__name__
            self._text(f"unknown {self.unknown}")

    def _items(self, value: Any, parts: list[Any]) -> None:
        self._text(f"{type(value).__name__} of {len(parts)}")
        for part in parts:
            self.add(part)

    def _tensor(self, value: Tensor) -> None:
        if value.is_nested:
            self._items(value, list(value.unbind()))
            return
        if value.is_meta:
            self.unknown = "tensor on the meta device"
            return
        x = dense(value.detach()).resolve_conj().resolve_neg().cpu().contiguous()
        self._text(f"tensor {x.dtype} {tuple(x.shape)}")
        self._digest.update(x.reshape(-1).view(torch.uint8).numpy().data)

    def _text(self, text: str) -> None:
        data = text.encode(errors="surrogatepass")
        self._digest.update(len(data).to_bytes(8, "little") + data)
