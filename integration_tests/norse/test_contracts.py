"""What we lean on in the hosts, one test a fact: an upstream change fails here, by name, before it fails elsewhere."""

import copy
import inspect
import pickle
from typing import Any

import nir
import norse.torch as norse
import pytest
import torch
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn
from torch.testing import assert_close

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX, IAF, LI, LIF, LSNN, REFRAC, imported
from sbc_plugin.core.kernels import Kernel, impulse_response
from sbc_plugin.norse.neurons import UNREACHABLE, kernel_of

CELLS: dict[str, nn.Module] = {
    "LIFBoxCell": norse.LIFBoxCell(BOX),
    "LIFCell": norse.LIFCell(LIF),
    "LIFRefracCell": norse.LIFRefracCell(REFRAC),
    "LSNNCell": norse.LSNNCell(LSNN),
    "IAFCell": norse.IAFCell(IAF),
    "LICell": norse.LICell(LI),
    "LIBoxCell": norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(300.0))),
}
SEQUENCES: dict[str, nn.Module] = {
    "LIF": norse.LIF(LIF),
    "LSNN": norse.LSNN(LSNN),
    "IAF": norse.IAF(IAF),
    "LI": norse.LI(LI),
}
RECURRENT: dict[str, nn.Module] = {
    "LIFRecurrentCell": norse.LIFRecurrentCell(2, 3, p=LIF),
    "LIFRecurrent": norse.LIFRecurrent(2, 3, p=LIF),
    "LSNNRecurrentCell": norse.LSNNRecurrentCell(2, 3, p=LSNN),
    "LSNNRecurrent": norse.LSNNRecurrent(2, 3, p=LSNN),
    "LIFRefracRecurrentCell": norse.LIFRefracRecurrentCell(2, 3, p=REFRAC),
    "LIFRefracRecurrent": norse.LIFRefracRecurrent(2, 3, p=REFRAC),
}


def watched(neuron: nn.Module) -> list[tuple[Any, ...]]:
    """The arguments of every call of the neuron's step."""
    calls: list[tuple[Any, ...]] = []
    original = neuron.activation

    def step(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)  # type: ignore[operator]

    neuron.activation = step
    return calls


@pytest.mark.parametrize("name", [*CELLS, *SEQUENCES])
def test_activation_takes_x_state_p_dt_and_is_called_once_a_step(name: str) -> None:
    neuron = copy.deepcopy((CELLS | SEQUENCES)[name])
    assert isinstance(neuron, SNNCell if name in CELLS else SNN)
    calls = watched(neuron)
    neuron(torch.ones(2, 3) if name in CELLS else torch.ones(5, 2, 3))
    assert len(calls) == (1 if name in CELLS else 5)
    assert all(len(call) == 4 and call[2] is neuron.p and call[3] == neuron.dt for call in calls)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_activation_takes_both_weights(name: str) -> None:
    neuron = RECURRENT[name].__class__(2, 3)
    assert isinstance(neuron, SNNRecurrentCell if name.endswith("Cell") else SNNRecurrent)
    calls = watched(neuron)
    neuron(torch.ones(4, 2) if name.endswith("Cell") else torch.ones(5, 4, 2))
    _, state, w_in, w_rec, p, dt = calls[0]
    assert w_in is neuron.input_weights and w_rec is neuron.recurrent_weights and p is neuron.p and dt == neuron.dt
    assert getattr(state, "lif", state).z.shape == (4, 3)
    assert len(calls) == (1 if name.endswith("Cell") else 5)


def test_state_holds_v_after_reset_only() -> None:
    z, state = norse.LIFBoxCell(BOX)(torch.full((1, 1), 50.0))
    assert z.item() == 1 and state.v.item() == 0 and state._fields == ("v",)


@pytest.mark.parametrize("method", [reset_value, reset_subtract])
def test_an_unreachable_threshold_shows_v_before_reset(method: Any) -> None:
    parameters = BOX._replace(reset_method=method, v_th=torch.tensor(UNREACHABLE))
    z, state = norse.LIFBoxCell(parameters)(torch.full((1, 1), 50.0))
    assert z.item() == 0 and state.v.item() == pytest.approx(15.0)


def test_reset_subtract_with_infinity_is_nan() -> None:
    """Why the threshold is 1e9, not inf."""
    parameters = BOX._replace(reset_method=reset_subtract, v_th=torch.tensor(float("inf")))
    _, state = norse.LIFBoxCell(parameters)(torch.ones(1, 1))
    assert state.v.isnan().all()


def responses(neuron: nn.Module, steps: int) -> Tensor:
    """v of an impulse of 1e-3, which stays below every threshold, per unit."""
    state, v = None, []
    for t in range(steps):
        _, state = neuron(torch.full((1, 1), 1e-3 if t == 0 else 0.0, dtype=torch.float64), state)
        v.append(getattr(state, "lif", state).v.item() * 1e3)
    return torch.tensor(v, dtype=torch.float64)


@pytest.mark.parametrize("name", CELLS)
def test_impulse_responses_are_the_closed_forms(name: str) -> None:
    kernel, note = kernel_of(name, CELLS[name])
    assert isinstance(kernel, Kernel) and note == ""
    # membranes of norse hold float32 where their parameters do
    assert_close(responses(CELLS[name], 20), impulse_response(kernel, 20), rtol=1e-5, atol=1e-7)


