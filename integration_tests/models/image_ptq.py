"""Brevitas' PTQ example for images as a script calls it: its options, what prepares a model, and what quantises it."""

from typing import Any

import torch
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas.graph.target.flexml import preprocess_for_flexml_quantize
from brevitas_examples.imagenet_classification.ptq import ptq_common
from torch import Tensor, nn

OPTIONS: dict[str, dict[str, Any]] = {
    "W4A8": {},
    "W3A8": {"weight_bit_width": 3},
    "W3A3": {"weight_bit_width": 3, "act_bit_width": 3},
    "per tensor": {"weight_quant_granularity": "per_tensor", "weight_bit_width": 3},
    "asymmetric": {"weight_quant_type": "asym", "act_quant_type": "asym", "weight_bit_width": 3},
    "MSE": {"weight_param_method": "mse", "act_param_method": "mse", "weight_bit_width": 3},
    "HQO": {"weight_param_method": "hqo", "weight_bit_width": 3},
    "fixed point": {"scale_factor_type": "po2_scale"},
    "bias of 16 bits": {"bias_bit_width": 16, "weight_bit_width": 3},
    "narrow, bias as it is": {"weight_narrow_range": True, "bias_bit_width": None},
    "groups": {"scale_factor_type": "po2_scale", "weight_quant_granularity": "per_group", "bias_bit_width": None},
    "groups, asymmetric, MSE": {
        "scale_factor_type": "po2_scale",
        "weight_quant_granularity": "per_group",
        "bias_bit_width": None,
        "weight_quant_type": "asym",
        "weight_param_method": "mse",
    },
    "fp8": {"quant_format": "float", "bias_bit_width": None, "act_bit_width": 8},
    "fp4 of OCP": {
        "quant_format": "float_ocp",
        "bias_bit_width": None,
        "weight_bit_width": 4,
        "weight_exponent_bit_width": 2,
        "weight_mantissa_bit_width": 1,
    },
}


def prepared(model: nn.Module, backend: str, example: Tensor) -> nn.Module:
    """The float model as the backend wants it: BatchNorm merged, functions as modules; "layerwise" takes any."""
    if backend == "fx":
        model = preprocess_for_quantize(model)
    elif backend == "flexml":
        model = preprocess_for_flexml_quantize(model, example)
    return model


def quantised_model(model: nn.Module, backend: str, loader: list[tuple[Tensor, Tensor]], **options: Any) -> nn.Module:
    """Quantised and calibrated; ``options`` differ from four bits a weight, eight an activation, a scale a channel."""
    settings: dict[str, Any] = {
        "weight_bit_width": 4,
        "act_bit_width": 8,
        "bias_bit_width": 32,
        "weight_quant_granularity": "per_channel",
        "act_quant_percentile": 99.9,
        "act_quant_type": "sym",
        "scale_factor_type": "float_scale",
        "quant_format": "int",
    }
    found: nn.Module = ptq_common.quantize_model(model, backend, **(settings | options)).eval()
    with torch.no_grad():
        found(loader[0][0])
    ptq_common.calibrate(loader, found)
    return found
