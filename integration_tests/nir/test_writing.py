"""Norse models written as NIR graphs: right time constants and shapes, and the same answer once they are read again."""

from collections import OrderedDict

import nir
import norse.torch as norse
import numpy
import pytest
import torch
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn

from integration_tests.models.networks import imported
from integration_tests.models.nir_graphs import DT, chain, cuba, lif, recurrent, run, spikes, weight
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.nir import graph_of, read

STEPS = 60
LIF = norse.LIFParameters(tau_mem_inv=torch.tensor(300.0), tau_syn_inv=torch.tensor(170.0), v_th=torch.tensor(0.7))
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor([100.0, 170.0, 230.0, 310.0]), v_th=torch.tensor(0.6))
IAF = norse.IAFParameters(v_th=torch.tensor(1.3), v_reset=torch.tensor(0.1))


def built(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = norse.SequentialState(*modules)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.data = 3 * (torch.randn(parameter.shape) + 0.4) / parameter[0].numel() ** 0.5
        if "recurrent" in name:
            parameter.data.fill_diagonal_(0)
    return model


STEP_MODELS = {
    "LIF": lambda: built(nn.Linear(5, 6), norse.LIFCell(LIF), nn.Linear(6, 4, bias=False), norse.LIFBoxCell(BOX)),
    "IAF": lambda: built(nn.Linear(5, 6), norse.IAFCell(IAF), nn.Dropout(0.5), nn.Linear(6, 3), norse.LICell()),
    "LIBox": lambda: built(nn.Sequential(nn.Linear(5, 6), nn.Identity()), norse.LIBoxCell(), norse.IAFCell(IAF)),
    "recurrent": lambda: built(norse.LIFRecurrentCell(5, 6, LIF), nn.Linear(6, 4), norse.LIFCell(LIF)),
    "subtract": lambda: built(nn.Linear(5, 4), norse.LIFBoxCell(BOX._replace(reset_method=reset_subtract))),
}
SEQUENCE_MODELS = {
    "LIF": (lambda: built(nn.Linear(5, 6), norse.LIF(LIF), nn.Linear(6, 4), norse.LIF(LIF)), (5,)),
    "recurrent": (lambda: built(norse.LIFRecurrent(5, 6, LIF), nn.Linear(6, 4), norse.LI()), (5,)),
    "lifted": (
        lambda: built(norse.Lift(nn.Conv2d(2, 3, 3)), norse.LIF(LIF), nn.Flatten(2), nn.Linear(12, 4), norse.IAF(IAF)),
        (2, 4, 4),
    ),
}


def close(found: Tensor, expected: Tensor) -> None:
    # a recurrent cell adds three currents in another order: the last bit of a membrane may differ, a spike must not
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", STEP_MODELS)
def test_step_models_are_written_and_read(kind: str) -> None:
    model, x = STEP_MODELS[kind]().eval(), spikes((5,), STEPS)
    again = read(graph_of(model))
    expected = run(model, x)
    assert expected.any()
    close(run(again, x), expected)
    assert again.dt == DT
    assert again.reset_method is (reset_subtract if kind == "subtract" else norse.LIFBoxParameters().reset_method)


@pytest.mark.parametrize("kind", SEQUENCE_MODELS)
def test_sequence_models_are_written_and_read(kind: str) -> None:
    make, shape = SEQUENCE_MODELS[kind]
    model, x = make(), spikes(shape, STEPS)
    with torch.no_grad():
        expected = model(x)[0]
    assert expected.any()
    close(run(read(graph_of(model, input_shape=shape)), x), expected)


def test_norses_graphs_are_written() -> None:
    source = recurrent(lambda *shape, seed: lif(*shape, seed=seed, plain=True))
    model, x = imported(source, dt=DT), spikes((5,))
    assert torch.equal(run(read(graph_of(model)), x), run(model, x))


def test_time_constants_are_seconds_and_shapes_are_whole() -> None:
    model = norse.SequentialState(
        nn.Conv2d(2, 3, 3, bias=False), norse.LIFCell(LIF, dt=2e-3), nn.Flatten(), nn.Linear(12, 4)
    )
    back = graph_of(model, input_shape=(2, 4, 4))
    node = back.nodes["1"]
    numpy.testing.assert_allclose(node.tau_mem, numpy.full((3, 2, 2), 1 / 300), rtol=1e-7)
    numpy.testing.assert_allclose(node.tau_syn, numpy.full((3, 2, 2), 1 / 170), rtol=1e-7)
    numpy.testing.assert_allclose(node.w_in, numpy.full((3, 2, 2), 500 / 170), rtol=1e-7)
    assert back.metadata["dt"] == 2e-3


@pytest.mark.parametrize("bias", [True, False])
def test_bias_or_none(bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, bias=bias), norse.LIFBoxCell(), nn.Flatten(), nn.Linear(12, 4, bias=bias)]
    again = read(graph_of(norse.SequentialState(*layers, norse.LIFBoxCell()), input_shape=(2, 4, 4)))
    for name, layer in (("0", layers[0]), ("3", layers[3])):
        found = again.module_of(name)
        assert torch.equal(found.weight, layer.weight)  # type: ignore[arg-type]
        assert torch.equal(found.bias, layer.bias) if bias else found.bias is None  # type: ignore[arg-type]


