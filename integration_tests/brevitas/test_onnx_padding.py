"""What ONNX has words for and runtimes refuse: padding by name beside dilation; neurons with adapting thresholds."""

from collections.abc import Callable
from pathlib import Path

import norse.torch as norse
import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import Tensor, nn

from integration_tests.models.onnx_running import run_steps, run_whole
from sbc_plugin import Calibration, Quantize, compress
from sbc_plugin.brevitas import export_onnx
from sbc_plugin.norse import default_forward

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
EXACT = Quantize(4, scale="power_of_two")  # with spikes and without bias every sum is exact


def both(model: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """The compressed model, plain and of Brevitas' layers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(12 if parameter.dim() > 2 else 3)
    plain, hosted = (
        compress(model, [x], quantize=EXACT, calibration=Calibration(tuning=0), progress=False, backend=backend)[0]
        for backend in (None, "brevitas")
    )
    return plain, hosted


def expected(plain: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = default_forward(plain, x)(plain, x)
    return output


@pytest.mark.parametrize("form", ["one step", "whole"])
@pytest.mark.parametrize(
    ("axes", "size", "dilation"),
    [(1, 3, 2), (1, 2, 3), (2, 3, 2), (2, (2, 3), (1, 2)), (2, (4, 2), 3), (2, 2, 1), (3, 3, 2), (3, (1, 2, 3), 2)],
)
def test_padding_same_with_dilation_runs_in_onnxruntime(
    axes: int, size: int | tuple[int, ...], dilation: int | tuple[int, ...], form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[axes](2, 3, size, padding="same", dilation=dilation, bias=False)
    x = (torch.rand(5, 3, 2, *[6, 7, 5][:axes]) < 0.4).float()
    plain, hosted = both(SequentialState(conv, LIFBoxCell()), x)
    exported = export_onnx(hosted, tmp_path / "a.onnx", x, steps=None if form == "one step" else len(x))
    found = (run_steps if form == "one step" else run_whole)(exported, x)
    wanted = expected(plain, x)
    assert 0 < wanted.mean() < 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert hosted[0].padding == "same" and not hosted[0]._forward_pre_hooks


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_ways_of_padding_stay_as_they_are(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding="same", dilation=2, padding_mode=mode, bias=False)
    x = (torch.rand(5, 3, 2, 6, 6) < 0.4).float()
    plain, hosted = both(SequentialState(conv, LIFBoxCell()), x)
    exported = export_onnx(hosted, tmp_path / "a.onnx", x)
    torch.testing.assert_close(run_steps(exported, x), expected(plain, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("neuron", "form"),
    [(norse.LSNNCell, "one step"), (norse.LSNNCell, "whole"), (norse.LSNN, "one step"), (norse.LSNN, "whole")],
)
def test_neurons_with_adapting_thresholds_are_exported(
    neuron: Callable[[], nn.Module], form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = (torch.rand(40, 8, 6) < 0.5).float()
    last = norse.LIF() if neuron is norse.LSNN else norse.LIFCell()
    model = SequentialState(nn.Linear(6, 12, bias=False), neuron(), nn.Linear(12, 4, bias=False), last)
    plain, hosted = both(model, x)
    exported = export_onnx(hosted, tmp_path / "a.onnx", x, steps=None if form == "one step" else len(x))
    found = (run_steps if form == "one step" else run_whole)(exported, x)
    wanted = expected(plain, x)
    assert 0 < wanted.mean() < 1 and (found != wanted).double().mean() < 0.01  # products of states may round otherwise
    if form == "one step":
        assert {"1.v", "1.i", "1.b"} <= set(exported.states)
