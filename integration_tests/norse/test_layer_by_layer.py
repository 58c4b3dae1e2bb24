"""Neurons over whole sequences against Norse's own steps and gradients; models that run layer by layer, or do not."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.reset import reset_subtract, reset_value
from torch import Tensor, nn

from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.layer_by_layer import LayerByLayer, layer_by_layer
from sbc_plugin.norse.layer_by_layer import WRITTEN_OUT, run_over_time

T, B, N = 14, 3, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, N, dtype=torch.float64)


def box(reset: Any = reset_value, method: str = "super", **values: Any) -> nn.Module:
    given = {"tau_mem_inv": torch.tensor(250.0), "v_reset": torch.tensor(0.0), "alpha": torch.tensor(3.0)} | values
    return norse.LIFBoxCell(norse.LIFBoxParameters(method=method, reset_method=reset, **given))


def lif(cls: Any = norse.LIFCell, *sizes: int, **values: Any) -> nn.Module:
    given = {"tau_mem_inv": torch.tensor(400.0), "tau_syn_inv": torch.tensor(300.0)} | values
    neuron: nn.Module = cls(*sizes, p=norse.LIFParameters(**given))
    return neuron.double()


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "LIFBoxCell": box,
    "LIFBoxCell, reset to -0.2": lambda: box(v_reset=torch.tensor(-0.2), v_leak=torch.tensor(0.1)),
    "LIFBoxCell, reset by subtraction": lambda: box(reset_subtract),
    "LIFBoxCell, a value each": lambda: box(tau_mem_inv=own(100, 500), v_th=own(0.5, 1.0), v_leak=own(0.0, 0.1)),
    "LIFBoxCell, subtraction, a value each": lambda: box(reset_subtract, tau_mem_inv=own(100, 500), v_th=own(0.5, 1.0)),
    "LIFBoxCell, tanh": lambda: box(method="tanh"),
    "LIFBoxCell, circ": lambda: box(method="circ"),
    "LIFBoxCell, triangle": lambda: box(method="triangle", alpha=0.3),
    "LIFBoxCell, heavi_erfc": lambda: box(method="heavi_erfc"),
    "LIFCell": lif,
    "LIFCell, v_reset and v_leak": lambda: lif(v_reset=torch.tensor(-0.3), v_leak=torch.tensor(0.2)),
    "LIFCell, a value each": lambda: lif(tau_mem_inv=own(200, 600), tau_syn_inv=own(100, 400), v_th=own(0.5, 1.0)),
    "IAFCell": norse.IAFCell,
    "LICell": norse.LICell,
    "LIBoxCell": norse.LIBoxCell,
    "LIFRecurrentCell": lambda: lif(norse.LIFRecurrentCell, 4, N),
    "LIFRecurrentCell, v_leak and v_reset": lambda: lif(
        norse.LIFRecurrentCell, 4, N, v_leak=torch.tensor(0.2), v_reset=torch.tensor(-0.1), v_th=torch.tensor(0.6)
    ),
    "LIFRecurrentCell, a value each": lambda: lif(norse.LIFRecurrentCell, 4, N, tau_mem_inv=own(200, 600)),
    "LIFRefracCell": norse.LIFRefracCell,
    "LSNNCell": norse.LSNNCell,
    "LILinearCell": lambda: norse.LILinearCell(4, N).double(),
}


def started(neuron: nn.Module, x: Tensor) -> Any:
    """A state that is not at rest, as far as the neuron keeps v, i and z."""
    _, state = neuron(x, None)
    changed = {name: 0.3 * drawn(*getattr(state, name).shape, seed=7) for name in ("v", "i") if hasattr(state, name)}
    return state._replace(**changed) if changed else state


@pytest.mark.parametrize("at_rest", [True, False])
@pytest.mark.parametrize("name", NEURONS)
def test_spikes_and_gradients_are_those_of_norses_steps(name: str, at_rest: bool) -> None:
    torch.manual_seed(0)
    neuron = NEURONS[name]()
    inputs = 4 if hasattr(neuron, "input_weights") else N
    x = (1.5 + 2 * drawn(T, B, inputs)).requires_grad_()
    weights = [weight for weight in neuron.parameters() if weight.requires_grad]
    with torch.no_grad():
        first = started(neuron, x[0]) if not at_rest else None
    steps, state = [], first
    for each in x:
        output, state = neuron(each, state)
        steps.append(output)
    expected = torch.stack(steps)
    if getattr(neuron, "activation", None) is None:
        found = run_over_time(neuron.forward, x, first, ())
    else:
        own_weights = (neuron.input_weights, neuron.recurrent_weights) if inputs == 4 else ()
        state = neuron.state_fallback(x[0]) if first is None else first
        found = run_over_time(neuron.activation, x, state, (*own_weights, neuron.p, neuron.dt))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    pull = drawn(*expected.shape, seed=8)
    asked = [x, *weights]
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), asked),
        torch.autograd.grad((expected * pull).sum(), asked),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_functions_that_are_written_out_are_those_that_norses_neurons_call() -> None:
    cells = (norse.LIFBoxCell(), norse.LIFCell(), norse.IAFCell(), norse.LICell(), norse.LIBoxCell())
    called = {cell.activation for cell in (*cells, norse.LIFRecurrentCell(2, 2))}
    assert called == set(WRITTEN_OUT)


class OwnLoop(nn.Module):
    """Takes whole sequences, steps by itself, and makes something of its steps' outputs."""

    def __init__(self, finish: Callable[[Tensor], Tensor], batch_first: bool = False) -> None:
        super().__init__()
        self.first, self.neuron, self.second = nn.Linear(4, N), box(), nn.Linear(N, 3)
        self.finish, self.batch_first = finish, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.batch_first else x
        state, steps = None, []
        for step in x:
            spikes, state = self.neuron(self.first(step), state)
            steps.append(self.second(spikes))
        out = torch.stack(steps)
        return self.finish(out.transpose(0, 1) if self.batch_first else out)


