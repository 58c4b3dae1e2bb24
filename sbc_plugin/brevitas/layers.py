"""Replace a model's Linear and convolution layers by Brevitas' quantised ones, and say what was left out."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import brevitas.nn as qnn
from brevitas.inject import ExtendedInjector
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from torch import Tensor, nn

from sbc_plugin.brevitas.cells import QuantisedCell, quantised_cell, weights_of
from sbc_plugin.brevitas.inputs import analogue_inputs, calibrate_input
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.layers import Forward

Quantised = qnn.QuantLinear | qnn.QuantConv1d | qnn.QuantConv2d | qnn.QuantConv3d
_QUANTISED: dict[type[nn.Module], Any] = {
    nn.Linear: qnn.QuantLinear,
    nn.Conv1d: qnn.QuantConv1d,
    nn.Conv2d: qnn.QuantConv2d,
    nn.Conv3d: qnn.QuantConv3d,
}
_PLAIN = tuple(_QUANTISED)


def quantize_layers(
    model: nn.Module,
    quantizer: type[ExtendedInjector] | Mapping[str, type[ExtendedInjector]],
    *,
    inplace: bool = False,
    names: Collection[str] | None = None,
    input_quant: type[ExtendedInjector] | None = None,
    calibration_data: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> tuple[nn.Module, dict[str, str]]:
    """A model whose Linear and Conv layers are Brevitas', with quantised weights, wherever they stand in it.

    Neurons, biases and everything else stay as they are; layers return plain tensors, so spiking code works on.

    Args:
        model: any module: ``SequentialState``, ``Lift``, NIR graphs, modules with a loop of their own, a single layer.
        quantizer: of :func:`~sbc_plugin.brevitas.quantizers.weight_quantizer`, or Brevitas' own; or name -> quantizer,
            of the layers to quantise, where they get different ones.
        inplace: change ``model`` itself, unless it is a single layer, which cannot turn into another.
        names: of the layers to quantise; None = all, or those that ``quantizer`` names.
        input_quant: Brevitas' quantizer of activations, such as ``Int8ActPerTensorFloat``, for the inputs of layers
            that get numbers other than 0 and 1 on the calibration data. None: weights only.
        calibration_data: iterable of batches, as for ``compress``, by which these layers are found and their
            scales set.
        forward: ``forward(model, batch)`` runs one whole sequence of it; the default is that of ``compress``.

    Returns:
        The model, and name -> reason for every weight that was left out; with ``input_quant``, name + ".input" ->
        reason for every input that was.

    Raises:
        SettingsError: ``quantizer`` or ``input_quant`` is no quantizer class, ``input_quant`` has no data, or ``names``
            has one that the model lacks.
        CalibrationError: the calibration data is empty, or holds NaN or infinity.
        UnsupportedModelError: no layer can be quantised.
    """
    modules = dict(model.named_modules())
    known_names = modules.keys() | {f"{name}.{raw}".lstrip(".") for name, m in modules.items() for raw in weights_of(m)}
    quantizers = quantizer if isinstance(quantizer, Mapping) else dict.fromkeys(known_names, quantizer)
    for each in quantizers.values():
        _check_quantizer("quantizer", each, "weight_quantizer('int4')")
    if input_quant is not None:
        _check_quantizer("input_quant", input_quant, "brevitas.quant.Int8ActPerTensorFloat")
        if calibration_data is None:
            raise SettingsError("input_quant needs data to set its scales by; give calibration_data")
    if unknown := sorted({*quantizers, *(names or ())} - known_names):
        known = ", ".join(repr(name) for name, module in modules.items() if isinstance(module, _PLAIN))
        raise SettingsError(f"{type(model).__name__} has no layer {unknown[0]!r}; its layers are {known}")
    target = model if inplace else copy_model(model)
    reasons: dict[str, str] = {}
    chosen: dict[str, nn.Module] = {}
    owners = _owners_of_weights(target)
    library = library_or_plain(target)
    cells: dict[str, nn.Module] = {}
    for name, module in target.named_modules():
        if library.holds_weights(module) and not isinstance(module, QuantisedCell):
            wanted = {raw: quantizers.get(full, quantizers.get(name)) for raw, full in _names_in(module, name, names)}
            rules = {raw: each for raw, each in wanted.items() if each is not None}
            if (reason := _unfit_cell(module, owners)) is None and rules:
                cells[name] = quantised_cell(module, rules)
            reasons |= {f"{name}.{raw}".lstrip("."): reason for raw in rules if reason}
            continue
        if name not in quantizers or (names is not None and name not in names):
            continue
        reason = _unfit(module, owners)
        if reason is None:
            chosen[name] = module
        elif reason:
            reasons[name or type(module).__name__] = reason
        elif not _inside_layer(target, name):
            reasons |= {f"{name}.{raw}" if name else raw: why for raw, why in _raw_weights(module).items()}
    if not chosen and not cells:
        skipped = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it holds no weights"
        raise UnsupportedModelError(f"{type(model).__name__} has no layer that can be quantised ({skipped})")
    inputs: dict[str, list[Tensor]] = {}
    if input_quant is not None and calibration_data is not None:
        inputs, binary = analogue_inputs(target, chosen, calibration_data, forward)
        reasons |= binary
    layers = {
        name: _quantised(module, quantizers[name], input_quant if name in inputs else None)
        for name, module in chosen.items()
    }
    for name, given in inputs.items():
        calibrate_input(layers[name], given)
    new = {id(chosen[name]): layer for name, layer in layers.items()}
    new |= {id(target.get_submodule(name)): cell for name, cell in cells.items()}
    return replace_modules(target, new), reasons


def _names_in(cell: nn.Module, name: str, names: Collection[str] | None) -> list[tuple[str, str]]:
    """Attribute and full name of each weight of a cell that is to be quantised."""
    pairs = [(raw, f"{name}.{raw}".lstrip(".")) for raw in weights_of(cell)]
    return [(raw, full) for raw, full in pairs if names is None or not {name, full}.isdisjoint(names)]


def _unfit_cell(cell: nn.Module, owners: dict[int, list[nn.Module]]) -> str | None:
    """Why a cell's weights are left out; None if they can be quantised."""
    if any(len(owners[id(cell._parameters[raw])]) > 1 for raw in weights_of(cell)):
        return "it shares its weight with another module, so neither can change alone"
    return None


