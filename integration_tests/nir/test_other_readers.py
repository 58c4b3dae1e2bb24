"""Files that this package writes, read by other simulators: the same spikes, where their equations are the same.

Norse is always there. The others are tried where they are installed, which ``make test-hosts`` does; what they do
otherwise stands in docs/guides/nir.md.
"""

import sys
from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.nir_graphs import run
from sbc_plugin import Prune, Quantize, compress
from sbc_plugin.nir import read, write

T, B, N = 40, 3, 5


def leaky(dt: float) -> norse.SequentialState:
    """LIF neurons that reset to 0, of one threshold."""
    box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(0.1 / dt), v_th=torch.tensor(0.2))
    return _lively(
        nn.Linear(N, 8), norse.LIFBoxCell(box, dt=dt), nn.Linear(8, 4, bias=False), norse.LIFBoxCell(box, dt=dt)
    )


def integrating() -> norse.SequentialState:
    """IF neurons with high thresholds and no inhibition."""
    iaf = norse.IAFParameters(v_th=torch.tensor(20.0))
    model = _lively(nn.Linear(N, 8), norse.IAFCell(iaf), nn.Linear(8, 4), norse.IAFCell(iaf))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    return model


def _lively(*modules: nn.Module) -> norse.SequentialState:
    torch.manual_seed(0)
    model = norse.SequentialState(*modules)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(4 * (torch.randn(parameter.shape) + 0.3) / parameter.shape[1] ** 0.5)
    return model.eval()


def small(model: nn.Module, target: Path) -> Any:
    """The graph of the file of a pruned and quantised model."""
    compressed, _ = compress(model, [spikes()], method="rtn", prune=Prune(0.3), quantize=Quantize(6), progress=False)
    write(target, compressed)
    return nir.read(target)


def spikes() -> Tensor:
    return (torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)) < 0.5).float()


@pytest.mark.parametrize("dt", [1e-3, 1e-4])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:nirtorch")
def test_norse_reads_the_same_network(dt: float, tmp_path: Path) -> None:
    graph = small(leaky(dt), tmp_path / "a.nir")
    expected = run(read(tmp_path / "a.nir"), spikes())
    assert torch.equal(run(norse.from_nir(graph, dt=dt), spikes()), expected) and 0.05 < expected.mean() < 0.95


@pytest.mark.hosts
@pytest.mark.filterwarnings("ignore")
def test_snntorch_reads_the_same_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes steps of 1e-4 s whatever the file says."""
    reader = pytest.importorskip("snntorch.import_nir")
    graph = small(leaky(1e-4), tmp_path / "a.nir")
    expected = run(read(tmp_path / "a.nir"), spikes())
    assert torch.equal(run(reader.import_from_nir(graph), spikes()), expected) and 0.05 < expected.mean() < 0.95


@pytest.mark.hosts
@pytest.mark.filterwarnings("ignore")
def test_sinabs_reads_the_same_network(tmp_path: Path) -> None:
    """It subtracts the threshold, may spike several times in a step, and keeps membranes above minus the threshold."""
    reader = pytest.importorskip("sinabs.nir")
    graph = small(integrating(), tmp_path / "a.nir")
    expected = run(read(tmp_path / "a.nir", reset_method="reset_subtract"), spikes())
    with torch.no_grad():
        found = reader.from_nir(graph, batch_size=B)(spikes().transpose(0, 1).flatten(0, 1))
    found = found[0] if isinstance(found, tuple) else found
    assert torch.equal(found.unflatten(0, (B, T)).transpose(0, 1), expected) and expected.mean() > 0.01


@pytest.mark.hosts
@pytest.mark.filterwarnings("ignore")
def test_rockpool_looks_for_a_value_that_nirs_lif_does_not_have(tmp_path: Path) -> None:
    reader = pytest.importorskip("rockpool.nn.modules.torch.nir")
    with pytest.raises(AttributeError, match="tau_mem"):
        reader.from_nir(small(leaky(1e-3), tmp_path / "a.nir"))
    assert "rockpool" in sys.modules
