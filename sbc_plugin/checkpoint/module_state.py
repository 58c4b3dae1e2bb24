"""What a model computes with beside its ``state_dict``: neuron parameters, time steps, buffers that are not kept there.

Norse keeps a neuron's parameters in a NamedTuple that torch does not know. They are described as JSON, tensors larger
than one number by name, and put back into an instance that was built by the same code. No code is ever made from a
file.

A tensor in a plain attribute may be a weight, or something that a forward left there, such as the last spikes. It
counts if torch knows it (a buffer), or if it is what the module was constructed with: a class names its parameters in
the signature of its constructor.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from types import BuiltinFunctionType, FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.attributes import constructed_with
from sbc_plugin.errors import CheckpointError, in_layer

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Record = dict[str, Any]
Setter = tuple[nn.Module, str, Any]


def describe(model: nn.Module) -> tuple[list[tuple[list[str], Record]], dict[str, Tensor]]:
    """Each module's attributes: module names with the record that they share, and the tensors that records name."""
    groups: list[tuple[list[str], Record]] = []
    tensors: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        record = {
            name: _as_json(value, module_name, name, tensors)
            for name, value in _attributes(module)
            if _counts(name, value, module)
        }
        same = next((names for names, known in groups if known == record and _types(known) == _types(record)), None)
        if same is not None:
            same.append(module_name)
        elif record:
            groups.append(([module_name], record))
    return groups, tensors


def setters(model: nn.Module, groups: list[Any], tensors: Mapping[str, Tensor]) -> list[Setter]:
    """(module, attribute, value) for all that :func:`describe` returned; nothing is changed yet.

    Raises:
        CheckpointError: the model has no such module or attribute, or one that no file can give.
    """
    modules = dict(model.named_modules())
    assignments = []
    for names, record in groups:
        for module_name in names:
            if module_name not in modules:
                raise CheckpointError(f"{type(model).__name__} has no module {module_name!r}, which the file has")
            module = modules[module_name]
            held = dict(_attributes(module))
            for name, stored in record.items():
                with in_layer(module_name or type(model).__name__):
                    if name not in held or (held[name] is None and isinstance(stored, dict)):
                        if name not in constructed_with(module):
                            continue  # a forward has left it in the model that was saved
                        raise CheckpointError(f"the file has {name!r}, this model has not; build it with the same code")
                    if stored is None or isinstance(stored, bool | str):
                        _refuse_kind(name, stored, held[name])  # they stand in fields alone
                    value = _value(stored, held[name], name, f"{module_name}:", tensors)
                assignments.append((module, name, value))
    return assignments


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    yield from ((name, module._buffers[name]) for name in sorted(module._non_persistent_buffers_set))


def _counts(name: str, value: Any, module: nn.Module) -> bool:
    if isinstance(value, FunctionType):
        return any(_is_record(other) for other in vars(module).values())  # the step of a neuron
    if isinstance(module, nn.modules.conv._ConvNd) and name == "groups":
        return True
    if isinstance(value, Tensor):
        return name in module._buffers or name in constructed_with(module)
    return isinstance(value, float) or _is_record(value)


def _is_record(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _as_json(value: Any, module: str, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        number = value.item() if value.dim() == 0 and value.dtype in NAMES else None
        if number is not None and isfinite(number):
            return {NAMES[value.dtype]: number}
        tensors[f"{module}:{name}"] = value
        return {"tensor": name}
    if _is_record(value):
        return {
            "fields": {key: _as_json(part, module, f"{name}.{key}", tensors) for key, part in value._asdict().items()}
        }
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return {"function": value.__qualname__}
    if isinstance(value, float) and not isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{name!r} of {module!r} is of type {type(value).__name__}, which has no place in a file; take it out first"
    )


def _types(stored: Any) -> Any:
    """The types inside, for 1, 1.0 and True are equal to Python."""
    return {key: _types(part) for key, part in stored.items()} if isinstance(stored, dict) else type(stored)


def _value(stored: Any, held: Any, where: str, prefix: str, tensors: Mapping[str, Tensor]) -> Any:
    """What an attribute is set to, of the kind of value that it holds.

    Raises:
        CheckpointError: the file has a value of another kind, or of none.
    """
    number = isinstance(held, Tensor | float | int) and not isinstance(held, bool)
    if not isinstance(stored, dict):
        same = isinstance(stored, float | int) and number if not isinstance(stored, bool) else isinstance(held, bool)
        if stored is not None and held is not None and not same and type(stored) is not type(held):
            _refuse_kind(where, stored, held)
        return stored
    if len(stored) != 1:
        raise CheckpointError(f"{where!r} is no value that this version knows; the file is damaged")
    kind: str
    content: Any
    kind, content = next(iter(stored.items()))
    if kind == "fields":
        if not _is_record(held) or not isinstance(content, dict) or not set(content) <= set(held._fields):
            shown = ", ".join(content) if isinstance(content, dict) else repr(content)
            raise CheckpointError(
                f"{where!r} has {shown} in the file and is of type {type(held).__name__} in this model; "
                "build it with the same code"
            )
        parts = {
            key: _value(part, getattr(held, key), f"{where}.{key}", prefix, tensors) for key, part in content.items()
        }
        return held._replace(**parts)
    if kind == "function":
        own = getattr(held, "__qualname__", type(held).__name__)
        if own != content:
            raise CheckpointError(
                f"{where!r} is {content} in the file and {own} in this model; build it with {content}"
            )
        return held
    if not number and held is not None:
        _refuse_kind(where, stored, held)
    if kind == "tensor" and isinstance(content, str) and prefix + content in tensors:
        return like(tensors[prefix + content], held)
    try:
        if kind == "float":
            return float(content)
        if kind in DTYPES and isinstance(content, bool | int | float):
            return like(torch.tensor(content, dtype=DTYPES[kind], device="cpu"), held)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise CheckpointError(f"{where!r} is a {kind!r} that this version does not know; the file is damaged")


def _refuse_kind(where: str, stored: Any, held: Any) -> NoReturn:
    """Refuse a value of another kind than the model holds.

    Raises:
        CheckpointError: always.
    """
    shown = f"{stored!r:.60}"
    raise CheckpointError(
        f"{where!r} is {shown} in the file and a {type(held).__name__} in this model; build it with the same code"
    )


def like(tensor: Tensor, held: Any) -> Tensor:
    """The values of ``tensor`` where ``held`` lies, learned if ``held`` is."""
    if not isinstance(held, Tensor):
        return tensor
    moved = tensor.to(held.device)
    if isinstance(held, nn.Parameter):
        return nn.Parameter(moved, requires_grad=held.requires_grad)
    return moved.requires_grad_(held.requires_grad and moved.is_floating_point())