def test_lsnn_answers_one_step_late() -> None:
    late = responses(CELLS["LSNNCell"], 10)
    assert late[0] == 0 and late[1] == pytest.approx(0.4, rel=1e-5)  # dt * tau_mem_inv of a current of 1
    assert_close(late[1:], responses(norse.LIFCell(LIF), 9), rtol=1e-5, atol=1e-7)  # float32 membranes


def test_lifex_hides_its_nonlinearity_from_the_threshold_trick() -> None:
    x = torch.full((1, 1), 0.5)
    _, true = norse.LIFExCell()(x)
    _, lifted = norse.LIFExCell(norse.LIFExParameters(v_th=torch.tensor(UNREACHABLE)))(x)
    assert (true.v - lifted.v).abs() > 1e-3


def test_default_states_are_odd() -> None:
    x = torch.ones(2, 3)
    assert norse.LIFCell().initial_state(x).v.dim() == 0
    assert not hasattr(norse.IAFParameters(), "v_leak")
    refractory = norse.LIFRefracCell(REFRAC)
    assert refractory.initial_state(x).lif.v.shape == (2, 3) and refractory.p.lif.v_th == 1
    shared = IAF._replace(v_reset=torch.tensor(0.0))
    assert norse.IAFCell(shared).initial_state(x).v is shared.v_reset and shared.v_reset.requires_grad


def test_lift_calls_its_module_once_a_step_and_a_bare_linear_is_called_once() -> None:
    calls: list[Tensor] = []
    linear = nn.Linear(3, 2)
    linear.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    norse.Lift(linear)(torch.ones(5, 4, 3))
    assert [call.shape for call in calls] == [(4, 3)] * 5
    norse.SequentialState(linear, norse.LIF())(torch.ones(5, 4, 3))
    assert calls[-1].shape == (5, 4, 3) and len(calls) == 6


def test_lift_hides_the_state_of_its_module() -> None:
    lift = norse.Lift(norse.LIFCell())
    assert "state" not in inspect.signature(lift.forward).parameters
    output, _ = lift(torch.ones(5, 4, 3))
    assert output.shape == (5, 4, 3)


def test_sequential_state_changes_the_state_list_in_place() -> None:
    model, x = norse.SequentialState(norse.LIFCell(LIF)), torch.ones(1, 2)
    _, state = model(x)
    kept = state[0]
    model(x, state)
    assert state[0] is not kept


def test_parameters_are_not_in_the_state_dict_and_do_not_move() -> None:
    cell = norse.LIFCell(LIF._replace(tau_mem_inv=torch.tensor([400.0, 100.0])))
    assert cell.state_dict() == {} and list(cell.parameters()) == []
    assert cell.double().p.tau_mem_inv.dtype == torch.float32


def test_parameters_cannot_be_pickled() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(norse.LIFCell(LIF).p)


def test_autapses_are_a_zero_diagonal_with_a_hook() -> None:
    cell = norse.LIFRecurrentCell(2, 3)
    assert cell.recurrent_weights.diagonal().eq(0).all() and cell.autapses is False
    cell.recurrent_weights.sum().backward()
    assert cell.recurrent_weights.grad is not None and cell.recurrent_weights.grad.diagonal().eq(0).all()
    assert norse.LIFRecurrentCell(2, 3, autapses=True).recurrent_weights.diagonal().ne(0).any()


def test_recurrent_current_is_of_the_spikes_of_the_last_step() -> None:
    cell = norse.LIFRecurrentCell(2, 3, p=LIF)
    state = cell.initial_state(torch.ones(1, 2))._replace(z=torch.tensor([[1.0, 0.0, 1.0]]))
    _, new = cell(torch.zeros(1, 2), state)
    expected = (1 - 0.25) * torch.nn.functional.linear(state.z, cell.recurrent_weights)
    assert_close(new.i, expected, rtol=1e-6, atol=1e-7)


def test_from_nir_makes_cuba_lif_a_cascade() -> None:
    graph = CASES["NIR graph"].build()
    kinds = {name: type(module).__name__ for name, module in graph.named_modules()}
    assert kinds["lif1.synapse"] == "LIBoxCell" and kinds["lif1.lif"] == "LIFBoxCell" and kinds["w_rec"] == "Linear"
    assert graph.get_submodule("lif1.synapse").p.tau_mem_inv.shape == (4,)
    assert "state" in inspect.signature(graph.forward).parameters


def test_from_nir_calls_the_recurrent_linear_after_the_neuron() -> None:
    graph = CASES["NIR graph"].build()
    order: list[str] = []
    for name in ("fc1", "lif1.lif", "w_rec"):
        graph.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: order.append(name))
    _, state = graph(torch.ones(2, 5))
    assert order == ["fc1", "lif1.lif", "w_rec"] and "w_rec" in state.cache


def test_deepcopy_of_a_nir_graph_raises() -> None:
    with pytest.raises(AttributeError, match="'Node' object has no attribute 'elem'"):
        copy.deepcopy(CASES["NIR graph"].build())


def test_nir_flatten_from_axis_0_breaks_batches() -> None:
    flatten = nir.Flatten({"input": torch.tensor([2, 3]).numpy()}, start_dim=0)
    graph = nir.NIRGraph({"input": nir.Input({"input": [2, 3]}), "f": flatten, "output": nir.Output({"output": [6]})},
                         [("input", "f"), ("f", "output")])  # fmt: skip
    output = imported(graph)(torch.ones(4, 2, 3))
    assert (output[0] if isinstance(output, tuple) else output).shape == (24,)
