"""Seeded random networks that NIR can hold: Norse's chains in step and sequence mode, and graphs of NIR's own nodes.

A chain may hold a module without a counterpart in NIR; then it says which. A graph comes with the numbers that NIR's
equations give for it, computed by NumPy alone in :func:`follow`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import nir
import norse.torch as norse
import numpy
import torch
from torch import Tensor, nn

from integration_tests.strangers.parts import Draw

DT = 1e-3  # s


@dataclass(frozen=True)
class Chain:
    """A ``SequentialState`` with a batch that drives it.

    Attributes:
        model: in eval mode.
        batch: (T, B, *shape).
        shape: of one time step of one sequence.
        sequence: whether the model takes all steps at once.
        foreign: name of the first module that NIR has no counterpart of; None if there is none.
    """

    model: nn.Module
    batch: Tensor
    shape: tuple[int, ...]
    sequence: bool
    foreign: str | None

    def run(self, model: Any, batch: Tensor) -> Tensor:
        """The output of the model itself, (T, B, ...)."""
        return model(batch)[0] if self.sequence else stepped(model, batch)


def stepped(model: Any, batch: Tensor) -> Tensor:
    """(T, B, ...), by the plain loop."""
    state, outputs = None, []
    for x in batch:
        y, state = model(x, state)
        outputs.append(y)
    return torch.stack(outputs)


def chain(seed: int) -> Chain:
    """The chain of a seed; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw = Draw(seed)
        draw.axes = draw.choice([0, 0, 1, 2, 2])
        maker = _Maker(draw, sequence=draw.chance(0.4), dt=draw.choice([1e-3, 1e-3, 5e-4, 2e-3]))
        shape = maker.shape
        modules = maker.modules()
        foreign = _with_foreign(draw, modules, maker.sequence) if draw.chance(0.12) else None
        if draw.chance(0.15) and len(modules) > 2 and foreign is None and not maker.sequence:
            modules = [norse.SequentialState(*modules[:2]), *modules[2:]]
        model = norse.SequentialState(*modules).eval()
        _drive(model)
        dtype = torch.float64 if draw.chance(0.2) else torch.float32
        batch = (torch.rand(draw.integer(6, 12), 3, *shape) < 0.5).to(dtype)
    return Chain(model.to(dtype), batch, shape, maker.sequence, foreign)


class _Maker:
    """Modules that fit each other, one after the other."""

    def __init__(self, draw: Draw, sequence: bool, dt: float) -> None:
        self.draw, self.sequence, self.dt = draw, sequence, dt
        self.shape: tuple[int, ...] = (draw.integer(3, 6), *[{1: 7, 2: 6}.get(draw.axes, 0)] * draw.axes)
        self.subtract = draw.chance(0.2) and not sequence
        self.channels = self.shape[0]

    def modules(self) -> list[nn.Module]:
        draw, size = self.draw, self.shape[1] if self.draw.axes else 1
        modules: list[nn.Module] = []
        for _ in range(draw.integer(1, 2) if draw.axes else 0):
            kernel, stride, padding = min(size, draw.choice([1, 2, 3])), draw.choice([1, 1, 2]), draw.choice([0, 1])
            groups = 2 if self.channels % 2 == 0 and draw.chance(0.3) else 1
            outputs = draw.width()
            layer = (nn.Conv1d, nn.Conv2d)[draw.axes - 1](
                self.channels, outputs, kernel, stride, padding, groups=groups, bias=draw.chance(0.6)
            )
            modules.append(norse.Lift(layer) if self.sequence else layer)
            self.channels, size = outputs, (size + 2 * padding - kernel) // stride + 1
            modules.append(self.neuron())
            if draw.axes == 2 and size >= 2 and draw.chance(0.4):
                pool = draw.choice([nn.AvgPool2d(2), nn.LPPool2d(1, 2), nn.AvgPool2d(2, divisor_override=1)])
                modules.append(norse.Lift(pool) if self.sequence else pool)
                size //= 2
            if draw.chance(0.2):
                modules.append(nn.Dropout(0.3))
        if draw.axes:
            modules.append(nn.Flatten(2) if self.sequence else nn.Flatten())
            self.channels *= size**draw.axes
            draw.axes = 0
        for _ in range(draw.integer(1, 3)):
            modules += self.dense()
        if draw.chance(0.3):
            modules.append(nn.Linear(self.channels, draw.integer(2, 4)))
        elif draw.chance(0.3) and not self.sequence:
            modules.append(norse.LILinearCell(self.channels, draw.integer(2, 4), dt=self.dt))
        return modules

    def dense(self) -> list[nn.Module]:
        outputs = self.draw.width()
        inputs, self.channels = self.channels, outputs
        if self.draw.chance(0.25) and not self.subtract:
            kind = norse.LIFRecurrent if self.sequence else norse.LIFRecurrentCell
            return [kind(inputs, outputs, self.lif(), dt=self.dt)]
        return [nn.Linear(inputs, outputs, bias=self.draw.chance(0.6)), self.neuron()]

    def value(self, low: float, high: float) -> Tensor:
        if self.draw.chance(0.3):
            return low + (high - low) * torch.rand(self.channels, *[1] * self.draw.axes)
        return torch.tensor(low + (high - low) * torch.rand(()).item())

    def leak(self) -> Tensor:
        """One number: the first state of some of Norse's neurons takes no other."""
        return torch.tensor(self.draw.choice([0.0, 0.0, -0.1, 0.05]))

    def lif(self) -> Any:
        return norse.LIFParameters(
            tau_mem_inv=self.value(100, 450),
            tau_syn_inv=self.value(100, 450),
            v_leak=self.leak(),
            v_th=self.value(0.2, 0.6),
            v_reset=self.value(-0.2, 0.0),
        )

    def neuron(self) -> nn.Module:
        kinds = ["lif", "iaf", "li"] if self.sequence else ["lif", "box", "box", "iaf", "li", "li box"]
        kind = "box" if self.subtract else self.draw.choice(kinds)
        if kind == "lif":
            return (norse.LIF if self.sequence else norse.LIFCell)(self.lif(), dt=self.dt)
        if kind == "box":
            lif = self.lif()
            box = norse.LIFBoxParameters(lif.tau_mem_inv, lif.v_leak, lif.v_th, lif.v_reset)
            if self.subtract:
                box = box._replace(reset_method=norse.functional.reset.reset_subtract)
            return norse.LIFBoxCell(box, dt=self.dt)
        if kind == "iaf":
            iaf = norse.IAFParameters(v_th=self.value(0.5, 1.5), v_reset=self.value(-0.2, 0.2))
            return (norse.IAF if self.sequence else norse.IAFCell)(iaf, dt=self.dt)
        if kind == "li box":
            return norse.LIBoxCell(norse.LIBoxParameters(self.value(100, 450), self.leak()), dt=self.dt)
        li = norse.LIParameters(self.value(100, 450), self.value(100, 450), self.leak())
        return (norse.LI if self.sequence else norse.LICell)(li, dt=self.dt)


