"""Brevitas' own ``gptq_mode`` as the oracle: on the same Hessian and order ``sbc_mode`` gives the same values."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

qnn = pytest.importorskip("brevitas.nn")

import brevitas.quant as quantizers  # noqa: E402
from brevitas.core.scaling import ParameterFromStatsFromParameterScaling  # noqa: E402
from brevitas.core.zero_point import ParameterFromStatsFromParameterZeroPoint  # noqa: E402
from brevitas.graph.calibrate import calibration_mode  # noqa: E402
from brevitas.graph.gptq import gptq_mode  # noqa: E402

from sbc_plugin.brevitas import sbc_mode, weight_quantizer  # noqa: E402

pytestmark = pytest.mark.skipif(
    "dtype" not in inspect.signature(gptq_mode).parameters, reason="gptq_mode of Brevitas 0.12 solves in float32 alone"
)

LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "linear": (lambda **q: qnn.QuantLinear(16, 6, bias=True, **q), (120, 16)),
    "conv1d": (lambda **q: qnn.QuantConv1d(4, 6, 3, dilation=2, padding=2, **q), (12, 4, 12)),
    "conv2d": (lambda **q: qnn.QuantConv2d(4, 6, 3, stride=2, padding=1, **q), (12, 4, 8, 8)),
    "depthwise": (lambda **q: qnn.QuantConv2d(6, 6, 3, groups=6, padding=1, **q), (8, 6, 6, 6)),
    "grouped": (lambda **q: qnn.QuantConv2d(8, 6, 3, groups=2, **q), (12, 8, 6, 6)),
    "conv3d": (lambda **q: qnn.QuantConv3d(2, 4, 2, **q), (6, 2, 5, 5, 5)),
}


def held(name: str, bits: int | None = None, zero_point: bool = False, **settings: Any) -> Any:
    """A quantizer of Brevitas in the form that its PTQ example gives it: scale and zero point are parameters."""
    settings |= {"scaling_impl": ParameterFromStatsFromParameterScaling}
    settings |= {"bit_width": bits} if bits else {}
    settings |= {"zero_point_impl": ParameterFromStatsFromParameterZeroPoint} if zero_point else {}
    return getattr(quantizers, name).let(**settings)


QUANTIZERS = {
    "SBC int3": weight_quantizer("int3"),
    "SBC int4, tensor": weight_quantizer("int4", "tensor", "absmax"),
    "SBC int2, power of two": weight_quantizer("int2", scale="power_of_two"),
    "SBC int4, groups": weight_quantizer("int4", "group:2"),
    "channel, 4 bits": held("Int8WeightPerChannelFloat", 4),
    "tensor, 3 bits": held("Int8WeightPerTensorFloat", 3, narrow_range=False),
    "channel, MSE, 3 bits": held("Int8WeightPerChannelFloatMSE", 3),
    "fixed point, MSE": held("Int8WeightPerTensorFixedPointMSE", 5),
    "asymmetric tensor, 4 bits": held("ShiftedUint8WeightPerTensorFloat", 4, zero_point=True),
    "asymmetric channel, MSE, 3 bits": held("ShiftedUint8WeightPerChannelFloatMSE", 3, zero_point=True),
    "12 bits": held("Int8WeightPerChannelFloat", 12),
    "fp8": held("Fp8e4m3WeightPerChannelFloat"),
    "fp8 of OCP, tensor": held("Fp8e5m2OCPWeightPerTensorFloat"),
    "fp4, tensor": held("Fp8e4m3WeightPerTensorFloat", 4, exponent_bit_width=2, mantissa_bit_width=1),
    "MX int": held("MXInt8Weight", 4, group_size=2),
    "MX float": held("MXFloat8e4m3Weight", 4, group_size=2, exponent_bit_width=2, mantissa_bit_width=1),
}
GROUPED = [name for name in QUANTIZERS if "groups" in name or "MX" in name]  # two input channels each
CASES = [(kind, name) for kind in LAYERS for name in QUANTIZERS if kind != "depthwise" or name not in GROUPED]
# Quantizers that follow the weight, or that turn their own results into others: gptq_mode works on a moving target.
MOVING = {
    "Int8WeightPerTensorFloat": {"bit_width": 3},
    "Int8WeightPerChannelFloat": {"bit_width": 3},
    "Int8WeightPerTensorFixedPoint": {"bit_width": 4},
    "ShiftedUint8WeightPerTensorFloat": {"bit_width": 3},
    "ShiftedUint8WeightPerChannelFloat": {"bit_width": 3},
    "Int4WeightPerTensorFloatDecoupled": {},
    "Int8WeightPerChannelFloatDecoupled": {"bit_width": 4},
    "Fp8e4m3WeightPerTensorFloat": {"bit_width": 4, "exponent_bit_width": 2, "mantissa_bit_width": 1},
    "Fp8e5m2OCPWeightPerChannelFloat": {},
    "Fp8e4m3FNUZWeightPerChannelFloat": {},
    "MXInt8Weight": {"bit_width": 3, "group_size": 4},
    "ShiftedMXUInt8Weight": {"bit_width": 3, "group_size": 4},
    "MXFloat8e4m3Weight": {"bit_width": 4, "group_size": 4, "exponent_bit_width": 2, "mantissa_bit_width": 1},
    "SignedBinaryWeightPerTensorConst": {},
    "SignedTernaryWeightPerTensorConst": {},
}
FLOOR = {"scaling_impl": ParameterFromStatsFromParameterScaling, "float_to_int_impl_type": "floor", "bit_width": 4}


def built(
    kind: str, quantizer: Any, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any
) -> tuple[Any, Tensor]:
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    layer = make(weight_quant=quantizer, **settings).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    x = x + 0.8 * x.roll(1, dims=1)  # correlated, so that the order of the columns and their errors matter
    model: Any = nn.Sequential(layer).eval()
    model(x[:1])
    return model, x


def run(mode: Any, model: nn.Module, x: Tensor, **settings: Any) -> None:
    with torch.no_grad(), mode(model, **settings) as found:
        for _ in range(found.num_layers):
            for batch in x.chunk(3):
                found.model(batch)
            found.update()


def values(model: Any) -> Tensor:
    found: Tensor = model[0].quant_weight().value.detach()
    return found


def error(model: Any, dense: Any, x: Tensor) -> float:
    """Of the layer's output, relative."""
    with torch.no_grad():
        dense[0].weight_quant.disable_quant = True
        wanted = dense(x)
        return float((model(x) - wanted).square().sum() / wanted.square().sum())


