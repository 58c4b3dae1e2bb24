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

from integration_tests.models.networks import over_time
from integration_tests.models.onnx_running import run_steps, run_whole
from sbc_plugin import Calibration, Prune, Quantize, calibrate, compare, compress
from sbc_plugin.brevitas import export_onnx, freeze, integers, quantize_layers, sbc_mode, weight_quantizer
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid, make_grid
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


def by_mode(model: nn.Module, bits: int, run: Any = None, **settings: Any) -> tuple[nn.Module, sbc_mode]:
    """The model with quantised layers that sbc_mode has solved, all on the dense network's spikes."""
    new, left = quantize_layers(model, weight_quantizer(f"int{bits}"))
    assert not left
    with torch.no_grad(), sbc_mode(new, order="one-shot", **settings) as sbc:
        for _ in range(sbc.num_layers):
            sbc.model(X) if run is None else run(sbc.model, X)
            sbc.update()
    return new, sbc


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_sbc_mode_solves_a_cells_weights_together(cell: type[nn.Module], bits: int) -> None:
    """The integers are those of core on the Hessian of the inputs and of what the cell feeds back."""
    model = network(cell)
    names = weights(model[0])
    dense = {name: getattr(model[0], name).detach().clone() for name in names}
    hessian = LayerHessian(calibrate(model, [X])["0"].hessian())
    new, sbc = by_mode(model, bits)
    grids = [make_grid(weight, bits) for weight in dense.values()]
    scale = torch.cat([grid.scale.expand(w.shape) for grid, w in zip(grids, dense.values(), strict=True)], 1)
    grid = Grid(scale, torch.zeros_like(scale, dtype=torch.int32), bits, symmetric=True)
    wanted = gptq(torch.cat([*dense.values()], 1), hessian, grid)
    nearest = torch.cat([grid.round(weight) for grid, weight in zip(grids, dense.values(), strict=True)], 1)
    found = torch.cat([getattr(new[0], name).detach() for name in names], 1)
    assert torch.equal(found, wanted) and not torch.equal(found, nearest)
    assert list(sbc.solutions) == ["0", "1"] and not sbc.skipped
    for name in names:  # what Brevitas computes with where quantisation is off
        assert torch.equal(new[0].get_submodule(f"{name}_layer").weight_orig, dense[name])


@pytest.mark.parametrize("cell", CELLS)
def test_sbc_mode_and_compress_come_to_the_same_integers(cell: type[nn.Module]) -> None:
    """A mask lets sbc_mode choose the scales that compress chooses."""
    _, hosted, _ = both(cell)
    names = [f"0.{name}_layer" for name in weights(hosted[0])] + ["1"]
    model = network(cell)
    shapes = [getattr(model[0], name).shape for name in weights(model[0])] + [model[1].weight.shape]
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in zip(names, shapes, strict=True)}
    new, _ = by_mode(model, 4, mask=masks)
    for name in names:
        assert torch.equal(integers(new)[name].codes, integers(hosted)[name].codes), name
    assert torch.equal(output(new), output(hosted))


@pytest.mark.parametrize("cell", STEP)
def test_sbc_mode_takes_a_loop_over_time(cell: type[nn.Module]) -> None:
    driven, looped = by_mode(network(cell), 3)[0], by_mode(network(cell), 3, over_time)[0]
    for name in weights(driven[0]):
        assert torch.equal(getattr(driven[0], name), getattr(looped[0], name))


def test_sbc_mode_solves_what_is_quantised_of_a_cell() -> None:
    model = network(norse.LIFRecurrentCell)
    new, _ = quantize_layers(model, {"0.recurrent_weights": weight_quantizer("int3")})
    with torch.no_grad(), sbc_mode(new) as sbc:
        sbc.model(X)
        sbc.update()
    hessian = calibrate(model, [X])["0"].hessian()[5:, 5:]
    flat = model[0].recurrent_weights.detach()
    assert torch.equal(new[0].recurrent_weights, gptq(flat, LayerHessian(hessian), make_grid(flat, 3)))
    assert torch.equal(new[0].input_weights, model[0].input_weights) and not sbc.skipped


def test_sbc_mode_says_which_cell_never_ran() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.used, self.spare = network(norse.LIFRecurrentCell)[0], norse.LIFRecurrentCell(5, 4)

        def forward(self, x: Tensor, state: Any = None) -> Any:
            return self.used(x, state)

    new, _ = quantize_layers(Spare(), weight_quantizer("int4"))
    with torch.no_grad(), sbc_mode(new) as sbc:
        sbc.model(X)
        sbc.update()
    layers = {f"spare.{name}_layer" for name in ("input_weights", "recurrent_weights")}
    assert set(sbc.skipped) == layers and list(sbc.solutions) == ["used"]


def test_a_cell_that_is_the_whole_model_under_sbc_mode() -> None:
    new, sbc = by_mode(network(norse.LIFRecurrentCell)[0], 3)
    flat = network(norse.LIFRecurrentCell)[0].input_weights.detach()
    assert not sbc.skipped and len(sbc.solutions) == 1
    assert not torch.equal(new.input_weights, make_grid(flat, 3).round(flat))


def test_cells_go_in_the_group_that_names_their_layers() -> None:
    model = network(norse.LIFRecurrentCell)
    new, _ = quantize_layers(model, weight_quantizer("int4"))
    names = ["0.input_weights_layer", "0.recurrent_weights_layer", "1"]
    with torch.no_grad(), sbc_mode(new, group_of_parallel_layers=[names]) as sbc:
        assert sbc.num_layers == 1
        sbc.model(X)
        sbc.update()
    assert list(sbc.solutions) == ["0", "1"]


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell is not norse.LILinearCell])  # which does not spike
def test_the_back_end_of_a_cell_that_is_the_whole_model(cell: type[nn.Module]) -> None:
    settings: dict[str, Any] = {"quantize": Quantize(4), "calibration": Calibration(tuning=0), "progress": False}
    plain, _ = compress(network(cell)[0], [X], **settings)
    hosted, report = compress(network(cell)[0], [X], backend="brevitas", **settings)
    assert torch.equal(output(hosted), output(plain)) and not report.skipped
    assert set(integers(hosted)) == {"input_weights_layer", "recurrent_weights_layer"}
