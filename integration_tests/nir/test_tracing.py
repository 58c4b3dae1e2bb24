"""Models of one's own class as NIR graphs: the network answers as the model does, or what has no node is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from integration_tests.models.nir_graphs import run
from sbc_plugin import Quantize, compress
from sbc_plugin.errors import CalibrationError, CompressionError, SettingsError, UnsupportedModelError
from sbc_plugin.nir import graph_of, integers, read, trace, write

T, B = 12, 3
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3), v_reset=torch.tensor(-0.1))
LIF = norse.LIFParameters(tau_mem_inv=torch.tensor(300.0), tau_syn_inv=torch.tensor(170.0), v_th=torch.tensor(0.2))
IAF = norse.IAFParameters(v_th=torch.tensor(1.3))


class Own(nn.Module):
    """Modules by name; ``step`` says what becomes of x, with a function that runs a neuron with its state."""

    def __init__(self, step: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._step = step
        for name, module in modules.items():
            self.add_module(name, module)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(3 * (torch.randn(parameter.shape) + 0.4) / parameter[0].numel() ** 0.5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.uniform_(module.weight, 0.5, 2)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        state = dict(state or {})

        def run(name: str, value: Tensor) -> Tensor:
            output, state[name] = getattr(self, name)(value, state.get(name))
            return output

        return self._step(self, x, run, state), state


class Sequences(Own):
    """Loops over time itself."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            output, state = super().forward(step, state)
            outputs.append(output)
        return torch.stack(outputs)


class BatchFirst(Sequences):
    """(B, T, ...) to (B, T, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


def chain(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    z = run("lif1", m.fc1(x))
    return run("lif2", m.fc2(functional.relu(z)))


def scaled(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    z = run("lif1", 2.5 * m.fc1(x) - 0.5 * m.fc1b(x))
    return run("lif2", m.fc2(3 * z) / 4)


def residual(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    a = run("lif1", m.fc1(x))
    b = run("lif2", m.fc2(a) + a)
    return run("readout", m.fc3(a + b) + m.fc3b(x))


def gains(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    """A factor for each neuron, a mask, and space averaged away."""
    z = run("lif1", m.conv1(x) * m.gain[:, None, None])
    return run("lif2", m.fc(z.mean((-2, -1))) * torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype))


def convolutional(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    z = run("lif1", m.bn1(m.conv1(x)))
    z = run("lif2", m.bn2(m.fc(m.pool(z).flatten(1))))
    return run("readout", m.out(m.drop(z)))


def looped(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    """Its own spikes of the step before come back through a matrix, and the output layer's too."""
    current = m.fc1(x)
    if "z" in state:
        current = current + 0.5 * m.back(state["z"]) + m.far(state["y"])
    state["z"] = run("lif1", current)
    state["y"] = run("lif2", m.fc2(state["z"]))
    return state["y"]  # type: ignore[no-any-return]


def kept(m: Any, x: Tensor, run: Any, state: Any) -> Tensor:
    """The same with spikes of 0 before the first step."""
    state["z"] = run("lif1", m.fc1(x) + m.back(state.get("z", torch.zeros(len(x), 6, dtype=x.dtype))))
    return state["z"]  # type: ignore[no-any-return]


def fc(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=bias)


def with_gain(model: Own) -> Own:
    model.gain = nn.Parameter(torch.tensor([0.5, 1.5, 1.0, 2.0]))
    return model


