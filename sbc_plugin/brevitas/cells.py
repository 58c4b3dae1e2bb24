"""Cells that hold weights of their own, with weights that Brevitas quantises.

The cell keeps its class and its step, and so computes in the same order: only where it reads its weights it gets what a
quantised Linear layer beside it makes of them. "0.input_weights" is held by the layer "0.input_weights_layer".
"""

from collections.abc import Mapping
from types import MethodType
from typing import Any

import brevitas.nn as qnn
from brevitas.inject import ExtendedInjector
from torch import Tensor, nn

from sbc_plugin.layers import Part, SpikingLayer

WEIGHTS = ("input_weights", "recurrent_weights")
LAYER = "_layer"  # behind the name of a weight: the layer that holds it


class QuantisedCell(nn.Module):
    """A cell whose weights are made by quantised layers at each call; see :func:`quantised_cell`.

    Attributes:
        plain_class: of the cell whose step it has.
    """

    plain_class: type[nn.Module]

    @property
    def input_weights(self) -> Tensor:
        """(neurons, inputs), on the grid."""
        return self._made("input_weights")

    @property
    def recurrent_weights(self) -> Tensor:
        """(neurons, neurons), on the grid."""
        return self._made("recurrent_weights")

    def _made(self, name: str) -> Tensor:
        """What the layer of a weight makes of it.

        Raises:
            AttributeError: the weight has no layer; it may be a parameter, as which the cell then finds it.
        """
        if name + LAYER not in self._modules:
            raise AttributeError(f"{type(self).__name__} has no layer for {name}")
        return _weight(self._modules[name + LAYER])


def _weight(layer: Any) -> Tensor:
    quantised = layer.quant_weight()
    value: Tensor = getattr(quantised, "value", quantised)
    return value


def parts_of(layer: SpikingLayer) -> list[Part]:
    """The parts of a layer; those whose weight a quantised layer makes, as that layer holds them."""
    parts = []
    for part in layer.parts:
        holder = part.module._modules.get(part.attribute + LAYER) if isinstance(part.module, QuantisedCell) else None
        parts.append(part if holder is None else Part(part.name + LAYER, holder, "weight", part.form))
    return parts


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _class_of(kind: type[nn.Module]) -> type[nn.Module]:
    """A cell's class with quantised weights; one for each class."""
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Quant{kind.__name__}", (QuantisedCell, kind), {"plain_class": kind})
    return _CLASSES[kind]


def weights_of(cell: nn.Module) -> tuple[str, ...]:
    """The attributes that hold a cell's weights."""
    return tuple(name for name in WEIGHTS if name in cell._parameters)


def quantised_cell(cell: nn.Module, quantizers: Mapping[str, type[ExtendedInjector]]) -> nn.Module:
    """The cell with the same parameters, in layers of Brevitas; the given one stays as it is.

    Args:
        cell: that holds its weights as parameters.
        quantizers: by the attribute of each weight.
    """
    layers: dict[str, nn.Module] = {}
    for name, quantizer in quantizers.items():
        weight: Any = cell._parameters[name]
        rows, columns = weight.shape
        settings = {"bias": False, "weight_quant": quantizer, "bias_quant": None, "return_quant_tensor": False}
        layer: nn.Module = qnn.QuantLinear(columns, rows, **settings, device="meta")
        layer.register_parameter("weight", weight)
        layers[name + LAYER] = layer.train(cell.training)
    return _remade(cell, _class_of(type(cell)), drop=set(quantizers), modules=layers, parameters={})


def plain_cell(cell: QuantisedCell) -> nn.Module:
    """The cell of its plain class, whose weights have the values that the quantised ones have."""
    layers: dict[str, Any] = {name: cell._modules[name + LAYER] for name in WEIGHTS if name + LAYER in cell._modules}
    parameters = {
        name: nn.Parameter(_weight(layer).detach().clone(), requires_grad=layer.weight.requires_grad)
        for name, layer in layers.items()
    }
    return _remade(cell, cell.plain_class, drop={name + LAYER for name in layers}, modules={}, parameters=parameters)


def _remade(
    cell: nn.Module,
    kind: type[nn.Module],
    drop: set[str],
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
) -> nn.Module:
    """A module of another class with the cell's own contents, but for these modules and parameters."""
    new = kind.__new__(kind)
    held = dict(vars(cell))
    for name, value in held.items():
        if isinstance(value, dict):
            held[name] = value.copy()
        elif isinstance(value, MethodType) and value.__self__ is cell:  # Norse's cells keep methods as attributes
            held[name] = MethodType(value.__func__, new)
    held["_parameters"] = {name: p for name, p in held["_parameters"].items() if name not in drop} | dict(parameters)
    held["_modules"] = {name: m for name, m in held["_modules"].items() if name not in drop} | dict(modules)
    vars(new).update(held)
    return new
