"""Cells with weights of their own, adaptive neurons, and models that take their axes otherwise, as ONNX files."""

from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas.nn")
pytest.importorskip("onnxruntime")

from integration_tests.models.networks import BOX, LI
from integration_tests.models.onnx_running import run_steps, run_whole
from sbc_plugin.brevitas import export_onnx, quantize_layers, weight_quantizer
from sbc_plugin.errors import CalibrationError, UnsupportedModelError
from sbc_plugin.norse import default_forward

T, B = 9, 4
ADAPTIVE = ["LSNN", "LIFEx", "LIFAdEx"]
RECURRENT = ["LIFRecurrent", "LIFRefracRecurrent", "LSNNRecurrent"]
CELLS = [*(f"{kind}Cell" for kind in ADAPTIVE + RECURRENT), *ADAPTIVE, *RECURRENT, "LILinearCell"]


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5).float()


def quantised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    small: nn.Module = quantize_layers(model, weight_quantizer("int4"))[0]
    return small


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("steps", [None, T])
def test_cells_of_norse_give_what_they_give(kind: str, steps: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with_weights = kind == "LILinearCell" or "Recurrent" in kind
    leaky = {"p": LI._replace(v_leak=torch.tensor(0.3))} if kind == "LILinearCell" else {}
    cell = getattr(norse, kind)(*((8, 5) if with_weights else ()), **leaky)
    model = quantised(norse.SequentialState(nn.Linear(6, 8), cell, nn.Linear(5 if with_weights else 8, 4)))
    x = spikes(T, B, 6)
    exported = export_onnx(model, tmp_path / "a.onnx", x[:, :2], steps=steps)
    with torch.no_grad():
        expected = default_forward(model, x)(model, x)
    found = (run_steps if steps is None else run_whole)(exported, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.5
    assert not exported.floats  # weights of a cell too are quantised


class Looped(nn.Module):
    """Two layers that loop over time; subclasses say which axis that is."""

    def __init__(self, inputs: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif, self.fc2 = nn.Linear(inputs, 8), norse.LIFBoxCell(BOX), nn.Linear(8, 3)

    def loop(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            z, state = self.lif(self.fc1(step), state)
            outputs.append(self.fc2(z))
        return torch.stack(outputs)


class BatchFirst(Looped):
    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x.transpose(0, 1)).transpose(0, 1)


class BatchFirstSum(Looped):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.loop(x.transpose(0, 1)).sum(0), "and something that is no tensor"


class Still(Looped):
    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x.expand(6, *x.shape)).mean(0)


class BackwardAxes(Looped):
    """Norms as they are written for channels in the middle: axes counted from the back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.movedim(-1, -2).movedim(-2, -1).movedim(-1, 1).moveaxis(1, -1))
        x = x.unflatten(-1, (2, 3)).permute(0, -1, 1, -2).permute(0, -2, -1, 1).flatten(-2)
        return self.loop(x.movedim((-1, 0), (0, -1)).movedim(-1, 0).transpose(-1, -2))


MODELS: dict[type[Looped], Tensor] = {
    BatchFirst: spikes(B, T, 6),
    BatchFirstSum: spikes(B, T, 6),
    Still: spikes(B, 6),  # as many features as it takes steps
    BackwardAxes: spikes(T, B, 6),
}


@pytest.mark.parametrize("kind", MODELS)
def test_axes_are_those_of_the_model(kind: Any, tmp_path: Path) -> None:
    model, x = quantised(kind()), MODELS[kind]
    batch_axis = 1 if kind is BackwardAxes else 0
    exported = export_onnx(model, tmp_path / "a.onnx", x.narrow(batch_axis, 0, 2), steps=1 if kind is Still else T)
    with torch.no_grad():
        expected = model(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    found = run_whole(exported, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.1


def test_steps_are_cut_from_the_axis_of_time(tmp_path: Path) -> None:
    model, x = quantised(BatchFirst()), spikes(B, T, 6)
    exported = export_onnx(model, tmp_path / "a.onnx", x, steps=5)
    with torch.no_grad():
        torch.testing.assert_close(run_whole(exported, x[:, :5]), model(x[:, :5]), rtol=1e-5, atol=1e-4)
    with pytest.raises(CalibrationError, match=f"has {T} steps, the file shall have {T + 1}"):
        export_onnx(model, tmp_path / "a.onnx", x, steps=T + 1)


class Feedback(nn.Module):
    """One step, whose state is a list that holds the spikes themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.back = nn.Linear(6, 5), norse.LIFBoxCell(BOX), nn.Linear(5, 5)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        before, spikes = (None, x.new_zeros(x.shape[0], 5)) if state is None else state
        spikes, after = self.lif(self.fc(x) + self.back(spikes), before)
        return spikes, [after, spikes]


def test_states_that_no_neuron_holds_have_names(tmp_path: Path) -> None:
    model, x = quantised(Feedback()), spikes(T, B, 6)
    exported = export_onnx(model, tmp_path / "a.onnx", x[:, :2])
    assert list(exported.states) == ["lif.v", "state.1"]
    with torch.no_grad():
        torch.testing.assert_close(run_steps(exported, x), default_forward(model, x)(model, x))


class FixedNumber(Looped):
    """Takes B sequences and no other number of them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x + torch.zeros(1, B, 6))


class Answers(Looped):
    """Answers with a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.loop(x)}


def test_what_a_model_cannot_do_is_told_with_the_way_out(tmp_path: Path) -> None:
    model, x = quantised(FixedNumber()), spikes(T, B, 6)
    with pytest.raises(UnsupportedModelError, match=r"twice as many sequences.*give free_batch=False"):
        export_onnx(model, tmp_path / "a.onnx", x, steps=T)
    exported = export_onnx(model, tmp_path / "a.onnx", x, steps=T, free_batch=False)
    with torch.no_grad():
        torch.testing.assert_close(run_whole(exported, x), model(x), rtol=1e-5, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match=r"Answers answers with a dict.*wrap the model"):
        export_onnx(quantised(Answers()), tmp_path / "b.onnx", x, steps=T)
