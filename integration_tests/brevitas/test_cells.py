"""Cells that hold weights of their own: quantised by Brevitas, with the bits of the plain cell, and exported."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch import SequentialState
from torch import Tensor, nn

from integration_tests.models.onnx_running import run_steps, run_whole
from sbc_plugin import Calibration, Prune, Quantize, compare, compress
from sbc_plugin.brevitas import export_onnx, freeze, integers, quantize_layers, weight_quantizer
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.norse import default_forward

STEP = (
    norse.LIFRecurrentCell,
    norse.LIFRefracRecurrentCell,
    norse.LSNNRecurrentCell,
    norse.LILinearCell,
)
WHOLE = (norse.LIFRecurrent, norse.LIFRefracRecurrent, norse.LSNNRecurrent)
CELLS = STEP + WHOLE
X = (torch.rand(30, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def network(cell: Callable[[int, int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    last = norse.LIF() if cell in WHOLE else norse.LIFBoxCell()
    model = SequentialState(cell(5, 8), nn.Linear(8, 3, bias=False), last)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(3 if len(parameter) > 3 else 30)
        if hasattr(model[0], "recurrent_weights"):
            model[0].recurrent_weights.mul_(-0.3)
    return model


def output(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        found: Tensor = default_forward(model, x)(model, x)
    return found


def both(cell: Callable[[int, int], nn.Module], **settings: Any) -> tuple[nn.Module, nn.Module, Any]:
    """The compressed model, plain and of Brevitas' layers, and the latter's report."""
    given: dict[str, Any] = {
        "quantize": Quantize(4),
        "calibration": Calibration(tuning=0),
        "progress": False,
    } | settings
    plain, _ = compress(network(cell), [X], **given)
    hosted, report = compress(network(cell), [X], backend="brevitas", **given)
    return plain, hosted, report


def weights(cell: nn.Module) -> list[str]:
    return [name for name in ("input_weights", "recurrent_weights") if hasattr(cell, name)]


@pytest.mark.parametrize("settings", [{}, {"prune": Prune(0.5)}, {"quantize": Quantize(3, scale="power_of_two")}])
@pytest.mark.parametrize("cell", CELLS)
def test_the_back_end_answers_in_the_same_bits(cell: type[nn.Module], settings: dict[str, Any]) -> None:
    plain, hosted, report = both(cell, **settings)
    assert torch.equal(output(hosted), output(plain)) and output(plain).any()
    assert isinstance(hosted[0], cell) and not any("weights" in name for name in report.skipped)
    stored = integers(hosted)
    for name in weights(plain[0]):
        assert torch.equal(getattr(hosted[0], name), getattr(plain[0], name))
        entry = stored[f"0.{name}_layer"]
        values = entry.codes.double() * entry.scale[:, None]
        torch.testing.assert_close(values, getattr(plain[0], name).double(), rtol=1e-6, atol=0)
    assert compare(plain, hosted, [X]).distance == 0
    assert compare(plain, hosted, [X]).compressed.packed_bytes == compare(plain, plain, [X]).compressed.packed_bytes


@pytest.mark.parametrize("form", ["one step", "whole"])
@pytest.mark.parametrize("cell", CELLS)
def test_onnxruntime_answers_as_the_plain_model(cell: type[nn.Module], form: str, tmp_path: Path) -> None:
    plain, hosted, _ = both(cell, quantize=Quantize(4, scale="power_of_two"))
    exported = export_onnx(hosted, tmp_path / "a.onnx", X, steps=None if form == "one step" else len(X))
    found = (run_steps if form == "one step" else run_whole)(exported, X)
    wanted = output(plain)
    assert 0 < wanted.mean() < 1 and not exported.floats
    assert (found != wanted).double().mean() < 0.01  # sums of a state and a current may round otherwise
    if form == "one step":
        assert sum(name.startswith("0.") for name in exported.states) >= 2


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_cells_are_the_hosts_own_again(cell: type[nn.Module]) -> None:
    plain, hosted, _ = both(cell)
    frozen = freeze(hosted)
    assert type(frozen[0]) is cell and not any("brevitas" in type(m).__module__ for m in frozen.modules())
    assert all(isinstance(frozen[0]._parameters[name], nn.Parameter) for name in weights(plain[0]))
    assert torch.equal(output(frozen), output(plain))
    assert torch.equal(output(copy.deepcopy(hosted)), output(plain))


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_is_the_whole_model(cell: type[nn.Module]) -> None:
    model = network(cell)[0]
    new, left = quantize_layers(model, weight_quantizer("int8"))
    assert not left and type(model) is cell and isinstance(new, cell)
    x = X if cell in WHOLE else X[0]
    with torch.no_grad():
        torch.testing.assert_close(new(x)[0], freeze(new)(x)[0], rtol=0, atol=0)


def test_gradients_reach_the_weights_and_states_are_the_models() -> None:
    new, _ = quantize_layers(network(norse.LIFRecurrentCell), weight_quantizer("int4"))
    found, state = new(X[0])
    found, _ = new(X[1], state)
    found.sum().backward()
    assert new[0].input_weights_layer.weight.grad.abs().sum() > 0
    assert type(state[0]) is type(network(norse.LIFRecurrentCell)(X[0])[1][0])


def test_a_quantised_cell_is_not_compressed_again() -> None:
    new, _ = quantize_layers(network(norse.LIFRecurrentCell), weight_quantizer("int4"))
    before = output(new)
    with pytest.raises(UnsupportedModelError, match=r"0\.input_weights.*computed"):
        compress(new, [X], prune=Prune(0.5), progress=False, inplace=True)
    assert torch.equal(output(new), before)


def test_weights_that_two_cells_share_are_left_out_and_told() -> None:
    model = SequentialState(norse.LIFRecurrentCell(5, 5), norse.LIFRecurrentCell(5, 5), nn.Linear(5, 2))
    model[1].input_weights = model[0].input_weights
    new, left = quantize_layers(model, weight_quantizer("int4"))
    assert {"0.input_weights", "1.input_weights"} <= set(left) and "shares its weight" in left["0.input_weights"]
    assert type(new[0]) is norse.LIFRecurrentCell


def test_a_plain_cell_is_exported_with_floats(tmp_path: Path) -> None:
    new, _ = quantize_layers(network(norse.LIFRecurrentCell), {"1": weight_quantizer("int4")})
    exported = export_onnx(new, tmp_path / "a.onnx", X)
    assert set(exported.floats) == {"0.input_weights", "0.recurrent_weights"}
    some, _ = quantize_layers(network(norse.LIFRecurrentCell), {"0.recurrent_weights": weight_quantizer("int4")})
    assert set(export_onnx(some, tmp_path / "b.onnx", X).floats) == {"0.input_weights", "1"}
