"""From Brevitas' layers back to torch's: plain weights that hold what the quantizers make of them."""

from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.cells import QuantisedCell, plain_cell
from sbc_plugin.brevitas.layers import Quantised, build_settings, copy_model, is_quantised, replace_modules
from sbc_plugin.errors import UnsupportedModelError, in_layer

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    qnn.QuantLinear: nn.Linear,
    qnn.QuantConv1d: nn.Conv1d,
    qnn.QuantConv2d: nn.Conv2d,
    qnn.QuantConv3d: nn.Conv3d,
}


def freeze(model: nn.Module) -> nn.Module:
    """A copy without Brevitas: each Quant layer is a plain layer with the same values, so the spikes are the same.

    Args:
        model: with Brevitas layers, in any form that :func:`~sbc_plugin.brevitas.layers.quantize_layers` takes; it is
            left as it is. Groups are fine, for plain weights have no scale.

    Raises:
        UnsupportedModelError: no Brevitas layer, or one whose behaviour a plain layer cannot have: it quantises its
            input or output, has hooks, or is of a class without a counterpart.

    >>> layer = qnn.QuantLinear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.5, -1.0]])
    >>> frozen = freeze(nn.Sequential(layer))
    >>> type(frozen[0]).__name__, torch.equal(frozen[0].weight, layer.quant_weight().value)
    ('Linear', True)
    """
    check_quantised(model)
    target = copy_model(model)
    plain: dict[int, nn.Module] = {}
    cells = {id(module): plain_cell(module) for module in target.modules() if isinstance(module, QuantisedCell)}
    target = replace_modules(target, cells)
    for name, module in target.named_modules():
        if isinstance(module, Quantised):
            with in_layer(name):
                plain[id(module)] = _plain(module)
        elif any(base.__module__.startswith("brevitas.nn") for base in type(module).__mro__):
            raise UnsupportedModelError(f"layer {name!r}: {type(module).__name__} has no plain counterpart")
    return replace_modules(target, plain)


def check_quantised(model: nn.Module) -> None:
    """Refuse a model without a single quantised Brevitas layer.

    Raises:
        UnsupportedModelError: it has none.
    """
    if not any(is_quantised(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no Brevitas layer; make it with compress(model, data, quantize=Quantize(4), "
            "backend='brevitas'), or with quantize_layers"
        )


@torch.no_grad()
def _plain(module: Any) -> nn.Module:
    kind = _PLAIN.get(type(module))
    if kind is None:
        raise UnsupportedModelError(f"{type(module).__name__} is a subclass, whose own behaviour would be lost")
    for name in ("input_quant", "output_quant"):
        if getattr(module, name).is_quant_enabled:
            raise UnsupportedModelError(f"its {name} would be lost in a plain layer; export_onnx keeps it")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise UnsupportedModelError("it has hooks, which would be lost; remove them first")
    new: Any = kind(**build_settings(module), device="meta")
    new.weight = _parameter(module.weight, module.quant_weight())
    if module.bias is not None:
        if module.bias_quant.is_quant_enabled and module.bias_quant.requires_input_scale:
            raise UnsupportedModelError(
                "its bias is quantised in units of an input's scale, which spikes have not; use bias_quant=None"
            )
        new.bias = _parameter(module.bias, module.quant_bias())
    plain: nn.Module = new.train(module.training)
    return plain


def _parameter(own: nn.Parameter, quantised: Any) -> nn.Parameter:
    value: Tensor = getattr(quantised, "value", quantised)
    return nn.Parameter(value.detach().clone(), requires_grad=own.requires_grad)