MODELS: dict[str, Callable[[type[Own]], tuple[Own, tuple[int, ...]]]] = {
    "chain": lambda kind: (
        kind(chain, fc1=fc(5, 6), lif1=norse.LIFCell(LIF), fc2=fc(6, 4), lif2=norse.LIFBoxCell(BOX)),
        (5,),
    ),
    "scaled": lambda kind: (
        kind(scaled, fc1=fc(5, 6), fc1b=fc(5, 6), lif1=norse.IAFCell(IAF), fc2=fc(6, 4), lif2=norse.LIFCell(LIF)),
        (5,),
    ),
    "residual": lambda kind: (
        kind(
            residual,
            fc1=fc(5, 6),
            lif1=norse.LIFCell(LIF),
            fc2=fc(6, 6),
            lif2=norse.LIFBoxCell(BOX),
            fc3=fc(6, 2),
            fc3b=fc(5, 2),
            readout=norse.LICell(),
        ),
        (5,),
    ),
    "gains": lambda kind: (
        with_gain(
            kind(gains, conv1=nn.Conv2d(2, 4, 3), lif1=norse.LIFBoxCell(BOX), fc=fc(4, 3), lif2=norse.LIFCell(LIF))
        ),
        (2, 4, 4),
    ),
    "convolutional": lambda kind: (
        kind(
            convolutional,
            conv1=nn.Conv2d(2, 4, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(4),
            lif1=norse.LIFBoxCell(BOX),
            pool=nn.AvgPool2d(2),
            fc=fc(16, 6),
            bn2=nn.BatchNorm1d(6),
            lif2=norse.LIFCell(LIF),
            drop=nn.Dropout(0.5),
            out=fc(6, 3),
            readout=norse.LICell(),
        ),
        (2, 4, 4),
    ),
    "looped": lambda kind: (
        kind(
            looped,
            fc1=fc(5, 6),
            back=fc(6, 6, bias=False),
            far=fc(4, 6, bias=False),
            lif1=norse.LIFCell(LIF),
            fc2=fc(6, 4),
            lif2=norse.LIFCell(LIF),
        ),
        (5,),
    ),
    "kept": lambda kind: (kind(kept, fc1=fc(5, 6), back=fc(6, 6, bias=False), lif1=norse.LIFBoxCell(BOX)), (5,)),
    "recurrent cells": lambda kind: (
        kind(
            lambda m, x, run, state: run("readout", run("cell", m.fc1(x))),
            fc1=fc(5, 4),
            cell=norse.LIFRecurrentCell(4, 6, LIF),
            readout=norse.LILinearCell(6, 2),
        ),
        (5,),
    ),
}


def spikes(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(T, B, *shape, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


@pytest.mark.parametrize("kind", [Own, Sequences, BatchFirst])
@pytest.mark.parametrize("name", MODELS)
def test_the_network_answers_as_the_model_on_other_data(name: str, kind: type[Own], tmp_path: Path) -> None:
    model, shape = MODELS[name](kind)
    model.eval()
    x, other = spikes(*shape), spikes(*shape, seed=2)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    network = trace(model, (x.transpose(0, 1) if kind is BatchFirst else x, torch.zeros(B)))
    assert model.training and torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval().double()
    exact, other = run(network.double(), other.double()), other.double()
    with torch.no_grad():
        expected = Own.forward if kind is Own else None
        answer = run(model, other) if expected else model(other.transpose(0, 1) if kind is BatchFirst else other)
    answer = answer.transpose(0, 1) if kind is BatchFirst else answer
    torch.testing.assert_close(exact, answer, rtol=0, atol=1e-5)
    assert answer.any()
    write(tmp_path / "own.nir", network.float())
    again = read(tmp_path / "own.nir")
    torch.testing.assert_close(run(again, other.float()), run(network, other.float()), rtol=0, atol=0)


def test_layers_that_take_all_steps_as_one_batch() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.lif, self.fc, self.iaf = (
                nn.Conv2d(2, 4, 3),
                norse.LIF(LIF),
                nn.Linear(16, 5),
                norse.IAF(IAF),
            )
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(3)

        def forward(self, x: Tensor) -> Tensor:
            z, _ = self.lif(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            z, _ = self.iaf(self.fc(z.flatten(2).flatten(0, 1)).unflatten(0, x.shape[:2]))
            return z  # type: ignore[no-any-return]

    model = Merged().eval()
    network = trace(model, spikes(2, 4, 4))
    with torch.no_grad():
        expected = model.double()(spikes(2, 4, 4, seed=2).double())
    assert expected.any() and torch.equal(run(network.double(), spikes(2, 4, 4, seed=2).double()), expected)


def test_modules_of_whole_sequences() -> None:
    class Lifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features = nn.Sequential(norse.Lift(nn.Conv2d(2, 4, 3)), norse.Lift(nn.BatchNorm2d(4)))
            self.lif, self.fc, self.iaf = norse.LIF(LIF), norse.Lift(nn.Linear(16, 5)), norse.IAF(IAF)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(3)

        def forward(self, x: Tensor) -> Tensor:
            z, _ = self.lif(self.features(x))
            z, _ = self.iaf(self.fc(torch.flatten(z, 2)))
            return z  # type: ignore[no-any-return]

    model, x = Lifted().eval(), spikes(2, 4, 4)
    network = trace(model, x)
    with torch.no_grad():
        expected = model.double()(spikes(2, 4, 4, seed=2).double())
    found = run(network.double(), spikes(2, 4, 4, seed=2).double())
    assert expected.any() and torch.equal(found, expected)


def test_what_is_traced_is_compressed_and_has_integers() -> None:
    model, shape = MODELS["residual"](Own)
    small, _ = compress(model, [spikes(*shape)], quantize=Quantize(4))
    network = trace(small, spikes(*shape))
    found = integers(network)
    assert found.keys() == {"fc1", "fc2", "fc3", "fc3b"}
    for name, entry in found.items():
        back = entry.codes * entry.scale[:, None]
        torch.testing.assert_close(back, small.get_submodule(name).weight.double(), rtol=1e-6, atol=0)
    with pytest.raises(
        UnsupportedModelError, match=r"Own does not say .*; give example=batch, by which sbc_plugin\.nir\.trace"
    ):
        graph_of(small)
    coded = graph_of(small, example=spikes(*shape), codes=True)
    assert (coded.nodes["fc1"].metadata["codes"] == found["fc1"].codes.numpy()).all()


def test_the_network_ends_where_it_is_told() -> None:
    """A class of labels, a sum over time: what has no node behind the last module is left out when it is said."""

    class Summed(Sequences):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum(0).log_softmax(-1)

    model, shape = MODELS["residual"](Summed)
    x = spikes(*shape)
    with pytest.raises(UnsupportedModelError, match=r"what the model returns: .*LogSoftmax.*give output='readout'"):
        trace(model, x)
    network = trace(model, x, output="readout")
    model.double()
    with torch.no_grad():
        summed = run(network.double(), x.double()).sum(0).log_softmax(-1)
        torch.testing.assert_close(summed, model(x.double()), rtol=0, atol=1e-5)
    with pytest.raises(SettingsError, match=r"output='fc9' is no module that ran; choose one of fc1, "):
        trace(model, x, output="fc9")
    inner = trace(model, x, output="lif1")
    assert inner.nodes.keys() == {"fc1", "lif1"} and inner.edges[-1] == ("lif1", "output")


def build(step: Callable[..., Tensor], **modules: nn.Module) -> Own:
    return Own(step, **modules)


REFUSED: dict[str, tuple[Own, type[CompressionError], str]] = {
    "max pooling": (
        build(
            lambda m, x, run, state: run("lif", m.fc(functional.max_pool1d(x, 2))), fc=fc(2, 4), lif=norse.LIFCell(LIF)
        ),
        UnsupportedModelError,
        r"'fc': .*MaxPool.* between the model's input and it",
    ),
    "concatenation": (
        build(
            lambda m, x, run, state: run("lif", m.fc(torch.cat([m.a(x), m.b(x)], -1))),
            a=fc(5, 2),
            b=fc(5, 2),
            fc=fc(4, 4),
            lif=norse.LIFCell(LIF),
        ),
        UnsupportedModelError,
        "'fc': concatenation between 'a' and 'b' and it",
    ),
    "relu of currents that happen to be positive": (
        build(lambda m, x, run, state: run("lif", functional.relu(m.fc(x) + 0.0)), fc=fc(5, 4), lif=norse.LIFCell(LIF)),
        UnsupportedModelError,
        "'lif': Relu between 'fc' and it",
    ),
    "a constant added": (
        build(lambda m, x, run, state: run("lif", m.fc(x) + 1), fc=fc(5, 4), lif=norse.LIFCell(LIF)),
        UnsupportedModelError,
        "'lif': something between 'fc' and it",
    ),
    "two currents multiplied": (
        build(lambda m, x, run, state: run("lif", m.a(x) * m.b(x)), a=fc(5, 4), b=fc(5, 4), lif=norse.LIFCell(LIF)),
        UnsupportedModelError,
        "'lif': Mul between 'a' and 'b' and it",
    ),
    "a way hidden from autograd": (
        build(lambda m, x, run, state: run("lif", m.fc(x).detach()), fc=fc(5, 4), lif=norse.LIFCell(LIF)),
        UnsupportedModelError,
        "'lif': no way leads from the model's input to it; detach",
    ),
    "a module that serves twice": (
        build(lambda m, x, run, state: run("lif", m.fc(m.fc(x))), fc=fc(5, 5), lif=norse.LIFCell(LIF)),
        UnsupportedModelError,
        r"'fc' is called 24 times in 12 time steps",
    ),
    "a silent neuron": (
        build(
            lambda m, x, run, state: run("lif2", m.fc(run("lif1", x))),
            lif1=norse.LIFCell(LIF._replace(v_th=torch.tensor(99.0))),
            fc=fc(5, 4),
            lif2=norse.LIFCell(LIF),
        ),
        SettingsError,
        "'fc': module 'lif1' gives nothing but 0; take an example in which it is active",
    ),
    "a neuron without a node": (
        build(lambda m, x, run, state: run("lif", m.fc(x)), fc=fc(5, 4), lif=norse.LSNNCell()),
        UnsupportedModelError,
        "'lif': LSNNCell has no counterpart in NIR",
    ),
    "BatchNorm before anything": (
        build(
            lambda m, x, run, state: run("lif", m.fc(m.bn(x))),
            bn=nn.BatchNorm1d(5),
            fc=fc(5, 4),
            lif=norse.LIFCell(LIF),
        ),
        UnsupportedModelError,
        "'bn': BatchNorm has no counterpart in NIR; it can be folded",
    ),
    "a delay without a loop": (
        build(
            lambda m, x, run, state: (
                run("lif2", m.fc(state.get("z", torch.zeros(len(x), 5, dtype=x.dtype)))),
                state.update(z=run("lif1", x)),
            )[0],
            lif1=norse.LIFCell(LIF),
            fc=fc(5, 4),
            lif2=norse.LIFCell(LIF),
        ),
        UnsupportedModelError,
        "Own answers otherwise than the graph of its modules",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_node_does_is_named(kind: str) -> None:
    model, error, message = REFUSED[kind]
    if kind.startswith("relu"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
    x = spikes(4 if kind == "max pooling" else 5)
    with pytest.raises(error, match=message):
        trace(model, x)


@pytest.mark.parametrize("output", [None, "lif2", "fc2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float, output: str | None) -> None:
    model, shape = MODELS["chain"](Own)
    with torch.no_grad():
        model.get_submodule("fc2").weight[0, 0] = value  # type: ignore[index]
    with pytest.raises(UnsupportedModelError, match=r"module 'fc2' gives NaN or infinity"):
        trace(model, spikes(*shape), output=output)


def test_an_example_has_steps() -> None:
    model, shape = MODELS["chain"](Own)
    for wrong in (spikes(*shape)[:1], torch.rand(5, 5)):
        with pytest.raises(CalibrationError, match=r"no time steps of its own"):
            trace(model, wrong)
