"""Small NIR graphs of every kind, with parameters that differ from neuron to neuron, and how to run what is read."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import nir
import numpy
import torch
from torch import Tensor, nn

DT = 1e-3


def values(seed: int) -> Callable[..., Any]:
    """``draw(shape, low, high)``: uniform numbers."""
    generator = numpy.random.default_rng(seed)
    return lambda shape, low, high: generator.uniform(low, high, shape)


def weight(seed: int, *shape: int) -> Any:
    generator = numpy.random.default_rng(seed)
    scale = 3 / numpy.prod(shape[1:]) ** 0.5
    return (scale * (generator.standard_normal(shape) + 0.4)).astype(numpy.float32)


def lif(*shape: int, seed: int = 0, plain: bool = False) -> Any:
    draw = values(seed)
    one, zero = numpy.ones(shape), numpy.zeros(shape)
    tau, v_threshold = draw(shape, 2e-3, 8e-3), draw(shape, 0.5, 1.0)
    if plain:
        return nir.LIF(tau=tau, r=one, v_leak=zero, v_threshold=v_threshold)
    r, leak, reset = draw(shape, 0.5, 2), draw(shape, -0.2, 0.2), draw(shape, -0.3, 0)
    return nir.LIF(tau=tau, r=r, v_leak=leak, v_threshold=v_threshold, v_reset=reset)


def cuba(*shape: int, seed: int = 0) -> Any:
    draw = values(seed)
    return nir.CubaLIF(
        tau_syn=draw(shape, 2e-3, 6e-3),
        tau_mem=draw(shape, 2e-3, 8e-3),
        r=draw(shape, 1.0, 2.0),
        v_leak=draw(shape, -0.1, 0.1),
        v_threshold=draw(shape, 0.5, 1.0),
        v_reset=draw(shape, -0.3, 0),
        w_in=draw(shape, 1.0, 3.0),
    )


def norses_lif(*shape: int, seed: int = 0) -> Any:
    """Each spike adds 1 to the current, at a step of 2 DT: Norse's LIF."""
    node = cuba(*shape, seed=seed)
    return replace(node, r=numpy.ones(shape), w_in=node.tau_syn / (2 * DT))


def integrate_and_fire(*shape: int, seed: int = 0, plain: bool = False) -> Any:
    draw = values(seed)
    if plain:
        return nir.IF(r=numpy.ones(shape), v_threshold=draw(shape, 1.5, 3.0))
    return nir.IF(r=draw(shape, 0.5, 1.5), v_threshold=draw(shape, 1.5, 3.0), v_reset=draw(shape, -0.5, 0.5))


def graph(inputs: tuple[int, ...], outputs: tuple[int, ...], nodes: dict[str, Any], edges: list[Any]) -> Any:
    ends = {"input": nir.Input(numpy.array(inputs)), "output": nir.Output(numpy.array(outputs))}
    return nir.NIRGraph(ends | nodes, edges, type_check=False)


def chain(inputs: tuple[int, ...], outputs: tuple[int, ...], **nodes: Any) -> Any:
    path = ["input", *nodes, "output"]
    return graph(inputs, outputs, nodes, list(pairwise(path)))


def dense(neuron: Callable[..., Any]) -> Any:
    bias = numpy.linspace(-0.1, 0.2, 6).astype(numpy.float32)
    fc1, fc2 = nir.Affine(weight(0, 6, 5), bias), nir.Linear(weight(1, 4, 6))
    return chain((5,), (4,), fc1=fc1, n1=neuron(6, seed=2), fc2=fc2, n2=neuron(4, seed=3))


