"""The integers of a Brevitas model, as its quantizers have them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.cells import LAYER
from sbc_plugin.brevitas.freezing import check_quantised
from sbc_plugin.brevitas.layers import copy_model, is_quantised
from sbc_plugin.core.quantization.integers import Integers, in_units
from sbc_plugin.errors import UnsupportedModelError, in_layer
from sbc_plugin.layers import UNEVEN_GAIN, Forward, library_of


def integers(model: nn.Module, example_input: Any = None, *, forward: Forward | None = None) -> dict[str, Integers]:
    """Codes, scales, zero points, bits, biases and thresholds of every Brevitas layer, by name.

    Args:
        model: left as it is.
        example_input: a few sequences (T, B, ...), or a batch whose first item they are, by which the neurons behind
            each layer are found; None leaves thresholds out.
        forward: ``forward(model, batch)`` runs one whole sequence, as in ``compress``.

    Raises:
        UnsupportedModelError: no Brevitas layer; one with a scale for each group of inputs, in whose units neither bias
            nor threshold can be known; or, with ``example_input``, no known spiking neuron.
        CalibrationError: the example does not fit the model.

    >>> import brevitas.nn as qnn
    >>> from sbc_plugin.brevitas.quantizers import weight_quantizer
    >>> layer = qnn.QuantLinear(2, 1, weight_quant=weight_quantizer("int3", scale="power_of_two"))
    >>> layer.weight.data = torch.tensor([[0.75, -0.5]])
    >>> stored = integers(nn.Sequential(layer))["0"]
    >>> stored.codes.tolist(), stored.scale.tolist(), stored.bits
    ([[3, -2]], [0.25], 3)
    """
    check_quantised(model)
    model = copy_model(model)  # a quantizer's first call changes it
    layers = {name: module for name, module in model.named_modules() if is_quantised(module)}
    layer_integers = {}
    for name, module in layers.items():
        with in_layer(name):
            layer_integers[name] = _integers(module)
    if example_input is None:
        return layer_integers
    thresholds = _thresholds(model, example_input, forward)
    return {name: _with_threshold(entry, thresholds.get(name)) for name, entry in layer_integers.items()}


def check_ungrouped(module: Any) -> None:
    """Refuse a layer whose scale differs within a row.

    Raises:
        UnsupportedModelError: it does.
    """
    if module.weight_quant.is_groupwise:
        raise UnsupportedModelError(
            "its weight has a scale for each group of inputs, which no exporter holds; quantise with "
            "granularity='channel' or 'tensor', or freeze the model"
        )


@torch.no_grad()
def _integers(module: Any) -> Integers:
    check_ungrouped(module)
    quantised = module.quant_weight()
    if not hasattr(quantised, "bit_width") or not hasattr(quantised, "zero_point"):
        raise UnsupportedModelError("its weight quantizer makes no integers; use weight_quantizer('int4')")
    rows = len(module.weight)
    scale = quantised.scale.detach().double().reshape(-1).expand(rows).clone()
    zero_point = quantised.zero_point.reshape(-1).expand(rows).to(torch.int32).clone()
    bias = None if module.bias is None else module.bias.detach().double() / scale
    return Integers(
        codes=_codes(quantised),
        scale=scale,
        exponent=None,
        bias=bias,
        threshold=None,
        bits=int(quantised.bit_width),
        zero_point=zero_point if zero_point.any() else None,
    )


def _codes(quantised: Any) -> Tensor:
    """As ``quantised.int()``, which Brevitas 0.12 has not for float64 and refuses for binary weights of one sign."""
    small = torch.int8 if quantised.signed else torch.uint8
    codes: Tensor = (quantised.value / quantised.scale + quantised.zero_point).round()
    return codes.to(small if quantised.bit_width <= 8 else torch.int32)


def _thresholds(model: nn.Module, batch: Any, forward: Forward | None) -> dict[str, Tensor]:
    """Name of a weight -> threshold of the neuron behind, in units of the weight's output."""
    library = library_of(model)
    known = library.thresholds(model)
    thresholds: dict[str, Tensor] = {}
    for layer in library.find_layers(model, batch, forward)[0]:
        neuron = next((site.neuron for site in layer.sites if site.neuron in known), None)
        if neuron is not None and UNEVEN_GAIN not in layer.note:
            threshold = known[neuron].detach().double()
            gain = layer.gain.to(threshold.device)
            if threshold.numel() > 1:
                gain = gain.reshape(-1, *[1] * (threshold.dim() - 1))
            thresholds |= {part.name + end: threshold / gain for part in layer.parts for end in ("", LAYER)}
    return thresholds


def _with_threshold(entry: Integers, threshold: Tensor | None) -> Integers:
    return entry if threshold is None else replace(entry, threshold=in_units(threshold, entry.scale))
