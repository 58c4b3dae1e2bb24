"""Models that tempt a tool to guess: what is found, noted, skipped or refused."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX, IAF, LI, LIF, B, T, Twice
from sbc_plugin import Calibration, Prune, calibrate, compress
from sbc_plugin.errors import CompressionError, UnsupportedModelError
from sbc_plugin.norse import find_layers, register_neuron
from sbc_plugin.norse.forward import is_step_model

HALF = Prune(0.5)


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.5).float()


def lively(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = 2 * torch.randn(parameter.shape).abs() / parameter[0].numel() ** 0.5
    return model.eval()


def same_hessians(model: nn.Module, batches: list[Tensor], expected: list[Tensor]) -> None:
    found, wanted = calibrate(model.double(), batches), calibrate(model.double(), expected)
    for name, accumulator in wanted.items():
        assert found[name].count == accumulator.count
        torch.testing.assert_close(found[name].hessian(), accumulator.hessian(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["merged", "mixed", "lift", "attention", "step", "LIFRecurrent"])
def test_a_first_batch_of_one_sequence_decides_nothing(name: str) -> None:
    """(T * 1, ...) looks like (T, ...): the layout must not be taken from it."""
    case = CASES[name]
    x = case.batch(torch.float64)
    same_hessians(case.model(), [x[:, :1], x[:, 1:]], [x])
    same_hessians(case.model(), [x[:, 1:], x[:, :1]], [x])


@pytest.mark.parametrize("name", CASES)
def test_batches_may_differ_in_length_and_number(name: str) -> None:
    case = CASES[name]
    if name == "direct coding":
        return
    x = case.batch(torch.float64)
    model = case.model(torch.float64)
    apart = [calibrate(model, [part], forward=case.forward) for part in (x, x[:4, :2])]
    together = calibrate(model, [x, x[:4, :2]], forward=case.forward)
    for layer, accumulator in together.items():
        apart[0][layer].merge(apart[1][layer])
        torch.testing.assert_close(apart[0][layer].hessian(), accumulator.hessian(), rtol=1e-12, atol=1e-14)


def test_step_models_are_those_that_take_a_state_and_hold_cells() -> None:
    cell, x = norse.SequentialState(nn.Linear(5, 4), norse.LIFCell(LIF)), spikes(T, B, 5)
    steps = (cell, norse.SequentialState(cell, nn.Linear(4, 2)), norse.LIFRecurrentCell(5, 4))
    assert all(is_step_model(model, x) for model in steps)
    sequences = (
        norse.Lift(cell),
        norse.SequentialState(nn.Linear(5, 4), norse.LIF(LIF)),
        norse.SequentialState(norse.Lift(cell), norse.LIF(LIF)),
    )
    assert not any(is_step_model(model, x) for model in sequences)
    for name in ("NIR graph", "loop, sum", "attention", "merged"):
        assert is_step_model(CASES[name].build(), CASES[name].batch(torch.float32)) == (name == "NIR graph")


class Buffered(nn.Module):
    """Currents written into a buffer, and steps taken by slices or by unbind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.lif, self.how = nn.Linear(5, 4), norse.LIF(LIF), how
        self.fc2, self.cell = nn.Linear(4, 3), norse.LIFBoxCell(BOX)

    def forward(self, x: Tensor) -> Tensor:
        current = x.new_zeros(len(x), x.shape[1], 4)
        for t in range(len(x)):
            current[t] = self.fc(x[t])
        z, _ = self.lif(current)
        z, state, outputs = self.fc2(z), None, []
        steps = {
            "unbind": z.unbind(0),
            "slice": [z[t : t + 1].squeeze(0) for t in range(len(z))],
            "chunk": [part[0] for part in z.chunk(len(z))],
            "split": [part[0] for part in z.split(1)],
            "index": [z[t] for t in range(len(z))],
        }
        for step in steps[self.how]:
            out, state = self.cell(step, state)
            outputs.append(out)
        return torch.stack(outputs)


