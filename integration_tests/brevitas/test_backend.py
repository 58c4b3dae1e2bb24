"""``compress(..., backend="brevitas")``: the same integers, scales and spikes as the plain result."""

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("brevitas.nn")

from integration_tests.models.cases import CASES
from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin.brevitas import backend
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import GridMovedError, SettingsError, UnsupportedModelError

GROUPED = {
    "step": "group:1",
    "conv": "channel",
    "loop, sum": "group:1",
    "NIR graph": "group:1",
    "own recurrence": "group:1",
}


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> dict[str, Grid]:
    """Core's grids, as they are handed over."""
    import sbc_plugin.brevitas as adapter

    seen: dict[str, Grid] = {}
    original = adapter.into_backend

    def watched(model: Any, layers: Any, quantize: Any, grids: Any) -> Any:
        seen.update(grids)
        return original(model, layers, quantize, grids)

    monkeypatch.setattr(adapter, "into_backend", watched)
    return seen


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("scale", ["mse", "power_of_two"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_those_of_core(name: str, granularity: str, scale: str, bits: int, grids: dict[str, Grid]) -> None:
    case = CASES[name]
    model, data = case.model(), [case.batch()]
    quantize = Quantize(bits, GROUPED[name] if granularity == "group" else granularity, scale)
    plain, report = compress(model, data, quantize=quantize)
    new, same = compress(model, data, quantize=quantize, backend="brevitas")
    assert [layer.loss for layer in same.layers] == [layer.loss for layer in report.layers]
    found = {part: module for part, module in new.named_modules() if hasattr(module, "quant_weight")}
    assert sorted(found) == sorted(part for layer in report.layers for part in layer.name.split(" + "))
    for joint, grid in grids.items():
        parts = [found[part] for part in joint.split(" + ")]
        weight = torch.cat([plain.get_submodule(part).weight.detach().flatten(1) for part in joint.split(" + ")], 1)
        values = [part.quant_weight() for part in parts]
        assert torch.equal(torch.cat([v.value.detach().flatten(1) for v in values], 1), weight)
        assert torch.equal(torch.cat([v.int().flatten(1) for v in values], 1).int(), grid.codes(weight))
        scales = [v.scale.expand(p.weight.shape).flatten(1) for v, p in zip(values, parts, strict=True)]
        assert torch.equal(torch.cat(scales, 1), grid.of_columns(weight.shape[1])[0].expand_as(weight))
    assert torch.equal(case.output(new, case.batch(seed=7)), case.output(plain, case.batch(seed=7)))


@pytest.mark.parametrize("method", ["sbc", "rtn"])
@pytest.mark.parametrize("order", ["one-shot", "sequential"])
def test_pruned_weights_are_zero_in_every_method_and_order(method: str, order: str) -> None:
    case = CASES["step"]
    settings: dict[str, Any] = {"method": method, "prune": Prune(0.5), "quantize": Quantize(4)}
    settings["calibration"] = Calibration(order=order)
    plain, report = compress(case.model(), [case.batch()], **settings)
    new, _ = compress(case.model(), [case.batch()], **settings, backend="brevitas")
    for layer in report.layers:
        value = new.get_submodule(layer.name).quant_weight().value
        assert torch.equal(value, plain.get_submodule(layer.name).weight) and int((value == 0).sum()) > 0


def test_weights_of_cells_are_on_the_grid_and_named() -> None:
    case = CASES["LIFRecurrentCell"]
    plain, _ = compress(case.model(), [case.batch()], quantize=Quantize(4))
    new, report = compress(case.model(), [case.batch()], quantize=Quantize(4), backend="brevitas")
    assert "0.input_weights" not in report.skipped and type(new[0]).__name__ == "QuantLIFRecurrentCell"
    assert int(new[0].input_weights_layer.quant_weight().bit_width) == 4
    assert torch.equal(new[0].recurrent_weights, plain[0].recurrent_weights)
    assert torch.equal(case.output(new, case.batch(seed=7)), case.output(plain, case.batch(seed=7)))


def test_inplace_changes_the_model_itself() -> None:
    case = CASES["step"]
    model = case.model()
    new, _ = compress(model, [case.batch()], quantize=Quantize(4), backend="brevitas", inplace=True)
    assert new is model and hasattr(model[0], "quant_weight")


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"quantize": Quantize(4), "backend": "onnx"}, SettingsError, "use one of 'brevitas'"),
        ({"prune": Prune(0.5), "backend": "brevitas"}, SettingsError, "quantize=Quantize"),
        ({"quantize": Quantize(4, symmetric=False), "backend": "brevitas"}, SettingsError, "symmetric"),
        ({"quantize": Quantize(4, "group:3"), "backend": "brevitas"}, SettingsError, "kernel position"),
    ],
)
def test_what_brevitas_cannot_hold_is_refused_before_anything_changes(
    settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = CASES["conv"].model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=match):
        compress(model, [CASES["conv"].batch()], inplace=True, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(hasattr(module, "quant_weight") for module in model.modules())


def test_a_model_without_any_layer_for_brevitas() -> None:
    case = CASES["LSNNRecurrentCell"]
    model = case.model()
    for cell in model.modules():
        for name in [name for name in cell._parameters if name.endswith("_weights")]:
            tensor = cell._parameters.pop(name).detach()  # Norse's cells also take plain tensors
            setattr(cell, name, tensor)
    with pytest.raises(UnsupportedModelError, match="no weight of the model"):
        compress(model, [case.batch()], quantize=Quantize(4), backend="brevitas")


def test_a_library_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> nn.Module:
        raise ModuleNotFoundError("No module named 'brevitas'", name="brevitas")

    monkeypatch.setattr("sbc_plugin.compression.backends.import_module", missing)
    with pytest.raises(SettingsError, match=r"pip install 'sbc-plugin\[brevitas\]'"):
        compress(CASES["step"].model(), [CASES["step"].batch()], quantize=Quantize(4), backend="brevitas")


@pytest.mark.parametrize("obstacle", ["a hook on the only layer", "a grid that moves", "an interruption"])
@pytest.mark.parametrize("align", [False, True])
def test_in_place_and_with_a_back_end_it_is_all_or_nothing(
    obstacle: str, align: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["conv"]
    model = case.model()
    if obstacle == "a hook on the only layer":
        case = CASES["step"]
        model = case.model()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: None)
        error: type[BaseException] = UnsupportedModelError
    else:
        error = GridMovedError if obstacle == "a grid that moves" else KeyboardInterrupt
        calls = []

        def failing(module: Any, *rest: Any) -> Any:
            calls.append(module)
            if len(calls) == 2:
                raise error("the second layer fails")
            return original(module, *rest)

        original = backend.write
        monkeypatch.setattr(backend, "write", failing)
    modules = dict(model.named_modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error):
        compress(
            model, [case.batch()], quantize=Quantize(2), backend="brevitas", inplace=True, forward=case.forward,
            calibration=Calibration(tuning=0, align=align),
        )  # fmt: skip
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
