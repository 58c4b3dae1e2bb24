"""Writes the public names and how they are called, one a line: ``python -m integration_tests.docs.public_face``.

Annotations are left out, because Python prints them in other ways from version to version. Names that a host's module
offers to this package alone (``INTERNAL``) are no promise to anyone, so they are left out too.
"""

import inspect
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("public_face.txt")
MODULES = ["sbc_plugin", "sbc_plugin.evaluation", "sbc_plugin.norse", "sbc_plugin.torch_pruning"]
MODULES += ["sbc_plugin.brevitas", "sbc_plugin.nir"]
INTERNAL = {
    "sbc_plugin.norse": {
        "drop_surrogates",
        "find_layers",
        "flat_step",
        "FlatStep",
        "holds_weights",
        "is_neuron",
        "is_step_model",
        "layer_by_layer",
        "linear_neurons",
        "linear_state",
        "state_items",
    },
    "sbc_plugin.brevitas": {"check_backend", "into_backend"},
}


class Shown:
    """A default as the list shows it: a function by its name, settings that say nothing by their type alone."""

    def __init__(self, value: Any):
        self.text = repr(value)
        if inspect.isfunction(value):
            self.text = value.__qualname__
        elif is_dataclass(value) and value == type(value)():
            self.text = f"{type(value).__name__}()"

    def __repr__(self) -> str:
        return self.text


def signature(value: Any) -> str:
    """How a function or class is called, without ``self``; nothing for what cannot be called."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    empty = inspect.Parameter.empty
    bare = []
    for parameter in found.parameters.values():
        default = empty if parameter.default is empty else Shown(parameter.default)
        if parameter.name != "self":
            bare.append(parameter.replace(annotation=empty, default=default))
    return str(found.replace(parameters=bare, return_annotation=empty))


def methods(kind: type) -> list[str]:
    """Public methods, properties and class methods that this package defines, inherited ones included."""
    lines = []
    for name in dir(kind):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        value = inspect.getattr_static(kind, name)
        if name.startswith("_") or not owner.__module__.startswith("sbc_plugin"):
            continue
        if isinstance(value, property):
            lines.append(name)
        elif inspect.isfunction(value):
            lines.append(f"{name}{signature(value)}")
        elif isinstance(value, classmethod | staticmethod):
            lines.append(f"{name}{signature(getattr(kind, name))}")
    return lines


def lines(module: str) -> list[str]:
    """The lines of one module."""
    face = import_module(module)
    found = []
    for name in sorted(set(face.__all__) - INTERNAL.get(module, set())):
        value = getattr(face, name)
        where = f"{module}.{name}"
        if name == "__version__":
            found.append(where)
            continue
        called = "" if name.startswith("SBCInt") else signature(value)  # an injector, which nobody calls
        found.append(f"{where}{called}")
        if isinstance(value, type) and not name.startswith("SBCInt"):
            found += [f"{where}.{method}" for method in methods(value)]
    return found


def committed(module: str) -> list[str]:
    """The lines of one module in the list."""
    names = LIST.read_text().splitlines()
    deeper = tuple(f"{other}." for other in MODULES if other.startswith(f"{module}."))
    return [line for line in names if line.startswith(f"{module}.") and not line.startswith(deeper)]


if __name__ == "__main__":
    LIST.write_text("\n".join(line for module in MODULES for line in lines(module)) + "\n")
