"""What cannot be exported is refused by name, and neither the model nor a file that was there is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas.nn")
pytest.importorskip("onnxruntime")

from integration_tests.models.networks import BOX
from integration_tests.models.one_shot import compress
from sbc_plugin import Quantize
from sbc_plugin.brevitas import export, export_onnx, freeze, integers, quantize_layers, weight_quantizer
from sbc_plugin.brevitas.onnx_trace import Summing
from sbc_plugin.errors import CalibrationError, CheckpointError, SettingsError, UnsupportedModelError

X = (torch.rand(6, 3, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def quantised(neuron: nn.Module | None = None, granularity: str = "channel") -> nn.Module:
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(8, 8), neuron or norse.LIFBoxCell(BOX))
    found: nn.Module = quantize_layers(model, weight_quantizer("int4", granularity))[0]
    return found


def pooling(**settings: Any) -> nn.Module:
    sums = nn.AvgPool2d(2, divisor_override=1, **settings)
    model = norse.SequentialState(
        nn.Unflatten(1, (1, 2, 4)), sums, nn.Flatten(), nn.Linear(2, 2), norse.LIFBoxCell(BOX)
    )
    found: nn.Module = quantize_layers(model, weight_quantizer("int4"))[0]
    return found


class OwnCell(norse.LIFBoxCell):
    """Somebody's own neuron, whose step may hold anything."""


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "kind": (quantised, {"kind": "tflite"}, SettingsError, "kind='tflite'"),
    "steps": (quantised, {"steps": 0}, SettingsError, "steps=0"),
    "opset": (quantised, {"opset": 3}, SettingsError, "opset=3"),
    "short": (quantised, {"steps": 7}, CalibrationError, "7"),
    "plain": (lambda: freeze(quantised()), {}, UnsupportedModelError, "brevitas"),
    "groups": (lambda: quantised(granularity="group:4"), {}, UnsupportedModelError, "group"),
    "double": (lambda: quantised().double(), {}, UnsupportedModelError, "float64"),
    "ceil": (lambda: pooling(ceil_mode=True), {}, UnsupportedModelError, "ceil_mode"),
    "neuron": (lambda: quantised(OwnCell(BOX)), {}, UnsupportedModelError, "layer '1': OwnCell is not known to export"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_exported_is_named_and_nothing_changes(case: str, tmp_path: Path) -> None:
    build, settings, kind, told = CASES[case]
    model, target = build().train(), tmp_path / "model.onnx"
    target.write_bytes(b"what was there")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = X.double() if case == "double" else X
    with pytest.raises(kind, match=f"(?i){told}"):
        export_onnx(model, target, x, **settings)
    assert target.read_bytes() == b"what was there" and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(SettingsError, match=r"needs onnxruntime; pip install 'sbc-plugin\[onnx\]'"):
        export_onnx(quantised(), tmp_path / "model.onnx", X)


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no folder"):
        export_onnx(quantised(), tmp_path / "nowhere" / "model.onnx", X)


def test_freezing_keeps_every_value_and_integers_give_them() -> None:
    model = norse.SequentialState(nn.Linear(8, 8), norse.LIFBoxCell(BOX))
    with torch.no_grad():
        model[0].weight *= 5
    small, _ = compress(model, [X], quantize=Quantize(4), backend="brevitas")
    plain = freeze(small)
    assert type(plain[0]) is nn.Linear and type(small[0]) is not nn.Linear
    value: Tensor = small[0].quant_weight().value
    assert torch.equal(plain[0].weight, value) and torch.equal(plain[0].bias, small[0].bias)
    (found,) = integers(small).values()
    assert found.codes.dtype == torch.int8 and int(found.codes.abs().max()) <= 7
    assert torch.equal(found.codes.flatten(1) * found.scale.float().reshape(-1, 1), value)


def test_a_sum_over_windows_is_no_average() -> None:
    pool = nn.AvgPool2d(3, 2, padding=1, divisor_override=1)
    x = torch.randint(0, 5, (2, 3, 6, 7)).float()
    assert torch.equal(Summing(pool)(x), pool(x))  # small numbers: exact, though divided by 9 in between
