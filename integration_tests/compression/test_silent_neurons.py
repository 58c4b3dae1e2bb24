"""Neurons that never spike cost nothing to prune, where nobody hears them; whether somebody does is tried."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Prune, compare
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import gather
from sbc_plugin.compression.silent import unread_neurons
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.norse import find_layers

INPUTS, HIDDEN, OUTPUTS = 8, 6, 3
SILENT = [1, 4]


class Bypass(nn.Module):
    """A network whose output holds the hidden spikes too: its silent neurons would be heard."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        first, hidden, second, output = self.inner
        states = state or (None, None)
        spikes, before = hidden(first(x), states[0])
        sent, after = output(second(spikes), states[1])
        return torch.cat([sent, spikes], dim=-1), (before, after)


class Recurrent(nn.Module):
    """A recurrent cell and a readout that spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = norse.LIFRecurrentCell(INPUTS, HIDDEN)
        self.second = nn.Linear(HIDDEN, OUTPUTS, bias=False)
        self.output = norse.LIFBoxCell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        states = state or (None, None)
        spikes, before = self.cell(x, states[0])
        sent, after = self.output(self.second(spikes), states[1])
        return sent, (before, after)


def hush(weight: Tensor) -> None:
    """Weights under which every neuron spikes but those of ``SILENT``."""
    with torch.no_grad():
        weight.copy_(weight.abs() * 20)
        if len(weight) == HIDDEN:
            weight[SILENT] *= -1


def feedforward() -> norse.SequentialState:
    torch.manual_seed(0)
    model = norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN, bias=False),
        norse.LIFBoxCell(),
        nn.Linear(HIDDEN, OUTPUTS, bias=False),
        norse.LIFBoxCell(),
    )
    for weight in model.parameters():
        hush(weight)
    return model


def recurrent() -> Recurrent:
    torch.manual_seed(0)
    model = Recurrent()
    for weight in (model.cell.input_weights, model.cell.recurrent_weights, model.second.weight):
        hush(weight)
    return model


def batch(seed: int = 0) -> Tensor:
    return (torch.rand(20, 4, INPUTS, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def unread(model: nn.Module) -> dict[str, list[int]]:
    layers, _ = find_layers(model, batch())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runner = Runner.of(model, batch())
    seen = gather(runner, layers, [batch()], Calibration(), silence=True)
    sums = {name: each.accumulator.sum_xx for name, each in seen.items()}
    dead = {layer.name: LayerHessian(sums[layer.name]).dead_weights(layer.rows) for layer in layers}
    silent = {name: each.silent for name, each in seen.items() if each.silent is not None}
    found = unread_neurons(runner, layers, dead, silent, batch())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return {name: rows.nonzero()[:, 0].tolist() for name, rows in found.items()}


@pytest.mark.parametrize("make", [feedforward, recurrent])
def test_silent_hidden_neurons_are_unread(make: Any) -> None:
    assert list(unread(make()).values()) == [SILENT, []]


def test_a_silent_output_neuron_is_read() -> None:
    model = feedforward()
    with torch.no_grad():
        model[2].weight[0] *= -1
    assert list(unread(model).values()) == [SILENT, []]


def test_a_silent_neuron_beside_the_weights_is_read() -> None:
    assert list(unread(Bypass(feedforward())).values()) == [[], []]


@pytest.mark.parametrize("order", ["one-shot", "sequential"])
@pytest.mark.parametrize("make", [feedforward, recurrent])
def test_weights_of_silent_neurons_cost_nothing(make: Any, order: str) -> None:
    model = make()
    total = sum(layer.weight().numel() for layer in find_layers(model, batch())[0])
    columns = INPUTS + (HIDDEN if make is recurrent else 0)
    free = len(SILENT) * (OUTPUTS + columns) + (len(SILENT) * (HIDDEN - len(SILENT)) if make is recurrent else 0)
    prune = Prune(free / total, silent_first=True)
    small, report = compress(model, iter([batch()]), prune=prune, calibration=Calibration(order), progress=False)
    assert round(report.sparsity * total) == free
    assert compare(model, small, [batch()]).distance == 0.0


def test_without_room_for_all_dead_weights_nothing_changes() -> None:
    model, few = feedforward(), 1 / (HIDDEN * (INPUTS + OUTPUTS))
    pruned = [
        compress(model, [batch()], prune=Prune(few, silent_first=flag), progress=False)[0] for flag in (False, True)
    ]
    for first, second in zip(*(model.parameters() for model in pruned), strict=True):
        assert torch.equal(first, second)


def test_without_the_option_the_same_zeros_change_spikes() -> None:
    model = feedforward()
    free = len(SILENT) * (OUTPUTS + INPUTS) / (HIDDEN * (OUTPUTS + INPUTS))
    plain, _ = compress(model, [batch()], prune=Prune(free), progress=False)
    assert compare(model, plain, [batch()]).distance > 0.0


@pytest.mark.parametrize("kind", ["output", "tuple with state", "list", "dict", "two outputs and a state"])
def test_silent_neurons_go_first_whatever_the_forward_returns(kind: str) -> None:
    model = feedforward()

    def run(model: nn.Module, x: Tensor) -> Any:
        outputs, state = [], None
        for step in x:
            output, state = model(step, state)
            outputs.append(output)
        whole = torch.stack(outputs)
        return {
            "output": whole,
            "tuple with state": (whole, state),
            "list": [whole],
            "dict": {"y": whole},
            "two outputs and a state": (whole, whole.sum(0), state),
        }[kind]

    small, _ = compress(model, [batch()], prune=Prune(0.4, silent_first=True), forward=run)
    expected, _ = compress(model, [batch()], prune=Prune(0.4, silent_first=True))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), expected.parameters(), strict=True))
    assert (small[0].weight[SILENT] == 0).sum() > (feedforward()[0].weight[SILENT] == 0).sum()
