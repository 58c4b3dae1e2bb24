"""Groups of columns that do not divide a layer: it stays in floating point, and the report says so."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import Tensor, nn

from sbc_plugin import Calibration, Prune, Quantize, compress, load, save
from sbc_plugin.errors import SettingsError

WITHOUT = Calibration(tuning=0)


def driven(model: nn.Module) -> nn.Module:
    """The model with weights that make every neuron spike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(4 if parameter.dim() > 1 else 1)
    return model


def linear() -> nn.Module:
    return SequentialState(
        nn.Linear(10, 16), LIFBoxCell(), nn.Linear(16, 12), LIFBoxCell(), nn.Linear(12, 8), LIFBoxCell()
    )


def convolution() -> nn.Module:
    return SequentialState(
        nn.Conv2d(2, 8, 3, padding=1), LIFBoxCell(), nn.Conv2d(8, 5, 1), LIFBoxCell(), nn.Flatten(), nn.Linear(80, 3)
    )


def recurrent() -> nn.Module:
    return SequentialState(norse.LIFRecurrentCell(10, 16), nn.Linear(16, 4), LIFBoxCell())


def recurrent_that_fits() -> nn.Module:
    return SequentialState(norse.LIFRecurrentCell(16, 8), nn.Linear(8, 6), LIFBoxCell(), nn.Linear(6, 3))


CASES: dict[str, tuple[Any, tuple[int, ...], set[str]]] = {
    "Linear": (linear, (10,), {"0", "4"}),
    "Conv2d": (convolution, (2, 4, 4), {"0"}),
    "a cell with weights, of which one does not fit": (recurrent, (10,), {"0"}),
    "a cell with weights that fit": (recurrent_that_fits, (16,), {"3"}),
}
SIZE = 8


def network(case: str) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    make, shape, _ = CASES[case]
    return driven(make()), [(torch.rand(10, 6, *shape) < 0.5).float()]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().flatten(1) for name, value in model.named_parameters() if value.dim() > 1}


def on_three_values(weight: Tensor) -> bool:
    """Whether each group of a row holds only -s, 0 and s."""
    groups = weight.unflatten(1, (-1, SIZE)).abs()
    return bool(((groups == 0) | (groups == groups.amax(-1, keepdim=True))).all())


@pytest.mark.parametrize("settings", [{}, {"prune": Prune(0.5)}, {"method": "rtn"}, {"prune": Prune(0.5, "block:2")}])
@pytest.mark.parametrize("case", CASES)
def test_layers_that_do_not_fit_keep_floats_and_the_others_are_on_the_grid(case: str, settings: dict[str, Any]) -> None:
    model, data = network(case)
    odd = CASES[case][2]
    quantize = Quantize(2, granularity=f"group:{SIZE}")
    small, report = compress(model, data, quantize=quantize, calibration=WITHOUT, progress=False, **settings)
    for layer in report.layers:
        assert layer.bits == (32 if layer.name in odd else 2)
        assert ("not quantised: granularity 'group:8'" in report.skipped.get(layer.name, "")) == (layer.name in odd)
    before = weights(model)
    for name, weight in weights(small).items():
        if name.split(".")[0] not in odd:
            assert on_three_values(weight) and not torch.equal(weight, before[name])
        elif not settings.get("prune"):
            assert torch.equal(weight, before[name])


@pytest.mark.parametrize("allocation", ["uniform", "loss"])
def test_bits_are_shared_by_the_layers_that_fit(allocation: str) -> None:
    model, data = network("Linear")
    quantize = Quantize(3, granularity=f"group:{SIZE}", allocation=allocation)
    small, report = compress(model, data, quantize=quantize, prune=Prune(0.3), progress=False)
    assert [layer.bits for layer in report.layers if layer.name != "2"] == [32, 32]
    fitting = next(layer for layer in report.layers if layer.name == "2")
    assert 2 <= fitting.bits <= 3
    assert (weights(small)["0.weight"] == 0).any()


def test_the_file_and_the_back_end_keep_the_floats(tmp_path: Any) -> None:
    model, data = network("Linear")
    quantize = Quantize(4, granularity=f"group:{SIZE}")
    small, report = compress(model, data, quantize=quantize, calibration=WITHOUT, progress=False)
    save(tmp_path / "small.safetensors", small, report)
    again, _ = load(tmp_path / "small.safetensors", network("Linear")[0])
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small.parameters(), strict=True))
    hosted, told = compress(
        model, data, quantize=quantize, calibration=WITHOUT, progress=False, backend="brevitas"
    )  # fmt: skip
    assert type(hosted[0]) is nn.Linear and torch.equal(hosted[0].weight, model[0].weight)
    assert type(hosted[2]).__name__ == "QuantLinear" and told.skipped == report.skipped
    assert torch.equal(hosted[2].quant_weight().value, small[2].weight)


@pytest.mark.parametrize("settings", [{}, {"prune": Prune(0.5)}, {"backend": "brevitas"}])
@pytest.mark.parametrize("case", ["Linear", "Conv2d"])
def test_groups_that_fit_no_layer_are_refused_before_the_work(case: str, settings: dict[str, Any]) -> None:
    model, data = network(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SettingsError, match=r"no layer of the model can be quantised.*7 does not divide"):
        compress(model, data, quantize=Quantize(4, granularity="group:7"), inplace=True, progress=False, **settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