def _with_foreign(draw: Draw, modules: list[nn.Module], sequence: bool) -> str:
    """Put a module without a counterpart behind another one; the name under which it stands."""
    place = draw.integer(1, len(modules))
    options: list[nn.Module] = [nn.ReLU(), nn.Softmax(-1), nn.Hardtanh()]
    options += [norse.LIFEx()] if sequence else [norse.LIFRefracCell(), norse.LIFExCell(), norse.LSNNCell()]
    modules.insert(place, draw.choice(options))
    return str(place)


@torch.no_grad()
def _drive(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.copy_(3.0 * (torch.randn(parameter.shape) + 0.3) / parameter[0].numel() ** 0.5)
            if name.endswith("recurrent_weights"):
                parameter.fill_diagonal_(0.0)


@dataclass(frozen=True)
class Graph:
    """A graph of NIR's nodes.

    Attributes:
        source: the ``nir.NIRGraph``.
        batch: (T, B, *shape), float64.
        subtract: whether neurons subtract their threshold.
        expected: what NIR's equations give, (T, B, *outputs).
        margin: how near any membrane came to its threshold.
    """

    source: Any
    batch: Tensor
    subtract: bool
    expected: Tensor
    margin: float


def graph(seed: int) -> Graph:
    """The graph of a seed: nodes in a row, with ways around them and ways back."""
    draw, numbers = Draw(seed), numpy.random.default_rng(seed)
    inputs = draw.integer(3, 6)
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    last, width, spiking = "input", inputs, list[tuple[str, int]]()
    for number in range(draw.integer(1, 4)):
        outputs = draw.integer(2, 6)
        weight = _weight(numbers, outputs, width)
        bias = numbers.uniform(-0.2, 0.3, outputs)
        nodes[f"w{number}"] = nir.Affine(weight, bias) if draw.chance(0.5) else nir.Linear(weight)
        edges.append((last, f"w{number}"))
        last, width = f"w{number}", outputs
        if draw.chance(0.2):
            nodes[f"s{number}"] = nir.Scale(numbers.uniform(0.5, 2.0, width))
            edges.append((last, f"s{number}"))
            last = f"s{number}"
        nodes[f"n{number}"] = _neuron(draw, numbers, width)
        edges.append((last, f"n{number}"))
        last = f"n{number}"
        if draw.chance(0.35):  # its own output comes back through a matrix
            nodes[f"r{number}"] = nir.Linear(0.5 * _weight(numbers, width, width))
            edges += [(last, f"r{number}"), (f"r{number}", last)]
        for name, size in spiking:  # an earlier neuron reaches this one by a way of its own
            if draw.chance(0.3):
                nodes[f"{name}_{last}"] = nir.Linear(_weight(numbers, width, size))
                edges += [(name, f"{name}_{last}"), (f"{name}_{last}", last)]
        spiking.append((last, width))
    edges.append((last, "output"))
    ends = {"input": nir.Input(numpy.array([inputs])), "output": nir.Output(numpy.array([width]))}
    subtract = draw.chance(0.3)
    source = nir.NIRGraph(ends | nodes, edges, type_check=False)
    if draw.chance(0.25):
        source = _nested(source)
    x = (numbers.uniform(size=(draw.integer(6, 20), 3, inputs)) < 0.5).astype(numpy.float64)
    expected, margin = follow(nodes, edges, x, subtract)
    return Graph(source, torch.from_numpy(x), subtract, torch.from_numpy(expected), margin)


def _nested(source: Any) -> Any:
    """The same graph inside another one."""
    ends = {"input": source.nodes["input"], "output": source.nodes["output"]}
    return nir.NIRGraph(ends | {"net": source}, list(pairwise(["input", "net", "output"])), type_check=False)


def _weight(numbers: Any, rows: int, columns: int) -> Any:
    return (2.5 * (numbers.standard_normal((rows, columns)) + 0.3) / columns**0.5).astype(numpy.float32)


def _neuron(draw: Draw, numbers: Any, width: int) -> Any:
    def value(low: float, high: float) -> Any:
        """Numbers that float32 holds, so that reading changes none."""
        return numbers.uniform(low, high, width).astype(numpy.float32).astype(numpy.float64)

    tau = {"tau": value(2e-3, 9e-3), "r": value(0.5, 2.0), "v_leak": value(-0.2, 0.2)}
    cuba = {
        "tau_syn": value(2e-3, 9e-3),
        "tau_mem": value(2e-3, 9e-3),
        "r": value(0.5, 2.0),
        "v_leak": value(-0.2, 0.2),
    }
    cuba["w_in"] = value(1.0, 3.0)
    if draw.chance(0.3):  # Norse's own synapse
        cuba |= {"w_in": cuba["tau_syn"] / DT, "r": numpy.ones(width)}
    limits = {"v_threshold": value(0.3, 1.0), "v_reset": value(-0.3, 0.0)}
    kind = draw.choice(["LIF", "LIF", "CubaLIF", "CubaLIF", "IF", "LI", "CubaLI"])
    if kind == "IF":
        return nir.IF(r=value(0.5, 1.5), **limits)
    if kind in ("LI", "CubaLI"):
        return nir.LI(**tau) if kind == "LI" else nir.CubaLI(**cuba)
    return nir.LIF(**tau, **limits) if kind == "LIF" else nir.CubaLIF(**cuba, **limits)


def follow(nodes: dict[str, Any], edges: list[tuple[str, str]], x: Any, subtract: bool) -> tuple[Any, float]:
    """NIR's equations in steps of DT from rest, (T, B, ...), and how near any membrane came to its threshold.

    An edge from a node that has not been computed in this step hands on what its source sent the step before.
    """
    order, memory, margin = _order(nodes, edges), dict[str, Any](), float("inf")
    sent: dict[str, Any] = {}
    outputs = []
    for step in x:
        now: dict[str, Any] = {"input": step}
        for name in order:
            arrived = [now[a] if a in now else sent.get(a) for a, b in edges if b == name]
            total = sum(value for value in arrived if value is not None)
            node = nodes[name]
            if isinstance(node, nir.Scale):
                now[name] = numpy.float32(node.scale) * total
            elif hasattr(node, "weight"):
                bias = numpy.float64(numpy.float32(node.bias)) if hasattr(node, "bias") else 0.0
                now[name] = total @ numpy.float64(node.weight).T + bias
            else:
                now[name], memory[name], near = _step(node, total, memory.get(name), subtract)
                margin = min(margin, near)
        outputs.append(sum(now[a] for a, b in edges if b == "output"))
        sent = now
    return numpy.stack(outputs), margin


def _order(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> list[str]:
    """Nodes as they were made: weights before their neurons, ways back last, ways around before their end."""
    order: list[str] = []
    numbers = [name[1:] for name in nodes if name.startswith("n") and "_" not in name]
    for number in numbers:
        around = [a for a, b in edges if b == f"n{number}" and "_" in a]
        order += [name for name in (f"w{number}", f"s{number}", *around, f"n{number}", f"r{number}") if name in nodes]
    return order


def _rate(tau: Any) -> Any:
    """DT / tau, with the inverse rounded as float32 holds it."""
    return DT * numpy.float64(numpy.float32(1 / numpy.float64(tau)))


def _step(node: Any, x: Any, before: Any, subtract: bool) -> tuple[Any, Any, float]:
    leak = getattr(node, "v_leak", 0.0)
    start = node.v_reset if isinstance(node, nir.IF) else leak
    i, v = before if before is not None else (numpy.zeros_like(x), numpy.zeros_like(x) + start)
    if isinstance(node, nir.CubaLIF | nir.CubaLI):
        i = i + _rate(node.tau_syn) * (-i + numpy.float32(node.w_in) * x)
        v = v + _rate(node.tau_mem) * (leak - v + node.r * i)
    elif isinstance(node, nir.IF):
        v = v + node.r * x
    else:
        v = v + _rate(node.tau) * (leak - v + node.r * x)
    if not hasattr(node, "v_threshold"):
        return v, (i, v), float("inf")
    z = (v > node.v_threshold).astype(numpy.float64)
    near = float(numpy.abs(v - node.v_threshold).min())
    return z, (i, (1 - z) * v + z * (v - node.v_threshold if subtract else node.v_reset)), near
