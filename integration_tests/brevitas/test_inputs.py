"""Input quantizers for layers that get numbers, not spikes."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

qnn = pytest.importorskip("brevitas.nn")
from brevitas.graph.calibrate import calibration_mode  # noqa: E402
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat  # noqa: E402

from integration_tests.models.networks import BOX, over_time  # noqa: E402
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer  # noqa: E402
from sbc_plugin.errors import CalibrationError, SettingsError  # noqa: E402

INT4 = weight_quantizer("int4")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = norse.SequentialState(
        nn.Conv2d(2, 4, 3), norse.LIFBoxCell(BOX), nn.Flatten(), nn.Linear(64, 5), norse.LIFBoxCell(BOX)
    ).eval()
    for weight in model.parameters():
        weight.data.mul_(4)
    return model


def images(seed: int = 0) -> Tensor:
    """Analogue input (T, B, 2, 6, 6) that is silent at first."""
    x = torch.randn(7, 3, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    x[0] = 0
    return x


def test_only_the_layer_that_gets_numbers_has_an_input_quantizer() -> None:
    model, x = network(), images()
    new, skipped = quantize_layers(model, INT4, input_quant=Int8ActPerTensorFloat, calibration_data=[x, images(1)])
    assert new[0].input_quant.is_quant_enabled and not new[3].input_quant.is_quant_enabled
    assert skipped == {"3.input": "binary, so it needs no quantizer"}
    # the mean over batches of the largest magnitude (99.999 %), at 128 levels; Brevitas interpolates the percentile
    largest = torch.stack([x.abs().max(), images(1).abs().max()]).mean()
    scale = new[0].input_quant.scale()
    torch.testing.assert_close(scale.detach(), largest / 128, rtol=1e-2, atol=0)
    plain, _ = quantize_layers(model, INT4)
    step = x[2]
    rounded = (step / scale).round().clamp(-128, 127) * scale
    with torch.no_grad():
        torch.testing.assert_close(new[0](step), plain[0](rounded))
        assert not torch.equal(new[0](step), plain[0](step))
        assert over_time(new, x).unique().tolist() == [0.0, 1.0]
    assert not new.training and all(not m.training for m in new.modules())


def test_spikes_alone_change_nothing() -> None:
    model, x = network(), (images() > 0).float()
    new, skipped = quantize_layers(model, INT4, input_quant=Uint8ActPerTensorFloat, calibration_data=[x])
    plain, none = quantize_layers(model, INT4)
    assert set(skipped) == {"0.input", "3.input"} and none == {}
    with torch.no_grad():
        assert torch.equal(over_time(new, x), over_time(plain, x))


def test_a_plain_network_and_a_layer_that_never_runs() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x)
            return out

    data: list[Any] = [(torch.randn(9, 4), 0)]
    new, skipped = quantize_layers(Branches(), INT4, input_quant=Int8ActPerTensorFloat, calibration_data=data)
    assert new.a.input_quant.is_quant_enabled
    assert skipped == {"b.input": "never ran on the calibration data"}


def test_sbc_mode_goes_on_with_it() -> None:
    x = images()
    new, _ = quantize_layers(network(), INT4, input_quant=Int8ActPerTensorFloat, calibration_data=[x])
    scale = new[0].input_quant.scale().clone()
    with torch.no_grad(), sbc_mode(new) as sbc:
        for _ in range(sbc.num_layers):
            sbc.model(x)
            sbc.update()
    assert set(sbc.solutions) == {"0", "3"} and torch.equal(new[0].input_quant.scale(), scale)


def test_what_cannot_be_is_refused_before_anything_changes() -> None:
    model = network()
    before = list(model.modules())
    for error, match, settings in (
        (SettingsError, "give calibration_data", {}),
        (CalibrationError, "no batch", {"calibration_data": []}),
        (CalibrationError, "NaN or infinity", {"calibration_data": [images() / 0]}),
    ):
        with pytest.raises(error, match=match):
            quantize_layers(model, INT4, inplace=True, input_quant=Int8ActPerTensorFloat, **settings)
    with pytest.raises(SettingsError, match="input_quant='int8' is no quantizer class"):
        quantize_layers(model, INT4, inplace=True, input_quant="int8", calibration_data=[images()])  # type: ignore[arg-type]
    assert list(model.modules()) == before and not any(m._forward_pre_hooks for m in before)


def test_contract_calibration_mode_averages_over_calls_and_fixes_the_scale() -> None:
    """Steps are given in one call a batch, for Brevitas takes the mean of what each call's percentile was."""
    layer = qnn.QuantLinear(1, 1, input_quant=Int8ActPerTensorFloat, bias_quant=None, return_quant_tensor=False).eval()
    with torch.no_grad(), calibration_mode(layer):
        layer(torch.tensor([[3.0]])), layer(torch.tensor([[1.0]]))
    torch.testing.assert_close(layer.input_quant.scale().item(), 2.0 / 128, rtol=1e-6, atol=0)
    layer(torch.tensor([[9.0]]))
    torch.testing.assert_close(layer.input_quant.scale().item(), 2.0 / 128, rtol=1e-6, atol=0)