def test_modules_may_be_called_input_and_output() -> None:
    model = nn.Sequential(OrderedDict(input=nn.Linear(5, 4), output=nn.Linear(4, 3)))
    x = spikes((5,))
    with torch.no_grad():
        close(run(read(graph_of(model)), x), model(x))  # a product for each step, and one for all


def test_a_reset_of_ones_own_is_asked_for_again() -> None:
    def halve(z: Tensor, v: Tensor, reset: Tensor, th: Tensor) -> Tensor:
        return v - z * v / 2

    model = norse.SequentialState(nn.Linear(2, 3), norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=halve)))
    source = graph_of(model)
    with pytest.raises(SettingsError, match=r"reset_method='halve' is unknown.*give the function itself"):
        read(source)
    assert read(source, reset_method=halve).reset_method is halve


def test_a_synapse_that_leaks_to_a_current_is_refused() -> None:
    """Norse's import gives the synapse the membrane's v_leak."""
    model = imported(chain((5,), (5,), fc=nir.Linear(weight(0, 5, 5)), n=cuba(5)), dt=DT)
    with pytest.raises(UnsupportedModelError, match=r"'n'.*its synapse leaks to a current other than 0"):
        graph_of(model)


def test_what_has_no_counterpart_is_refused() -> None:
    norm = norse.SequentialState(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), norse.LIFCell())
    with pytest.raises(UnsupportedModelError, match=r"'1'.*BatchNorm2d has no counterpart in NIR"):
        graph_of(norm, input_shape=(2, 4, 4))
    with pytest.raises(UnsupportedModelError, match="LSNNCell has no counterpart"):
        graph_of(norse.SequentialState(nn.Linear(2, 3), norse.LSNNCell()))
    with pytest.raises(UnsupportedModelError, match="Lift does not say how its modules are connected"):
        graph_of(norse.Lift(nn.Linear(2, 3)))
    with pytest.raises(UnsupportedModelError, match="joins the batch"):
        graph_of(norse.SequentialState(nn.Flatten(0), nn.Linear(2, 3)), input_shape=(2,))
    with pytest.raises(SettingsError, match="give input_shape"):
        graph_of(norse.SequentialState(nn.Conv2d(2, 3, 3), norse.LIFCell()))
    with pytest.raises(SettingsError, match=r"'0'.*does not take an input of shape \(3, 4, 4\)"):
        graph_of(norse.SequentialState(nn.Conv2d(2, 3, 3), norse.LIFCell()), input_shape=(3, 4, 4))
    with pytest.raises(SettingsError, match=r"different dt \[0\.001, 0\.002\]"):
        graph_of(norse.SequentialState(nn.Linear(2, 3), norse.LIFCell(), norse.LIFCell(dt=2e-3)))