def both(kind: str, quantizer: Any, dtype: torch.dtype, seed: int, **settings: Any) -> list[Tensor]:
    found = []
    for mode in (gptq_mode, sbc_mode):
        model, x = built(kind, quantizer, dtype, seed)
        scale = model[0].quant_weight().scale.clone()
        run(mode, model, x, dtype=dtype, **settings)
        assert torch.equal(model[0].quant_weight().scale, scale)
        found.append(values(model))
    return found


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("kind", "quantizer"), CASES)
def test_the_values_are_those_of_gptq_mode(kind: str, quantizer: str, act_order: bool) -> None:
    """In float64, where both round alike: one value that differs would be a whole step."""
    found = both(kind, QUANTIZERS[quantizer], torch.float64, 0, act_order=act_order)
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("kind", "quantizer"), CASES)
def test_the_values_are_those_of_gptq_mode_for_many_seeds(
    kind: str, quantizer: str, act_order: bool, dtype: torch.dtype
) -> None:
    """In float32 gptq_mode rounds the weight after each column, so values near a tie may go to the other side."""
    for seed in range(1, 5):
        found = both(kind, QUANTIZERS[quantizer], dtype, seed, act_order=act_order)
        if dtype == torch.float64:
            assert torch.allclose(*found, rtol=1e-9, atol=1e-12), seed
        else:
            assert (~torch.isclose(*found, rtol=1e-4, atol=1e-6)).double().mean() < 0.05, seed


@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped", "depthwise"])
@pytest.mark.parametrize("name", [*MOVING, "rounded down"])
def test_errors_are_no_worse_where_gptq_mode_moves_the_grid(kind: str, name: str) -> None:
    """Its scale follows the weight: what the codes meant when they were chosen is not what they mean in the end.

    The tolerance is for float32, and for one scale of all groups of a convolution, which it goes through side by side.
    """
    if "MX" in name and kind == "depthwise":
        pytest.skip("one input channel has no groups")
    quantizer = quantizers.Int8WeightPerChannelFloat.let(**FLOOR)
    if name in MOVING:
        quantizer = getattr(quantizers, name).let(**MOVING[name])
    errors = []
    for mode in (gptq_mode, sbc_mode):
        model, x = built(kind, quantizer, torch.float32)
        run(mode, model, x, act_order=True)
        errors.append(error(model, built(kind, quantizer, torch.float32)[0], x))
    assert errors[1] <= errors[0] * 1.05
    scale, found = model[0].quant_weight().scale.clone(), values(model)
    model[0].weight.data[:, 0] *= 3  # the grid stays after the block
    assert torch.equal(model[0].quant_weight().scale, scale)
    assert torch.equal(values(model)[:, 1:], found[:, 1:])


@pytest.mark.parametrize("settings", [{}, {"use_quant_activations": False}], ids=["input quantised", "input as it is"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_hessian_is_that_of_the_quantised_input(kind: str, settings: Any) -> None:
    """A layer's own input quantizer stands before its weight, as Brevitas' layerwise flow builds it."""
    found = []
    for mode in (gptq_mode, sbc_mode):
        inputs = quantizers.Int8ActPerTensorFloat.let(bit_width=3)
        model, x = built(kind, weight_quantizer("int3"), input_quant=inputs)
        with torch.no_grad(), calibration_mode(model):
            model(x)
        run(mode, model, x, dtype=torch.float64, act_order=False, **settings)
        found.append(values(model))
        assert model[0].input_quant.is_quant_enabled
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)