def _check_quantizer(name: str, value: object, example: str) -> None:
    if not (isinstance(value, type) and issubclass(value, ExtendedInjector)):
        raise SettingsError(f"{name}={value!r} is no quantizer class; use e.g. {example}")


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """The model, changed in place, with other modules wherever those of an id in ``new`` stand; or the new module."""
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if id(module) in new:
                parent._modules[child] = new[id(module)]
        _replace_in_graph(parent, new)
    return model


def build_settings(module: Any) -> dict[str, Any]:
    """The arguments that make a layer of the same shape, plain or Brevitas', from either."""
    outputs, inputs, *kernel = module.weight.shape
    if isinstance(module, nn.Linear):
        return {"in_features": inputs, "out_features": outputs, "bias": module.bias is not None}
    sizes = {"in_channels": inputs * module.groups, "out_channels": outputs, "kernel_size": tuple(kernel)}
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return sizes | {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}


def is_quantised(module: nn.Module) -> bool:
    """Whether the module is a Linear or (not transposed) convolution of Brevitas with a weight quantizer."""
    return isinstance(module, Quantised) and module.weight_quant.tensor_quant is not None


def is_rounded(module: nn.Module) -> bool:
    """Whether the module is a layer of Brevitas with a weight quantizer, of whatever class."""
    quantizer = getattr(module, "weight_quant", None)
    return isinstance(quantizer, WeightQuantProxyFromInjectorBase) and bool(quantizer.is_quant_enabled)


def copy_model(model: nn.Module) -> nn.Module:
    """An independent copy, also of models without a spiking neuron.

    Raises:
        UnsupportedModelError: it cannot be copied.
    """
    return library_or_plain(model).copy_model(model)


def _owners_of_weights(model: nn.Module) -> dict[int, list[nn.Module]]:
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() >= 2:
                owners.setdefault(id(parameter), []).append(module)
    return owners


def _unfit(module: nn.Module, owners: dict[int, list[nn.Module]]) -> str | None:
    """None for a layer to quantise, why not for one that is left out, "" for what is no layer."""
    kind = type(module).__name__
    if isinstance(module, Quantised):
        return "is quantised already"
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return f"{kind} is not supported: its weight has no matrix form"
    if not isinstance(module, _PLAIN):
        return ""
    if type(module) not in _PLAIN:
        return f"{kind} is a subclass of {type(module).__mro__[1].__name__}, whose own behaviour would be lost"
    if "weight" not in module._parameters:
        return "its weight is computed by a parametrisation or a pruning hook; make it permanent first"
    if len(owners[id(module.weight)]) > 1:
        return "it shares its weight with another module, so neither can change alone"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks, which would be lost; remove them first"
    return None


def _quantised(
    module: nn.Module, quantizer: type[ExtendedInjector], input_quant: type[ExtendedInjector] | None
) -> nn.Module:
    settings = build_settings(module) | {
        "weight_quant": quantizer,
        "input_quant": input_quant,
        "bias_quant": None,
        "return_quant_tensor": False,
        "device": "meta",  # no memory, no random numbers: weight and bias are handed over below
    }
    new: nn.Module = _QUANTISED[type(module)](**settings)
    if module.bias is not None:
        new.register_parameter("bias", module._parameters["bias"])
    # After this Brevitas makes the quantizer anew, on the weight's device.
    new.register_parameter("weight", module._parameters["weight"])
    return new.train(module.training)


def _raw_weights(module: nn.Module) -> dict[str, str]:
    kind = type(module).__name__
    return {
        name: f"a parameter of {kind}, which Brevitas has no quantised layer for"
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() >= 2
    }


def _inside_layer(model: nn.Module, name: str) -> bool:
    """Whether a module is a part of a layer: a quantizer or a parametrisation."""
    parts = name.split(".")
    return any(isinstance(model.get_submodule(".".join(parts[:end])), _PLAIN) for end in range(len(parts)))


def _replace_in_graph(parent: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """NIR graphs call their modules through the graph's nodes, beside the parent's own list of children."""
    for value in vars(parent).values():
        for node in getattr(value, "__dict__", {}).get("node_list", ()):  # some classes of Brevitas answer any getattr
            if id(node.elem) in new:
                node.elem = new[id(node.elem)]
