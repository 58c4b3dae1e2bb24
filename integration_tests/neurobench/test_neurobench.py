"""NeuroBench's metrics, computed by NeuroBench itself, are ours; `make test-neurobench` installs it."""

from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX
from integration_tests.models.one_shot import compress
from sbc_plugin import Comparison, Prune, Quantize, compare
from sbc_plugin.demo import digits, network

pytest.importorskip("neurobench", reason="pip install 'sbc-plugin[neurobench]'")

from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, ActivationSparsityByLayer, SynapticOperations

from sbc_plugin.neurobench import SpikingModel

STATIC, WORKLOAD = [ConnectionSparsity, Footprint], [ActivationSparsity, ActivationSparsityByLayer, SynapticOperations]


def measured(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    x = torch.cat([x.transpose(0, 1) for x, _ in data])
    loader = DataLoader(TensorDataset(x, torch.cat([labels for _, labels in data])), batch_size=50)
    found = Benchmark(SpikingModel(model), loader, [], [], [STATIC, WORKLOAD]).run(quiet=True)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]], Comparison]:
    data = digits.load()
    model = network.pretrained(seed=0)
    small, _ = compress(model, data.calibration.subset(slice(100)).batches(50), prune=Prune(0.8), quantize=Quantize(4))
    test = list(data.test.subset(slice(100)).batches(50))
    return model, small, test, compare(model, small, test)


def test_synaptic_operations_agree(pair: Any) -> None:
    """To the operation: NeuroBench sums ones in float32, exact up to 2^24 a layer, step and batch."""
    model, small, data, found = pair
    for net, cost in ((model, found.dense), (small, found.compressed)):
        theirs = measured(net, data)["SynapticOperations"]
        assert cost.operations.acs == int(theirs["Effective_ACs"]) > 0
        assert cost.operations.macs == theirs["Effective_MACs"] == 0
        # ours counts the zeros that pad a convolution's borders as well: a processor that skips nothing meets them
        assert 0.8 < theirs["Dense"] / cost.operations.dense < 1


def test_dense_operations_agree_without_borders() -> None:
    model = SequentialState(nn.Linear(6, 5), LIFBoxCell(BOX), nn.Linear(5, 4), LIFBoxCell(BOX))
    data = [((torch.rand(7, 50, 6) < 0.5).float(), torch.zeros(50, dtype=torch.long))]
    theirs = measured(model, data)["SynapticOperations"]
    assert theirs["Dense"] == compare(model, model, data).dense.operations.dense == 7 * (6 * 5 + 5 * 4)


def test_inputs_that_are_numbers_cost_macs() -> None:
    model = SequentialState(nn.Linear(6, 5), LIFBoxCell(BOX), nn.Linear(5, 4), LIFBoxCell(BOX))
    model[0].weight.data *= 20
    data = [(torch.rand(7, 50, 6), torch.zeros(50, dtype=torch.long))]
    theirs, ours = measured(model, data)["SynapticOperations"], compare(model, model, data).dense.operations
    assert (int(theirs["Effective_MACs"]), int(theirs["Effective_ACs"])) == (ours.macs, ours.acs)
    assert ours.macs == 7 * 30 and ours.acs > 0


def test_sparsities_agree(pair: Any) -> None:
    _, small, data, found = pair
    theirs = measured(small, data)
    assert theirs["ConnectionSparsity"] == round(found.compressed.sparsity, 4)  # rounded by NeuroBench
    by_layer = theirs["ActivationSparsityByLayer"]
    assert by_layer == pytest.approx({row.name: 1 - row.rate for row in found.neurons}, abs=1e-12)
    sizes = {"1": 12 * 64, "3": 24 * 16, "6": 64, "8": 10}  # neurons of each module
    mean = sum(sizes[row.name] * row.rate for row in found.neurons) / sum(sizes.values())
    assert theirs["ActivationSparsity"] == pytest.approx(1 - mean, abs=1e-12)


def test_footprint_sees_neither_zeros_nor_bits(pair: Any) -> None:
    """It counts parameters and buffers as they lie in memory; ours is what the packed weights take."""
    model, small, data, found = pair
    footprint = 4 * sum(weight.numel() for weight in model.parameters())
    assert measured(model, data)["Footprint"] == measured(small, data)["Footprint"] == footprint
    assert found.dense.packed_bytes == footprint and found.compressed.packed_bytes < footprint / 10


def case_measured(name: str) -> tuple[dict[str, Any], Comparison]:
    case = CASES[name]
    model, batch = case.model(), case.batch()
    labels = torch.zeros(batch.shape[1], dtype=torch.long)
    return measured(model, [(batch, labels)]), compare(model, model, [batch])


@pytest.mark.parametrize("name", ["step", "nested", "conv", "lift", "mixed", "SEW"])
def test_models_of_every_form_agree(name: str) -> None:
    theirs, ours = case_measured(name)
    operations, cost = theirs["SynapticOperations"], ours.dense.operations
    assert (int(operations["Effective_ACs"]), int(operations["Effective_MACs"])) == (cost.acs, cost.macs)
    assert theirs["ActivationSparsityByLayer"] == pytest.approx({row.name: 1 - row.rate for row in ours.neurons})


def test_recurrent_weights_of_a_norse_cell_are_unknown_to_neurobench() -> None:
    """It looks for torch's own recurrent modules; ours counts Norse's cells too, so it finds more."""
    theirs, ours = case_measured("LIFRecurrentCell")
    operations, cost = theirs["SynapticOperations"], ours.dense.operations
    assert operations["Effective_ACs"] + operations["Effective_MACs"] < cost.acs + cost.macs