@pytest.mark.parametrize("how", ["unbind", "slice", "chunk", "split", "index"])
def test_buffers_slices_and_unbind(how: str) -> None:
    model, x = lively(Buffered(how)), spikes(T, B, 5)
    layers, _ = find_layers(model, x)
    assert [(layer.kind, layer.sites[0].layout, layer.note) for layer in layers] == [
        ("Linear > LIF", "step", ""),
        ("Linear > LIFBoxCell", "sequence", ""),
    ]
    straight = norse.SequentialState(model.fc, norse.LIFCell(LIF), model.fc2, norse.LIFBoxCell(BOX))
    found, wanted = calibrate(model, [x]), calibrate(straight, [x])
    for mine, theirs in zip(found.values(), wanted.values(), strict=True):
        assert mine.count == theirs.count
        torch.testing.assert_close(mine.hessian(), theirs.hessian(), rtol=1e-5, atol=1e-6)  # products in float32


def test_calls_without_a_rhythm_are_told() -> None:
    class Irregular(Twice):
        def forward(self, x: Tensor) -> Tensor:
            s1 = s2 = None
            for t, step in enumerate(x):
                z, s1 = self.lif1(self.fc1(step), s1)
                if t % 2:
                    z, s2 = self.lif2(self.fc1(z), s2)  # type: ignore[misc]
            return z

    layers, _ = find_layers(lively(Irregular("weight")), spikes(T, B, 5))
    assert "its calls follow no fixed rhythm" in layers[0].note


def test_a_weight_before_two_kinds_of_neuron_is_told() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a, self.b = nn.Linear(5, 4), norse.LIFCell(LIF), norse.LIFBoxCell(BOX)

        def forward(self, x: Tensor) -> Tensor:
            sa = sb = None
            for step in x:
                current = self.fc(step)
                za, sa = self.a(current, sa)
                zb, sb = self.b(current, sb)
            return za + zb

    layers, _ = find_layers(lively(Split()), spikes(T, B, 5))
    assert layers[0].kind == "Linear > LIFCell" and "also feeds neurons with other dynamics" in layers[0].note


@pytest.mark.parametrize("where", ["under no_grad", "detached"])
def test_a_forward_that_hides_the_way(where: str) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(5, 4), norse.LIF(LIF)

        def forward(self, x: Tensor) -> Tensor:
            if where == "detached":
                return self.lif(self.fc(x).detach())[0]
            with torch.no_grad():
                return self.lif(self.fc(x))[0]

    with pytest.raises(UnsupportedModelError, match=r"no weight could be followed to a neuron; .*torch.no_grad"):
        compress(lively(Hidden()), [spikes(T, B, 5)], prune=HALF)


def test_what_has_no_rule_is_skipped_with_a_reason() -> None:
    class Zoo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.conv = nn.ConvTranspose2d(2, 2, 2), nn.Conv2d(2, 3, 2)
            self.lif, self.mix = norse.LIF(LIF), nn.Parameter(torch.rand(3, 3))
            self.table, self.spare, self.unused = nn.Embedding(4, 2), nn.Linear(2, 2), norse.LIFRecurrentCell(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.up(x.flatten(0, 1)) + self.table.weight.mean()).unflatten(0, x.shape[:2])
            return torch.einsum("tbchw,cd->tbdhw", self.lif(y)[0], self.mix)

    _, report = compress(lively(Zoo()), [spikes(T, B, 2, 4, 4)], prune=HALF)
    assert [row.name for row in report.layers] == ["up", "conv"]
    assert report.skipped == {
        "up": "no neuron before 'conv'; its kernel counts",
        "mix": "Zoo has no rule for it; left as it is",
        "table.weight": "Embedding has no rule for it; left as it is",
        "spare": "never called",
        "unused.input_weights": "it never ran; left as it is",
        "unused.recurrent_weights": "it never ran; left as it is",
    }
    assert "note: spare: never called" in str(report)


def test_no_spiking_neuron() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Linear holds no spiking neuron of a known library \(norse\)"):
        compress(nn.Linear(5, 4), [spikes(T, B, 5)], prune=HALF)
    for model in (norse.SequentialState(nn.Linear(5, 4)), norse.SequentialState(nn.Linear(5, 4), norse.LICell(LI))):
        with pytest.raises(UnsupportedModelError, match="SequentialState holds no spiking Norse neuron"):
            compress(model, [spikes(T, B, 5)], prune=HALF)


