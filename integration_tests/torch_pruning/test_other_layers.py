"""Channels of layers that torch-pruning does not know, or counts wrongly."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn

from integration_tests.models import nir_graphs
from integration_tests.models.networks import LI, LIF, imported
from sbc_plugin.nir import read
from sbc_plugin.norse import default_forward
from sbc_plugin.torch_pruning import get_pruner

T, B = 8, 12


def spikes(features: int) -> Tensor:
    return (torch.rand((T, B, features), generator=torch.Generator().manual_seed(0)) < 0.4).float()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = default_forward(model, x)(model, x)
    return result


def test_a_readout_with_weights_is_cut_as_linear_and_readout() -> None:
    torch.manual_seed(0)
    body: Any = [nn.Linear(10, 16), norse.LIFCell(LIF), nn.Linear(16, 14), norse.LIFCell(LIF)]
    one = norse.SequentialState(*body, norse.LILinearCell(14, 5, LI))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(5)
    other = norse.SequentialState(
        nn.Linear(10, 16), norse.LIFCell(LIF), nn.Linear(16, 14), norse.LIFCell(LIF), nn.Linear(14, 5, bias=False),
        norse.LICell(LI),
    )  # fmt: skip
    state = {name.replace("4.input_weights", "4.weight"): value for name, value in one.state_dict().items()}
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    x = spikes(10)
    for model in (one, other):
        settings: Any = {"pruning_ratio": 0.5, "ignored_layers": [model[4]], "calibration_data": [x]}
        get_pruner("sbc", model, (x[0, :2],), **settings).step()
    assert one[4].input_weights.shape == other[4].weight.shape == (5, 7)
    torch.testing.assert_close(run(one, x), run(other, x))
    assert run(one, x).any()


@pytest.mark.parametrize("kind", [norse.LIFMCRecurrentCell, norse.LIFMCRefracRecurrentCell])
def test_neurons_of_several_compartments_go_with_all_their_weights(kind: Any) -> None:
    """What is cut equals the cell whose cut neurons' weights are zero, and are not read."""
    torch.manual_seed(0)
    model = norse.SequentialState(kind(10, 8), nn.Linear(8, 4), norse.LIFCell(LIF))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = spikes(10)
    dense = {name: value.clone() for name, value in model[0].named_parameters()}
    read_by = model[1].weight.detach().clone()
    get_pruner("l2", model, (x[0, :2],), pruning_ratio=0.5, ignored_layers=[model[1]]).step()
    columns = [int((column == read_by.T).all(1).nonzero()) for column in model[1].weight.detach().T]
    assert len(columns) == 4 and torch.equal(model[0].g_coupling, dense["g_coupling"][columns][:, columns])
    assert torch.equal(model[0].recurrent_weights, dense["recurrent_weights"][columns][:, columns])
    assert torch.equal(model[0].input_weights, dense["input_weights"][columns]) and run(model, x).isfinite().all()


@pytest.mark.parametrize("form", ["chain", "recurrent"])
def test_models_of_norses_import_are_cut_as_ours_of_the_same_file(form: str) -> None:
    def neuron(*shape: int, seed: int = 0) -> Any:
        return nir_graphs.lif(*shape, seed=seed, plain=True)

    graph = nir_graphs.dense(neuron) if form == "chain" else nir_graphs.recurrent(neuron)
    x = nir_graphs.spikes((5,), batch=16)
    shapes, outputs = [], []
    for model in (read(graph, dt=nir_graphs.DT), imported(graph, dt=nir_graphs.DT, reset_method=reset_value)):
        last = model.get_submodule("fc2")
        pruner = get_pruner("sbc", model, (x[0, :2],), pruning_ratio=0.34, ignored_layers=[last], calibration_data=[x])
        pruner.step()
        shapes.append({name.replace(".", "_"): tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1})
        outputs.append(run(model, x))
    assert shapes[0] == shapes[1] and shapes[0]["fc1_weight"] == (3, 5) and shapes[0]["fc2_weight"] == (4, 3)
    assert torch.equal(*outputs) and outputs[0].any()
