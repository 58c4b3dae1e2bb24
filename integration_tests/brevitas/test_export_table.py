"""The benchmark's networks through every export: the table of docs/hosts.md is the measured one."""

from pathlib import Path

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas.nn")
pytest.importorskip("onnx")
pytest.importorskip("qonnx")

from integration_tests.benchmarks.cases import CASES
from integration_tests.brevitas import export_table
from sbc_plugin.brevitas import export_torchscript, quantize_layers, weight_quantizer
from sbc_plugin.errors import CalibrationError, CheckpointError, SettingsError, UnsupportedModelError

INT4 = weight_quantizer("int4")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_every_network_has_its_rows_and_none_differs() -> None:
    rows = export_table.shown().splitlines()
    assert len(rows) == 2 + len(CASES) * len(export_table.WAYS)
    assert all(sum(row.startswith(f"| {case.name} |") for row in rows) == len(export_table.WAYS) for case in CASES)
    assert not any("differs" in row for row in rows)


@pytest.mark.parametrize(("name", "way"), [*zip(["recurrent", "2fc-events"], export_table.WAYS, strict=True)])
def test_rows_of_small_networks_are_the_measured_ones(name: str, way: str) -> None:
    (row,) = export_table.rows([name], [way])
    assert "| " + " | ".join(row) + " |" in export_table.shown().splitlines()


@pytest.mark.hosts
def test_the_table_is_the_measured_one() -> None:
    assert export_table.shown() == export_table.table()


def chain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = norse.SequentialState(nn.Linear(6, 8), norse.LIFCell(), nn.Linear(8, 4), norse.LIFBoxCell())
    for weight in model.parameters():
        weight.data *= 8
    return quantize_layers(model, INT4)[0].eval()


def spikes(batch: int = 5, seed: int = 0) -> Tensor:
    return (torch.rand(7, batch, 6, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


@pytest.mark.parametrize("steps", [None, 4])
def test_step_models_become_torchscript_of_whole_sequences(steps: int | None, tmp_path: Path) -> None:
    model, x = chain(), spikes(9, seed=1)[:steps]
    script = torch.jit.load(str(export_torchscript(model, tmp_path / "a.pt", spikes(), steps=steps)))
    expected = norse.Lift(model)(x)[0]
    assert expected.any() and torch.equal(script(x), expected)
    graph = script.inlined_graph
    nodes = [node for node in graph.findAllNodes("prim::Constant") if "value" in node.attributeNames()]
    tensors = [node.t("value") for node in nodes if node.kindOf("value") == "t"]
    shapes = {tuple(value.shape) for value in tensors if value.dtype == torch.int8}
    assert {(8, 6), (4, 8)} <= shapes  # the weights are integers


def test_models_that_cannot_be_torchscript_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="has no Brevitas layer"):
        export_torchscript(norse.SequentialState(nn.Linear(6, 8), norse.LIFCell()), tmp_path / "a.pt", spikes())
    with pytest.raises(CalibrationError, match="7 steps, the file shall have 8"):
        export_torchscript(chain(), tmp_path / "a.pt", spikes(), steps=8)
    with pytest.raises(SettingsError, match="steps=0"):
        export_torchscript(chain(), tmp_path / "a.pt", spikes(), steps=0)
    with pytest.raises(CheckpointError, match="nowhere"):
        export_torchscript(chain(), tmp_path / "nowhere" / "a.pt", spikes())
    grouped, _ = quantize_layers(
        norse.SequentialState(nn.Linear(64, 8), norse.LIFCell()), weight_quantizer("int4", "group:32")
    )
    with pytest.raises(UnsupportedModelError):
        export_torchscript(grouped, tmp_path / "a.pt", torch.ones(3, 2, 64))
    assert not list(tmp_path.iterdir())