def convolutional() -> Any:
    """Strides, padding, groups and an oblong kernel; both poolings; Flatten as NIR counts axes, without batch."""
    return chain(
        (2, 8, 8),
        (3,),
        conv1=nir.Conv2d((8, 8), weight(0, 4, 2, 3, 3), 1, 1, 1, 1, numpy.full(4, 0.1, numpy.float32)),
        lif1=lif(4, 8, 8, seed=1),
        pool1=nir.AvgPool2d(numpy.array([2, 2]), numpy.array([2, 2]), numpy.array([0, 0])),
        conv2=nir.Conv2d((4, 4), weight(2, 6, 2, 3, 1), 1, (1, 0), 1, 2, numpy.zeros(6, numpy.float32)),
        if2=integrate_and_fire(6, 4, 4, seed=3),
        pool2=nir.SumPool2d(numpy.array([2, 2]), numpy.array([2, 2]), numpy.array([0, 0])),
        flat=nir.Flatten(numpy.array([6, 2, 2]), 0, -1),
        fc=nir.Linear(weight(4, 3, 24)),
        cuba=cuba(3, seed=5),
    )


def convolutional_1d() -> Any:
    """Conv1d with a stride; a Scale; the answer is the membrane of an integrator."""
    return chain(
        (2, 9),
        (3,),
        conv=nir.Conv1d(9, weight(0, 4, 2, 3), 2, 0, 1, 1, numpy.full(4, 0.1, numpy.float32)),
        lif=lif(4, 4),
        flat=nir.Flatten(numpy.array([4, 4]), 0, -1),
        fc=nir.Linear(weight(1, 3, 16)),
        scale=nir.Scale(numpy.array([0.5, 1.0, 1.5])),
        out=nir.LI(tau=values(2)(3, 2e-3, 8e-3), r=numpy.full(3, 0.4), v_leak=numpy.full(3, 0.1)),
    )


def recurrent(neuron: Callable[..., Any], nested: bool = False) -> Any:
    """fc1 -> hidden <-> w_rec, hidden -> fc2 -> n2; flat, or with hidden and w_rec in a graph of their own."""
    w_rec = nir.Affine(0.5 * weight(7, 6, 6), numpy.zeros(6, numpy.float32))
    outer = {"fc1": nir.Linear(weight(0, 6, 5)), "fc2": nir.Linear(weight(1, 4, 6)), "n2": neuron(4, seed=3)}
    if nested:
        loop = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
        inner = graph((6,), (6,), {"lif": neuron(6, seed=2), "w_rec": w_rec}, loop)
        path = ["input", "fc1", "hidden", "fc2", "n2", "output"]
        return graph((5,), (4,), outer | {"hidden": inner}, list(pairwise(path)))
    # Norse's import answers with the node it visits last: the output only if the loop stands before the way out
    edges = [("hidden.w_rec", "hidden.lif"), ("n2", "output"), ("hidden.lif", "hidden.w_rec"), ("hidden.lif", "fc2")]
    edges += [("fc1", "hidden.lif"), ("input", "fc1"), ("fc2", "n2")]
    return graph((5,), (4,), outer | {"hidden.lif": neuron(6, seed=2), "hidden.w_rec": w_rec}, edges)


def residual() -> Any:
    """n1 reaches n2 through two weights and directly; the short way stands first."""
    nodes = {"fc1": nir.Linear(weight(0, 5, 5)), "n1": lif(5), "fc2": nir.Linear(weight(1, 5, 5)), "n2": lif(5, seed=1)}
    edges = [("input", "fc1"), ("fc1", "n1"), ("n1", "n2"), ("n1", "fc2"), ("fc2", "n2"), ("n2", "output")]
    return graph((5,), (5,), nodes, edges)


GRAPHS: dict[str, Callable[[], Any]] = {
    "LIF": lambda: dense(lif),
    "CubaLIF": lambda: dense(cuba),
    "Norse's LIF": lambda: dense(norses_lif),
    "IF": lambda: dense(integrate_and_fire),
    "conv": convolutional,
    "conv1d": convolutional_1d,
    "recurrent LIF": lambda: recurrent(lif),
    "recurrent CubaLIF": lambda: recurrent(cuba),
    "nested": lambda: recurrent(cuba, nested=True),
    "residual": residual,
}


def spikes(shape: tuple[int, ...], steps: int = 25, batch: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((steps, batch, *shape), generator=generator) < 0.5).float()


def run(model: nn.Module, x: Tensor) -> Tensor:
    """(T, B, ...), by the plain loop."""
    outputs, state = [], None
    with torch.no_grad():
        for step in x:
            output, state = model(step, state)
            outputs.append(output)
    return torch.stack(outputs)
