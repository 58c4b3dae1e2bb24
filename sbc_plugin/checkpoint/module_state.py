"""What a model computes with beside its ``state_dict``: neuron parameters, time steps, buffers that are not kept there.

Norse keeps a neuron's parameters in a NamedTuple that torch does not know. They are described as JSON, tensors larger
than one number by name, and put back into an instance that was built by the same code. No code is ever made from a
file.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

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
            held = dict(_attributes(modules[module_name]))
            for name, stored in record.items():
                with in_layer(module_name or type(model).__name__):
                    if name not in held:
                        raise CheckpointError(f"the file has {name!r}, this model has not; build it with the same code")
                    value = _value(stored, held[name], name, f"{module_name}:", tensors)
                assignments.append((modules[module_name], name, value))
    return assignments


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    yield from ((name, module._buffers[name]) for name in sorted(module._non_persistent_buffers_set))


def _counts(name: str, value: Any, module: nn.Module) -> bool:
    if isinstance(value, FunctionType):
        return any(_is_record(other) for other in vars(module).values())  # the step of a neuron
    if isinstance(module, nn.modules.conv._ConvNd) and name == "groups":
        return True
    return isinstance(value, Tensor | float) or _is_record(value)


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
    if not isinstance(stored, dict):
        return stored
    kind: str
    content: Any
    kind, content = next(iter(stored.items()))
    if kind == "fields":
        if not _is_record(held) or not set(content) <= set(held._fields):
            raise CheckpointError(
                f"{where!r} has {', '.join(content)} in the file and is of type {type(held).__name__} in this model; "
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
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return like(tensors[prefix + content], held)
    if kind in DTYPES:
        return like(torch.tensor(content, dtype=DTYPES[kind], device="cpu"), held)
    raise CheckpointError(f"{where!r} is of kind {kind!r}, which this version does not know; the file is damaged")


def like(tensor: Tensor, held: Any) -> Tensor:
    """The values of ``tensor`` where ``held`` lies, learned if ``held`` is."""
    if not isinstance(held, Tensor):
        return tensor
    moved = tensor.to(held.device)
    if isinstance(held, nn.Parameter):
        return nn.Parameter(moved, requires_grad=held.requires_grad)
    return moved.requires_grad_(held.requires_grad and moved.is_floating_point())
