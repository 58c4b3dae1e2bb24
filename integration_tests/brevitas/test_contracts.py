"""What we lean on in Brevitas, one test a fact: an upstream change fails here by name."""

import copy
import inspect
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import nn

qnn = pytest.importorskip("brevitas.nn")
from brevitas.core.scaling import ParameterFromStatsFromParameterScaling  # noqa: E402
from brevitas.graph.gptq import gptq_mode  # noqa: E402
from brevitas.quant import Int8WeightPerChannelFloat  # noqa: E402

from integration_tests.models.networks import BOX, over_time  # noqa: E402
from sbc_plugin.brevitas import integers, sbc_mode, weight_quantizer  # noqa: E402


def layer(quantizer: Any = None, **settings: Any) -> Any:
    return qnn.QuantLinear(6, 4, weight_quant=weight_quantizer("int4") if quantizer is None else quantizer, **settings)


def test_quantised_layers_are_torch_layers() -> None:
    for name in ("Linear", "Conv1d", "Conv2d", "Conv3d"):
        assert issubclass(getattr(qnn, f"Quant{name}"), getattr(nn, name))
    for name in ("in_features", "out_features", "bias", "weight_quant", "bias_quant", "return_quant_tensor", "device"):
        assert name in inspect.signature(qnn.QuantLinear.__init__).parameters


def test_a_layer_returns_a_plain_tensor_and_has_a_plain_weight() -> None:
    made = layer(bias_quant=None, return_quant_tensor=False)
    assert type(made(torch.rand(2, 6))) is torch.Tensor and "weight" in made._parameters


def test_quant_weight_tells_value_scale_zero_point_bits_and_integers() -> None:
    found = layer().quant_weight()
    assert found.bit_width == 4 and not found.zero_point.any()
    assert torch.equal(found.value, found.scale * found.int())
    quantizer = layer().weight_quant
    assert (quantizer.is_signed, quantizer.is_narrow_range, quantizer.is_groupwise) == (True, True, False)


def test_a_tensor_quantizer_returns_value_scale_zero_point_and_bits() -> None:
    made = layer()
    value, scale, zero_point, bits = made.weight_quant.tensor_quant(made.weight)
    found = made.quant_weight()
    assert torch.equal(value, found.value) and torch.equal(scale, found.scale)
    assert torch.equal(zero_point, found.zero_point) and bits == 4


def test_a_disabled_quantizer_leaves_the_weight() -> None:
    made, x = layer(), torch.rand(2, 6)
    made.weight_quant.disable_quant = True
    assert not made.weight_quant.is_quant_enabled
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))


def test_a_scale_from_stats_is_a_parameter_after_the_first_call() -> None:
    made = layer()
    scaling = made.weight_quant.tensor_quant.scaling_impl
    assert isinstance(scaling, ParameterFromStatsFromParameterScaling) and not scaling.init_done
    scale = made.quant_weight().scale
    assert scaling.init_done and torch.equal(scaling.value, scale)  # divided by one: the value is the scale itself
    scaling.value.data.mul_(2)
    assert torch.equal(made.quant_weight().scale, 2 * scale)


def test_a_new_weight_parameter_makes_the_quantizer_anew() -> None:
    made = layer()
    made.quant_weight()
    made.weight = nn.Parameter(torch.rand(4, 6))
    assert not made.weight_quant.tensor_quant.scaling_impl.init_done


def test_the_standard_quantizer_moves_its_scale() -> None:
    made = layer(Int8WeightPerChannelFloat)
    before = made.quant_weight().scale
    made.weight.data.div_(2)
    assert torch.equal(made.quant_weight().scale, before / 2)


def test_gptq_mode_sees_a_hidden_layer_at_the_first_step_only() -> None:
    """Why there is a mode of our own: at t = 0 hidden layers of a spiking network are silent, so H = 0."""
    quantizer = weight_quantizer("int8")
    torch.manual_seed(0)
    model = norse.SequentialState(
        *(qnn.QuantLinear(6, 5, weight_quant=quantizer), norse.LIFBoxCell(BOX)),
        *(qnn.QuantLinear(5, 4, weight_quant=quantizer), norse.LIFBoxCell(BOX)),
    )
    model[0].weight.data.mul_(4)
    x = (torch.rand(8, 3, 6) < 0.5).float()
    model(x[0])
    other = copy.deepcopy(model)
    with torch.no_grad(), gptq_mode(model) as mode:
        mode.model(x[0])
        assert list(mode.current_layer.layer_names) == ["0"] and mode.gpxq_layers["2"].nsamples == 0
        mode.update()
        mode.model(x[0])
        assert mode.gpxq_layers["2"].nsamples == 3 and not mode.gpxq_layers["2"].H.any()
    with sbc_mode(other) as ours:
        for _ in range(ours.num_layers):
            over_time(ours.model, x)
            ours.update()
    assert ours.solutions["2"].weight.any()


def test_an_interrupted_gptq_mode_leaves_its_hooks() -> None:
    model = nn.Sequential(layer())
    model(torch.rand(2, 6))
    with pytest.raises(ZeroDivisionError), gptq_mode(model):
        raise ZeroDivisionError
    assert model[0]._forward_pre_hooks


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_one_layer_has_the_integers_of_gptq_mode_on_the_same_hessian(dtype: torch.dtype) -> None:
    """Where time does not matter both are one algorithm; inputs are eighths, so that both sum the same Hessian."""
    if dtype == torch.float64 and "dtype" not in inspect.signature(gptq_mode).parameters:
        pytest.skip("Brevitas before 0.13 solves in float32 only")
    torch.manual_seed(0)
    convolution = {"weight_quant": weight_quantizer("int4"), "bias": False, "padding": 1}
    models = [nn.Sequential(qnn.QuantConv2d(6, 9, 3, **convolution)).to(dtype) for _ in range(2)]
    models[1][0].weight.data.copy_(models[0][0].weight)
    x = (8 * torch.rand(10, 6, 7, 7, dtype=dtype)).round() / 8
    for model, mode in zip(models, (gptq_mode, sbc_mode), strict=True):
        model[0].quant_weight()
        settings: dict[str, Any] = {"dtype": dtype} if mode is sbc_mode or dtype == torch.float64 else {}
        settings |= {"damping": 0.01} if mode is sbc_mode else {}
        with torch.no_grad(), mode(model, act_order=True, **settings) as entered:
            entered.model(x)
            entered.update()
    codes = [integers(model)["0"].codes for model in models]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(models[1][0].weight, models[0][0].weight)  # Brevitas leaves the errors in the float weight


def test_injectors_are_no_plain_classes() -> None:
    """A quantizer class is false in an ``if``, and some instances answer any ``getattr`` with an error of their own."""
    assert not weight_quantizer("int4")
