"""Quantizers by name: the grid is core's, bit by bit, and stays where it is."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

brevitas = pytest.importorskip("brevitas.nn")

import sbc_plugin.brevitas as adapter  # noqa: E402
from sbc_plugin.brevitas import quantizers, weight_quantizer  # noqa: E402
from sbc_plugin.core.quantization.grids import make_grid  # noqa: E402
from sbc_plugin.errors import SettingsError  # noqa: E402

SCALES = ("absmax", "mse", "power_of_two")


def linear(quantizer: Any) -> Any:
    return brevitas.QuantLinear(12, 5, bias=False, weight_quant=quantizer)


def convolution(quantizer: Any) -> Any:
    return brevitas.QuantConv2d(8, 5, 3, weight_quant=quantizer)


def seen(layer: Any) -> tuple[Tensor, Tensor]:
    found = layer.quant_weight()
    return found.value.detach(), found.scale.detach()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4"])
@pytest.mark.parametrize("scale", SCALES)
def test_grid_is_that_of_core(bits: int, granularity: str, scale: str) -> None:
    layer = linear(weight_quantizer(f"int{bits}", granularity, scale))
    weight = layer.weight.detach()
    grid = make_grid(weight, bits, granularity=granularity, scale=scale)
    value, found = seen(layer)
    assert torch.equal(value, grid.round(weight))
    assert torch.equal(found.expand(5, 12), grid.of_columns(12)[0].expand(5, 12))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_grid_of_a_convolution_is_that_of_core(granularity: str) -> None:
    layer = convolution(weight_quantizer("int3", granularity))
    weight = layer.weight.detach().flatten(1)
    assert torch.equal(seen(layer)[0].flatten(1), make_grid(weight, 3, granularity=granularity).round(weight))


def test_groups_of_a_convolution_are_input_channels_of_one_kernel_position() -> None:
    layer = convolution(weight_quantizer("int3", "group:4", "absmax"))
    largest = layer.weight.detach().reshape(5, 2, 4, 3, 3).abs().amax(2) / 3
    assert torch.equal(seen(layer)[1], largest.repeat_interleave(4, 1))


@pytest.mark.parametrize("name", ["int4", "ternary", "binary"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("make", [linear, convolution])
def test_grid_never_moves(name: str, granularity: str, scale: str, make: Any) -> None:
    if name == "binary" and granularity != "tensor":
        granularity = "channel"
    layer = make(weight_quantizer(name, granularity, scale))
    value, before = seen(layer)
    with torch.no_grad():
        layer.weight.copy_(value)
    assert torch.equal(seen(layer)[0], value)  # write-back of grid points changes nothing
    with torch.no_grad():
        layer.weight.mul_(0.3).add_(1.0)
    assert torch.equal(seen(layer)[1], before)
    assert torch.equal(seen(layer.train())[1], before)
    assert torch.equal(seen(copy.deepcopy(layer))[1], before)


def test_grid_comes_back_from_a_state_dict() -> None:
    layer, other = (linear(weight_quantizer("int4")) for _ in range(2))
    before = seen(layer)[1]
    with torch.no_grad():
        layer.weight.mul_(3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(seen(other)[1], before)


@pytest.mark.parametrize("exponent", range(-20, 21))
def test_powers_of_two_are_exact_at_every_size(exponent: int) -> None:
    layer = linear(weight_quantizer("int4", "tensor", "power_of_two"))
    with torch.no_grad():
        layer.weight.clamp_(-0.5, 0.5)[0, 0] = 7.0
        layer.weight.mul_(2.0**exponent)
    assert float(seen(layer)[1]) == 2.0**exponent  # a logarithm rounded up would give twice that


@pytest.mark.parametrize("scale", ["absmax", "mse"])
def test_binary_weights_are_plus_and_minus_one_scale(scale: str) -> None:
    layer = linear(weight_quantizer("binary", "channel", scale))
    weight = layer.weight.detach()
    size = weight.abs().mean(1, keepdim=True) if scale == "mse" else weight.abs().amax(1, keepdim=True)
    torch.testing.assert_close(seen(layer)[0], size * weight.sign(), rtol=1e-6, atol=0)  # order of the mean's sum
    candidates = size * torch.linspace(0.5, 1.5, 101)
    errors = (weight.abs()[:, :, None] - candidates[:, None]).square().sum(1)
    assert scale == "absmax" or bool((errors.argmin(1) == 50).all())  # no other scale is nearer


def test_ternary_is_the_grid_of_two_bits() -> None:
    layer = linear(weight_quantizer("ternary"))
    assert set(layer.quant_weight().int().unique().tolist()) == {-1, 0, 1}
    assert layer.quant_weight().bit_width == 2


def test_zero_weights_are_zero() -> None:
    layer = linear(weight_quantizer("int2", "tensor"))
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    assert not seen(layer)[0][:, ::2].any()
    nothing = linear(weight_quantizer("int4"))
    nn.init.zeros_(nothing.weight)
    assert not seen(nothing)[0].any() and bool((seen(nothing)[1] == 1).all())


def test_names_of_classes() -> None:
    for bits in (2, 3, 4, 8):
        for kind, granularity in (("Tensor", "tensor"), ("Channel", "channel"), ("Group", "group:32")):
            for suffix, scale in (("Float", "absmax"), ("FloatMSE", "mse"), ("PowerOfTwo", "power_of_two")):
                name = f"SBCInt{bits}WeightPer{kind}{suffix}"
                assert getattr(adapter, name) is weight_quantizer(f"int{bits}", granularity, scale)
                assert name in adapter.__all__ and getattr(adapter, name).__name__ == name
                assert name in dir(adapter) and name in dir(quantizers)
                assert pickle.loads(pickle.dumps(getattr(adapter, name))) is getattr(quantizers, name)
    assert weight_quantizer("int4") is weight_quantizer("int4", "channel", scale="mse")
    for module in (adapter, quantizers):
        assert not hasattr(module, "SBCInt4WeightPerTensor")
    listed: dict[str, object] = {}
    exec("from sbc_plugin.brevitas import *", listed)
    assert listed["SBCInt4WeightPerChannelFloat"] is weight_quantizer("int4", "channel", "absmax")


@pytest.mark.parametrize(
    "wrong",
    [
        *[("int9",), ("int1",), ("int4", "row"), ("int4", "group"), ("int4", "group:0"), ("int4", "tensor", "max")],
        *[("int4", "channel:3"), ("binary", "group:4")],
    ],
)
def test_what_is_not_known_is_refused(wrong: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="use"):
        weight_quantizer(*wrong)
