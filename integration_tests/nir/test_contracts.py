"""What nir, nirtorch and Norse do with graphs: why the mapping is our own, and which of their ways it leans on."""

from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy
import pytest
import torch
from torch import nn

from integration_tests.models.networks import imported
from integration_tests.models.nir_graphs import DT, chain, convolutional, graph, lif, residual, run, spikes, weight
from sbc_plugin.nir import read


def test_metadata_survives_a_file(tmp_path: Path) -> None:
    edges = [("input", "fc"), ("fc", "output")]
    noted = {"dt": 1e-4, "reset_method": "reset_subtract"}
    ends = {"input": nir.Input(numpy.array([5])), "output": nir.Output(numpy.array([4]))}
    nir.write(tmp_path / "a.nir", nir.NIRGraph(ends | {"fc": nir.Linear(weight(0, 4, 5))}, edges, metadata=noted))
    assert nir.read(tmp_path / "a.nir").metadata == noted


def test_nirs_own_types_have_groups_and_oblong_kernels_wrong(tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", convolutional())
    with pytest.raises(ValueError, match="mismatch"):
        nir.read(tmp_path / "a.nir")
    assert read(tmp_path / "a.nir").input_shape == (2, 8, 8)


def from_norse(source: Any) -> torch.Tensor:
    return run(imported(source, dt=DT, ignore_warnings=True), spikes((5,)))


def test_norses_import_drops_resistance_and_reset() -> None:
    fc, full = nir.Linear(weight(0, 5, 5)), lif(5)
    bare = nir.LIF(tau=full.tau, r=numpy.ones(5), v_leak=full.v_leak, v_threshold=full.v_threshold)
    assert torch.equal(from_norse(chain((5,), (5,), fc=fc, n=full)), from_norse(chain((5,), (5,), fc=fc, n=bare)))


def test_norses_import_is_late_where_two_ways_meet() -> None:
    model = imported(residual(), dt=DT, ignore_warnings=True)
    order = [node.name for node in model.execution_order]  # type: ignore[union-attr]
    assert order.index("n2") < order.index("fc2")


def test_norses_import_answers_with_the_node_that_it_visits_last() -> None:
    nodes = {"n": lif(5), "w_rec": nir.Linear(weight(0, 5, 5))}
    edges = [("input", "n"), ("n", "output"), ("n", "w_rec"), ("w_rec", "n")]
    found = from_norse(graph((5,), (5,), nodes, edges))
    assert not ((found == 0) | (found == 1)).all()
    assert ((z := run(read(graph((5,), (5,), nodes, edges)), spikes((5,)))) == z.bool()).all()


def test_norses_import_flattens_the_batch_too() -> None:
    source = chain((2, 2), (4,), flat=nir.Flatten(numpy.array([2, 2]), 0, -1))
    x = torch.ones(3, 2, 2)
    assert imported(source)(x)[0].shape == (12,)
    assert read(source)(x)[0].shape == (3, 4)


@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph:DeprecationWarning")
def test_norses_export_has_time_constants_wrong_and_needs_a_bias() -> None:
    cell = norse.SequentialState(nn.Linear(5, 4), norse.LIFBoxCell())
    found = norse.to_nir(cell, torch.ones(1, 5))
    tau = [float(node.tau) for node in found.nodes.values() if isinstance(node, nir.LIF)]
    assert tau == pytest.approx([1e-5])  # of 1e-2 s
    with pytest.raises(AttributeError):
        norse.to_nir(norse.SequentialState(nn.Conv2d(2, 3, 3, bias=False), norse.LIFCell()), torch.ones(1, 2, 4, 4))
