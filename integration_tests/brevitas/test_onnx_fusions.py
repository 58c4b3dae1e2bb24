"""Brevitas' QCDQ files give the model's answers; onnxruntime's fused integer kernels round otherwise, with any mode."""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

qnn: Any = pytest.importorskip("brevitas.nn")
onnxruntime: Any = pytest.importorskip("onnxruntime")
ptq: Any = pytest.importorskip("brevitas_examples.imagenet_classification.ptq.ptq_common")

from brevitas.export import export_onnx_qcdq  # noqa: E402
from brevitas.graph.gptq import gptq_mode  # noqa: E402
from brevitas.quant import Int8ActPerTensorFloat  # noqa: E402

from integration_tests.models.image_ptq import OPTIONS, prepared, quantised_model  # noqa: E402
from integration_tests.models.small_cnn import random_cnn  # noqa: E402
from sbc_plugin.brevitas import export_onnx, quantize_layers, sbc_mode, weight_quantizer  # noqa: E402

UNFUSED = "session.disable_quant_qdq"  # the runtime's own switch
INT4 = weight_quantizer("int4")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def images(count: int = 64, channels: int = 1, seed: int = 1) -> Tensor:
    x = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x + 0.5 * x.roll(1, -1)


def answers(path: Path, x: Tensor) -> list[Tensor]:
    """Of onnxruntime as it is, and without its integer kernels."""
    found = []
    for setting in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry(UNFUSED, setting)
        session = onnxruntime.InferenceSession(path, options)
        found.append(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]))
    return found


def written(model: nn.Module, x: Tensor, path: Path) -> Path:
    export_onnx_qcdq(copy.deepcopy(model).eval(), args=(x,), export_path=str(path), opset_version=17, dynamo=False)
    return path


@pytest.mark.skipif("dtype" not in inspect.signature(gptq_mode).parameters, reason="the example of Brevitas 0.13")
@pytest.mark.parametrize("mode", [None, gptq_mode, sbc_mode], ids=["rounding", "gptq_mode", "sbc_mode"])
@pytest.mark.parametrize("options", ["W4A8", "narrow, bias as it is"])
def test_files_of_a_plain_cnn_say_what_the_model_says(
    mode: Any, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the fused kernels codes differ by a step here and there, which is some steps of the quantised output."""
    monkeypatch.setattr(ptq, "tqdm", lambda steps: steps)
    dense = random_cnn()
    dense.pool = nn.AvgPool2d(2, 1)  # the adaptive one has no ONNX for these sizes
    torch.manual_seed(2)
    loader = [(images(32, seed=seed), torch.zeros(32)) for seed in (2, 3)]
    model = quantised_model(prepared(dense, "fx", loader[0][0][:1]), "fx", loader, **OPTIONS[options])
    if mode is not None:
        monkeypatch.setattr(ptq, "gptq_mode", mode)
        ptq.apply_gptq(loader, model, act_order=True, use_quant_activations=True)
    x = images()
    with torch.no_grad():
        expected = model.eval()(x)
    fused, unfused = answers(written(model, x, tmp_path / "a.onnx"), x)
    step = float(
        next(module for name, module in model.named_modules() if name == "last_output_quant").act_quant.scale()
    )
    torch.testing.assert_close(unfused, expected, rtol=0, atol=1e-3 * step)
    steps = (fused - expected) / step
    assert float((steps - steps.round()).abs().max()) < 1e-3 and float(steps.abs().max()) < 5


def test_the_fused_kernel_rounds_a_float_bias_to_the_unit_of_the_sum(tmp_path: Path) -> None:
    """A layer's codes by integer arithmetic in float64, with its bias as it is and in whole units of the sum."""
    torch.manual_seed(0)
    quantizers = {"input_quant": Int8ActPerTensorFloat, "output_quant": Int8ActPerTensorFloat, "weight_quant": INT4}
    layer = qnn.QuantConv2d(3, 8, 3, padding=1, return_quant_tensor=False, **quantizers)
    x = images(channels=3)
    for _ in range(40):
        layer(x)
    layer.eval()
    with torch.no_grad():
        expected = layer(x).double()
        weight = layer.quant_weight()
        ours, theirs = layer.input_quant.scale().double(), layer.output_quant.scale().double()
        unit = ours * weight.scale.double().flatten()  # of the integer sum
        codes = (x.double() / ours).round().clamp(-128, 127)
        sums = nn.functional.conv2d(codes, weight.int().double(), padding=1)
        bias = layer.bias.double() / unit

        def rounded(bias: Tensor) -> Tensor:
            """The output's codes."""
            return ((sums + bias[:, None, None]) * (unit / theirs)[:, None, None]).round().clamp(-128, 127)

    fused, unfused = ((value.double() / theirs).round() for value in answers(written(layer, x, tmp_path / "a.onnx"), x))
    assert torch.equal(unfused, (expected / theirs).round()) and torch.equal(unfused, rounded(bias))
    assert torch.equal(fused, unfused) or torch.equal(fused, rounded(bias.round()))  # not every processor fuses


def test_a_spiking_model_with_layers_that_are_fused_is_written_and_told(tmp_path: Path) -> None:
    """What the fused kernels change is no fault of the file; how to run it without them is said."""
    torch.manual_seed(1)
    first, second, last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(144, 5)
    second.weight.data *= 30
    last.weight.data *= 30
    net = norse.SequentialState(first, second, norse.LIFBoxCell(), nn.Flatten(), last, norse.LICell())
    x = 3 * torch.randn(6, 40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    model, _ = quantize_layers(net.eval(), INT4, input_quant=Int8ActPerTensorFloat, calibration_data=[x])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exported = export_onnx(model.eval(), tmp_path / "a.onnx", x, steps=6)
    with torch.no_grad():
        expected = norse.Lift(model)(x)[0]
    fused, unfused = answers(exported.path, x)
    assert expected.any()
    torch.testing.assert_close(unfused, expected, rtol=1e-5, atol=1e-6)
    differ = not torch.allclose(fused, expected, rtol=1e-3, atol=1e-3)  # not every processor fuses
    assert any(UNFUSED in str(each.message) for each in told) == differ
