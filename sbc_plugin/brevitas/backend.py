"""``compress(..., backend="brevitas")``: core's integers and scales in Brevitas' layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sbc_plugin.brevitas.cells import LAYER, weights_of
from sbc_plugin.brevitas.grids import set_scale, write
from sbc_plugin.brevitas.layers import quantize_layers, replace_modules
from sbc_plugin.brevitas.quantizers import weight_quantizer
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.layers import Part, SpikingLayer
from sbc_plugin.settings import Quantize


def check_backend(layers: Sequence[SpikingLayer], quantize: Mapping[str, Quantize]) -> None:
    """Refuse what Brevitas' layers cannot hold.

    Args:
        layers: of the model.
        quantize: by layer name, of those that are quantised.

    Raises:
        SettingsError: a zero point, or groups that mix the kernel positions of a convolution.
        UnsupportedModelError: no layer that Brevitas has a counterpart of.
    """
    if not all(own.symmetric for own in quantize.values()):
        raise SettingsError("backend='brevitas' has symmetric grids only; use Quantize(..., symmetric=True)")
    quantised = [layer for layer in layers if layer.name in quantize]
    parts = [(part, quantize[layer.name]) for layer in quantised for part in layer.parts if _has_layer(part)]
    if not parts:
        raise UnsupportedModelError("no weight of the model has a layer in Brevitas; use backend=None")
    for part, own in parts:
        if own.granularity.startswith("group") and part.form.positions > 1:
            raise SettingsError(
                f"layer {part.name!r}: granularity={own.granularity!r} takes consecutive weights of a row, "
                "Brevitas groups input channels of one kernel position; use granularity='channel' or backend=None"
            )


def into_backend(
    model: nn.Module, layers: Sequence[SpikingLayer], quantize: Mapping[str, Quantize], grids: Mapping[str, Grid]
) -> tuple[nn.Module, dict[str, str]]:
    """The model with Brevitas layers whose codes and scales are those of ``grids``; changed in place.

    If anything fails, the model has its own layers again; what it computed with them is the caller's to put back.

    Args:
        model: compressed: its weights lie on the grids.
        layers: of the model.
        quantize: by layer name, the settings that it was compressed with.
        grids: name of a layer -> the grid of its parts side by side; layers without one stay as they are.

    Returns:
        The model, and name -> reason for weights that are on the grid but not in Brevitas.

    Raises:
        GridMovedError: Brevitas sees other integers than core.
    """
    layers = [layer for layer in layers if layer.name in grids]
    parts = [(part, grids[layer.name].bits, quantize[layer.name]) for layer in layers for part in layer.parts]
    quantizers = {
        part.name: weight_quantizer(f"int{bits}", own.granularity, own.scale)
        for part, bits, own in parts
        if _has_layer(part)
    }
    before = dict(model.named_modules())
    model, left = quantize_layers(model, quantizers, inplace=True)
    try:
        for layer in layers:
            scale, _ = grids[layer.name].of_columns(layer.columns)
            blocks = scale.expand(layer.rows, layer.columns).split([part.form.columns for part in layer.parts], 1)
            for part, block in zip(layer.parts, blocks, strict=True):
                if part.name in quantizers and part.name not in left:
                    module: Any = model.get_submodule(part.name if _is_module(part) else part.name + LAYER)
                    with in_layer(part.name):
                        weight = module.weight.detach().flatten(1).clone()  # on the grid already
                        write(module, weight, set_scale(module, block, quantize[layer.name]))
    except BaseException:
        after = dict(model.named_modules())
        replace_modules(
            model, {id(after[name]): module for name, module in before.items() if after[name] is not module}
        )
        raise
    left |= {
        part.name: "on the grid, but no parameter of its cell" for part, *_ in parts if part.name not in quantizers
    }
    return model, left


def _is_module(part: Part) -> bool:
    return part.attribute == "weight"


def _has_layer(part: Part) -> bool:
    """Whether Brevitas has a layer for a weight; cells may hold theirs as plain tensors, for which it has none."""
    return _is_module(part) or part.attribute in weights_of(part.module)
