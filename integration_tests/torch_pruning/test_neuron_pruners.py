"""Norse's neurons lose what they hold for a channel together with the channel."""

from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from integration_tests.models.channel_networks import braille, make
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, trace_inputs
from sbc_plugin.torch_pruning.graph.neuron_pruners import NeuronPruner, RecurrentPruner, neuron_pruners

GONE, KEPT = [1, 4], [0, 2, 3, 5]


def test_dict_is_fresh_and_keyed_by_class() -> None:
    model = make("step")
    first, second = neuron_pruners(model), neuron_pruners(model)
    assert set(first) == {norse.LIFCell, norse.LIFBoxCell, norse.LICell}
    assert all(isinstance(pruner, NeuronPruner) for pruner in first.values())
    assert first is not second
    assert all(first[cls] is not second[cls] for cls in first)
    assert set(neuron_pruners(nn.Linear(2, 2))) == set()


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 1, 1), (1, 6, 1, 1)])
def test_parameters_of_each_channel_are_cut_and_scalars_left(shape: tuple[int, ...]) -> None:
    values = torch.arange(6.0).reshape(shape)
    learned = nn.Parameter(values + 10, requires_grad=False)
    parameters = norse.LIFParameters(tau_mem_inv=values, v_th=learned, v_leak=torch.tensor(0.5))
    cell = norse.LIFCell(parameters)
    pruner = NeuronPruner()
    assert pruner.get_out_channels(cell) == pruner.get_in_channels(cell) == 6
    pruner.prune_out_channels(cell, GONE)
    assert cell.p.tau_mem_inv.flatten().tolist() == KEPT
    assert cell.p.tau_mem_inv.dim() == len(shape)
    assert cell.p.v_th.flatten().tolist() == [10 + k for k in KEPT]
    assert isinstance(cell.p.v_th, nn.Parameter)
    assert not cell.p.v_th.requires_grad
    assert cell.p.v_leak is parameters.v_leak
    assert parameters.tau_mem_inv.numel() == 6  # the user's own parameters are not changed
    assert pruner.get_out_channels(cell) == 4


def test_neuron_without_parameters_of_its_channels_has_no_channels() -> None:
    assert NeuronPruner().get_out_channels(norse.LIFCell()) is None
    cell = norse.LIFCell()
    before = cell.p
    NeuronPruner().prune_out_channels(cell, [0])
    assert all(a is b or a == b for a, b in zip(cell.p, before, strict=True))


def test_traced_axis_tells_a_map_over_space_from_channels() -> None:
    over_space = norse.LIFParameters(tau_mem_inv=torch.linspace(100, 200, 6)[None, :, None].expand(1, 6, 6).clone())
    everywhere = norse.LIFParameters(tau_mem_inv=torch.rand(4, 6, 6) * 100)
    model = norse.SequentialState(
        nn.Conv2d(2, 4, 3), norse.LIFCell(over_space), nn.Conv2d(4, 4, 1), norse.LIFCell(everywhere), nn.Conv2d(4, 2, 1)
    )
    with exact_tracing(model):
        graph = tp.DependencyGraph().build_dependency(model, trace_inputs(model, torch.rand(1, 2, 8, 8)))
    for layer in (model[0], model[2]):
        graph.get_pruning_group(layer, tp.prune_conv_out_channels, [2]).prune()
    assert model[1].p.tau_mem_inv.shape == (1, 6, 6)
    assert torch.equal(model[3].p.tau_mem_inv, everywhere.tau_mem_inv[[0, 1, 3]])
    model(torch.rand(1, 2, 8, 8))


def test_nested_parameters_of_refractory_neurons() -> None:
    lif = norse.LIFParameters(v_th=torch.arange(6.0))
    cell = norse.LIFRefracCell(norse.LIFRefracParameters(lif=lif, rho_reset=torch.arange(6.0) + 1))
    NeuronPruner().prune_out_channels(cell, GONE)
    assert cell.p.lif.v_th.tolist() == KEPT
    assert cell.p.rho_reset.tolist() == [k + 1 for k in KEPT]


