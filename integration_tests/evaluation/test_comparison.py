"""``compare``: what it counts, and the recording that may stand in for the dense model."""

from collections.abc import Iterator

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import Tensor, nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX
from integration_tests.models.one_shot import compress
from sbc_plugin import Prune, compare, record_spikes
from sbc_plugin.errors import CalibrationError

NAMES = ["step", "conv", "loop, sum", "lift", "NIR graph", "own recurrence"]


def batches(name: str) -> list[Tensor]:
    return [CASES[name].batch(seed=seed) for seed in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_compares_as_the_model_does(name: str) -> None:
    model, data = CASES[name].model(), batches(name)
    small, _ = compress(model, data, method="magnitude", prune=Prune(0.5))
    recording = record_spikes(model, data)
    for other in (small, model):
        assert compare(recording, other, data) == compare(model, other, data)
    assert sum(neuron.distance for neuron in compare(recording, small, data).neurons) > 0


def test_other_data_than_was_recorded_is_refused() -> None:
    model, data = CASES["step"].model(), batches("step")
    recording = record_spikes(model, data)
    with pytest.raises(CalibrationError, match="only 2 batches were recorded"):
        compare(recording, model, [*data, *data])
    with pytest.raises(CalibrationError, match="sequences were given"):
        compare(recording, model, data[:1])


def test_data_may_come_once() -> None:
    def stream() -> Iterator[Tensor]:
        yield from batches("step")

    model = CASES["step"].model()
    assert compare(record_spikes(model, stream()), model, stream()).distance == 0


def test_rates_move_neuron_by_neuron() -> None:
    """Two neurons that swap their rates: the module's mean stays, each neuron's does not."""
    model = SequentialState(nn.Linear(2, 2, bias=False), LIFBoxCell(BOX))
    model[0].weight.data = torch.tensor([[50.0, 0.0], [0.0, 0.0]])
    other = SequentialState(nn.Linear(2, 2, bias=False), LIFBoxCell(BOX))
    other[0].weight.data = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    (row,) = compare(model, other, [torch.ones(10, 3, 2)]).neurons
    assert row.rate == row.rate_dense > 0 and row.rate_distance == 2


def test_zeros_are_counted_over_all_weights() -> None:
    model, data = CASES["conv"].model(), batches("conv")
    small, report = compress(model, data, method="magnitude", prune=Prune(0.75))
    found = compare(model, small, data)
    assert found.dense.sparsity == 0 and found.compressed.sparsity == pytest.approx(report.sparsity, abs=1e-12)


def test_operations_are_told_by_layer() -> None:
    """By hand: each nonzero input times the nonzero weights that it meets."""
    torch.manual_seed(0)
    model = SequentialState(nn.Linear(6, 5), LIFBoxCell(BOX), nn.Linear(5, 4), LIFBoxCell(BOX))
    model[0].weight.data = 20 * torch.rand(5, 6)
    small, _ = compress(model, [(torch.rand(10, 3, 6) < 0.5).float()], method="magnitude", prune=Prune(0.5))
    x = (torch.rand(10, 3, 6) < 0.5).float()
    found = compare(model, small, [x])
    for net, side in ((model, "dense"), (small, "compressed")):
        hidden = next(iter(record_spikes(net, [x]).batches[0].values())).float()
        expected = [
            float(((inputs != 0).float() @ (layer.weight != 0).float().T).sum())
            for inputs, layer in ((x, net[0]), (hidden, net[2]))
        ]
        assert [getattr(layer, side) for layer in found.layers] == [int(count) // 3 for count in expected]
        assert all(expected)
    assert [layer.name for layer in found.layers] == ["0", "2"] and "operations before" in str(found)
    recorded = compare(record_spikes(model, [x]), small, [x])
    assert recorded.layers == found.layers