def test_shared_parameters() -> None:
    model = norse.SequentialState(nn.Linear(4, 4), norse.LIFCell(LIF), nn.Linear(4, 4), norse.LIFCell(LIF))
    model[2].weight = model[0].weight
    with pytest.raises(
        UnsupportedModelError, match=r"'0.weight' and '2.weight' share one parameter, .* use one module"
    ):
        compress(model, [spikes(T, B, 4)], prune=HALF)


class Mine(norse.IAFCell):
    """A subclass has its parent's rule."""


class Alien(norse.module.snn.SNNCell):
    """An integrator of the square root: nobody described it."""

    def __init__(self) -> None:
        super().__init__(self.step, lambda x: norse.IAFFeedForwardState(torch.zeros_like(x)), IAF)

    @staticmethod
    def step(x: Tensor, state: Any, p: Any, dt: float) -> Any:
        v = state.v + x
        z = (v > 1).float()
        return z, norse.IAFFeedForwardState(v * (1 - z))


def test_neurons_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from sbc_plugin.core import kernels
    from sbc_plugin.norse import neurons

    layers, _ = find_layers(lively(norse.SequentialState(nn.Linear(5, 4), Mine(IAF))), spikes(T, B, 5))
    assert layers[0].kernel.name == "iaf" and not layers[0].note
    model = lively(norse.SequentialState(nn.Linear(5, 4), Alien()))
    with pytest.raises(UnsupportedModelError, match=r"neuron '1' of class Alien has no rule; .*register_neuron"):
        compress(model, [spikes(T, B, 5)], prune=HALF)
    compress(model, [spikes(T, B, 5)], prune=HALF, calibration=Calibration(temporal=False))
    monkeypatch.setattr(neurons, "_RULES", dict(neurons._RULES))
    register_neuron(Alien, lambda neuron: kernels.iaf())
    compress(model, [spikes(T, B, 5)], prune=HALF)
    with pytest.raises(UnsupportedModelError, match="Linear is not a subclass of Norse's SNNCell"):
        register_neuron(nn.Linear, lambda neuron: kernels.iaf())


def test_random_encoders_draw_the_same_for_dense_and_compressed() -> None:
    """Where nothing is removed, X and X' must agree, so that alpha = 1 changes nothing."""

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = norse.PoissonEncoder(20, f_max=400)
            self.net = norse.SequentialState(nn.Linear(5, 6), norse.LIF(LIF), nn.Linear(6, 4), norse.LIF(LIF))

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.net(self.encode(x))[0]
            return output

    model, data = lively(Encoded()), [torch.rand(B, 5), torch.rand(B, 5)]
    new, report = compress(model, data, prune=Prune(0.0), calibration=Calibration("sequential", alpha=1.0))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), new.parameters(), strict=True))
    assert report.layers[0].samples == 2 * 20 * B


class Once(nn.Module):
    """``b`` runs in the first so many calls, and no longer."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.a, self.b, self.n, self.left = nn.Linear(4, 3), nn.Linear(4, 3), norse.LIFBoxCell(BOX), calls

    def forward(self, x: Tensor, state: Any = None) -> Any:
        self.left -= 1
        return self.n(self.a(x) + (self.b(x) if self.left >= 0 else 0), state)


@pytest.mark.parametrize("order", ["one-shot", "sequential"])
@pytest.mark.parametrize("method", ["sbc", "magnitude"])
@pytest.mark.parametrize("allocation", ["uniform", "loss"])
def test_a_layer_that_no_sample_reaches_is_named(order: Any, method: Any, allocation: Any) -> None:
    """Whatever run is the last that takes the branch, the layer is left alone or named, never an error without it."""
    prune, calibration, errors = Prune(0.5, allocation=allocation), Calibration(order=order, tuning=0), []
    for calls in range(4, 64, 6):
        try:
            compress(Once(calls), [spikes(6, 2, 4)], method=method, prune=prune, calibration=calibration)
        except CompressionError as error:
            errors.append(str(error))
    assert all("'b'" in error for error in errors) and (errors or method == "magnitude")