class Feedback(nn.Module):
    """A step model whose spikes come back through a weight, by the state that it hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.neuron = nn.Linear(4, N), nn.Linear(N, N), box()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        cell, last = (None, None) if state is None else state
        current = self.first(x) if last is None else self.first(x) + 3 * self.back(last)
        spikes, cell = self.neuron(current, cell)
        return spikes, (cell, spikes)


def sequential(*modules: nn.Module) -> nn.Module:
    return norse.SequentialState(*modules)


QUICK: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "step model": (lambda: sequential(nn.Linear(4, N), box(), nn.Linear(N, 3), lif()), False),
    "recurrent step model": (lambda: sequential(lif(norse.LIFRecurrentCell, 4, N), nn.Linear(N, 3), box()), False),
    "sequence model": (lambda: sequential(norse.Lift(nn.Linear(4, N)), lif(norse.LIF), nn.Linear(N, 3)), False),
    "steps": (lambda: OwnLoop(lambda steps: steps), False),
    "sum": (lambda: OwnLoop(lambda steps: steps.sum(0)), False),
    "mean": (lambda: OwnLoop(lambda steps: steps.mean(0)), False),
    "last": (lambda: OwnLoop(lambda steps: steps[-1]), False),
    "largest": (lambda: OwnLoop(lambda steps: steps.amax(0)), False),
    "batch first": (lambda: OwnLoop(lambda steps: steps, batch_first=True), True),
    "batch first, sum": (lambda: OwnLoop(lambda steps: steps.sum(1), batch_first=True), True),
}


class Keeps(OwnLoop):
    """Leaves what it has seen in attributes, one call after the other."""

    def __init__(self) -> None:
        super().__init__(lambda steps: steps)
        self.seen: list[Tensor] = []
        self.latest: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.seen.append(output)
        self.latest = output
        return output


SLOW: dict[str, Callable[[], nn.Module]] = {
    "feedback through the state": Feedback,
    "differences of steps": lambda: OwnLoop(lambda steps: steps - steps.roll(1, 0)),
    "a softmax over time": lambda: OwnLoop(lambda steps: (steps.softmax(0) * steps).sum(0)),
    "one neuron in two places": lambda: (lambda neuron: sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 4), neuron))(
        box()
    ),
}


def data(batch_first: bool = False) -> Tensor:
    x = 3 * drawn(T, B, 4, seed=3).float()
    return x.transpose(0, 1) if batch_first else x


def live(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with weights that make its neurons spike."""
    torch.manual_seed(1)
    model = make().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8
    return model


@pytest.mark.parametrize("name", QUICK)
def test_a_model_runs_layer_by_layer_with_the_same_spikes_output_and_gradients(name: str) -> None:
    make, batch_first = QUICK[name]
    model, x = live(make), data(batch_first)
    runner, weights = Runner.of(model, x), list(model.parameters())
    with layer_by_layer(runner, x) as source:
        assert isinstance(source, LayerByLayer)
        found, output = source.spikes(x, keep=lambda spikes: spikes)
    expected, own_output = runner.spikes(x, keep=lambda spikes: spikes)
    own_output = own_output[0] if isinstance(own_output, tuple) else own_output
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], spikes) and spikes.any() for name, spikes in expected.items())
    torch.testing.assert_close(output, own_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), weights, allow_unused=True),
        torch.autograd.grad(own_output.square().sum(), weights, allow_unused=True),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", SLOW)
def test_a_model_that_does_more_with_time_runs_step_by_step(name: str) -> None:
    model, x = live(SLOW[name]), data()
    runner = Runner.of(model, x)
    with layer_by_layer(runner, x) as source:
        assert source is runner


def test_a_forward_of_the_users_own_runs_as_it_is() -> None:
    model, x = live(QUICK["step model"][0]), data()
    runner = Runner.of(model, x, lambda model, batch: model(batch[0]))
    with layer_by_layer(runner, x) as source:
        assert source is runner


def test_what_a_forward_keeps_does_not_pile_up() -> None:
    model, x = live(Keeps), data()
    runner = Runner.of(model, x)
    with layer_by_layer(runner, x) as source:
        for _ in range(3):
            source.spikes(x, keep=lambda spikes: spikes)
            assert model.latest is None
    assert not model.seen


def test_the_model_is_as_before() -> None:
    model, x = live(QUICK["step model"][0]), data()
    runner = Runner.of(model, x)
    before, steps = model(x[0])[0], [module.activation for module in model if hasattr(module, "activation")]
    with layer_by_layer(runner, x) as source:
        source.spikes(x, keep=lambda spikes: spikes)
    assert [module.activation for module in model if hasattr(module, "activation")] == steps
    assert torch.equal(model(x[0])[0], before)
    assert model.training