RECURRENT = [
    norse.LIFRecurrentCell, norse.LIFRecurrent, norse.LSNNRecurrentCell, norse.LSNNRecurrent,
    norse.LIFRefracRecurrentCell, norse.LIFRefracRecurrent,
]  # fmt: skip


def feed(neuron: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(neuron, norse.module.snn.SNNRecurrent):
            output: Tensor = neuron(x)[0]
            return output
        outputs, state = [], None
        for step in x:
            output, state = neuron(step, state)
            outputs.append(output)
        return torch.stack(outputs)


@pytest.mark.parametrize("cls", RECURRENT)
@pytest.mark.parametrize("autapses", [False, True])
def test_recurrent_cell_without_neurons_is_the_one_in_which_nothing_reads_them(cls: Any, autapses: bool) -> None:
    weights = torch.randn(6, 3) * 3, torch.randn(6, 6) * 3
    options = {"autapses": autapses}
    small = cls(3, 6, **options, input_weights=nn.Parameter(weights[0]), recurrent_weights=nn.Parameter(weights[1]))
    large = cls(
        3, 6, **options, input_weights=nn.Parameter(weights[0]), recurrent_weights=nn.Parameter(weights[1].clone())
    )
    x = (torch.rand(20, 2, 3) > 0.4).float() * 3
    dense = feed(large, x)
    with torch.no_grad():
        large.recurrent_weights[:, GONE] = 0
    pruner = RecurrentPruner()
    assert (pruner.get_in_channels(small), pruner.get_out_channels(small)) == (3, 6)
    pruner.prune_out_channels(small, GONE)
    torch.testing.assert_close(feed(small, x), feed(large, x)[..., KEPT], rtol=0, atol=1e-5)
    assert not torch.equal(feed(large, x)[..., KEPT], dense[..., KEPT])  # the others did hear them
    assert int(small.hidden_size) == 4
    pruner.prune_in_channels(small, [1])
    assert int(small.input_size) == 2
    torch.testing.assert_close(small.input_weights, weights[0][KEPT][:, [0, 2]])


@pytest.mark.parametrize("cls", RECURRENT[:2])
def test_neurons_do_not_learn_to_excite_themselves_after_the_cut(cls: Any) -> None:
    cell = cls(3, 6)
    RecurrentPruner().prune_out_channels(cell, GONE)
    (cell.recurrent_weights.sum() * 2).backward()
    assert torch.equal(cell.recurrent_weights.grad, 2 - 2 * torch.eye(4))
    free = cls(3, 6, autapses=True)
    RecurrentPruner().prune_out_channels(free, GONE)
    free.recurrent_weights.sum().backward()
    assert torch.equal(free.recurrent_weights.grad, torch.ones(4, 4))


def test_frozen_weights_stay_frozen_and_gradients_are_cut_too() -> None:
    cell = norse.LIFRecurrentCell(3, 6)
    cell.requires_grad_(False)
    RecurrentPruner().prune_out_channels(cell, GONE)
    assert not cell.input_weights.requires_grad
    assert not cell.recurrent_weights.requires_grad
    cell = norse.LIFRecurrentCell(3, 6)
    cell.input_weights.grad = torch.arange(18.0).reshape(6, 3)
    RecurrentPruner().prune_out_channels(cell, GONE)
    assert torch.equal(cell.input_weights.grad, torch.arange(18.0).reshape(6, 3)[KEPT])


def test_cascade_of_a_nir_import_is_cut_as_a_whole() -> None:
    net = braille()
    cascade = net.lif1_lif
    pruner = neuron_pruners(net)[type(cascade)]
    assert pruner.get_out_channels(cascade) == 38
    pruner.prune_out_channels(cascade, [0, 37])
    assert (
        cascade.w_in.shape
        == cascade.r.shape
        == cascade.synapse.p.tau_mem_inv.shape
        == cascade.lif.p.v_th.shape
        == (36,)
    )
    assert cascade.lif.p.v_reset.dim() == 0
