"""A NIR file or graph as a Norse model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy
import torch
from torch import nn
from torch.nn.utils import skip_init

from sbc_plugin.errors import CheckpointError, SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.nir.network import Edge, Network, running_order, shape_after
from sbc_plugin.nir.neuron_nodes import NEURON_NODES, Gain, Reset, neuron_of, reset_named

DEFAULT_DT = 1e-3  # s; that of Norse's own import
Shape = tuple[int, ...]


def read(source: str | Path | Any, *, dt: float | None = None, reset_method: str | Reset | None = None) -> Network:
    """The network of a NIR file or graph, one time step a call: ``output, state = network(x, state)``.

    Every number of the file counts: r, w_in, v_leak and v_reset too. Flatten leaves the batch alone, nested graphs are
    unfolded, inputs that meet are added, and an edge that closes a loop takes one time step.

    Args:
        source: path of a .nir file, or a ``nir.NIRGraph``.
        dt: step of time, s. NIR knows only continuous time; None = what :func:`sbc_plugin.nir.write` noted in the file,
            else 1e-3 s. The result says it: ``network.dt``.
        reset_method: "reset_value" (to v_reset, as NIR has it), "reset_subtract" (of the threshold), or a function of
            ``norse.torch.functional.reset``; None = what was noted in the file, else "reset_value".

    Returns:
        A model in eval mode that ``compress`` and ``compare`` take, in float32.

    Raises:
        CheckpointError: no such file, no NIR, or a graph whose shapes do not fit.
        UnsupportedModelError: a node that Norse or this package does not have.
        SettingsError: dt not positive or longer than a time constant, or an unknown reset method.
    """
    graph = source if isinstance(source, nir.NIRGraph) else _load(Path(source))
    noted = graph.metadata if isinstance(graph.metadata, dict) else {}
    dt = float(noted.get("dt", DEFAULT_DT) if dt is None else dt)
    if not dt > 0:
        raise SettingsError(f"dt={dt:g} is no step of time; give seconds, e.g. 1e-3")
    reset = reset_named(noted.get("reset_method", "reset_value") if reset_method is None else reset_method)
    nodes, edges = _unfolded(graph)
    start, end = _end(nodes, nir.Input), _end(nodes, nir.Output)
    shape = nodes[start].input_type["input"]
    if shape is None:
        raise UnsupportedModelError(f"input {start!r} has no shape; give nir.Input the shape of one time step")
    shapes = {start: tuple(int(size) for size in shape)}
    order, delayed = running_order(edges, start)
    unreached = sorted(nodes.keys() - set(order))
    if unreached or end not in order:
        raise CheckpointError(f"nodes {unreached} get no input; connect them, or take them out")
    modules: dict[str, nn.Module] = {}
    for node in order[1:]:
        taken = shapes[next(source for source, target in edges if target == node and (source, target) not in delayed)]
        with in_layer(node):
            shapes[node] = taken
            if node != end:
                kind = nodes[node]
                whole = isinstance(kind, nir.Flatten) and _feeds_weight(node, nodes, edges, taken)
                modules[node] = _module_of(kind, taken, dt, reset, whole)
                shapes[node] = _shape_after(modules[node], kind, taken)
    for node in order[1:]:
        meeting = {shapes[source] for source, target in edges if target == node}
        if len(meeting) > 1:
            raise CheckpointError(f"node {node!r}: inputs of shapes {sorted(meeting)} meet; the graph is damaged")
    return Network(modules, edges, (start, end), shapes[start], dt, reset).eval()


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a .nir file")
    try:
        return nir.read(path, type_check=False)  # its check has grouped convolutions and oblong kernels wrong
    except (AssertionError, OSError, KeyError, ValueError, TypeError) as error:
        unknown = sorted(_types(path) - set(nir.ir.__all__)) if isinstance(error, AssertionError) else []
        if unknown:
            raise UnsupportedModelError(
                f"{path} holds nodes of type {', '.join(unknown)}, which nir {nir.version} does not know; "
                "install a newer nir, or take them out"
            ) from None
        raise CheckpointError(f"{path} cannot be read as NIR: {error}; write it again with nir.write") from error


def _types(path: Path) -> set[str]:
    types: set[str] = set()

    def visit(name: str, item: Any) -> None:
        if name.rpartition("/")[2] == "type" and isinstance(item, h5py.Dataset):
            types.add(str(item.asstr()[()]))

    with h5py.File(path, "r") as file:
        file["node"].visititems(visit)
    return types


def _unfolded(graph: Any) -> tuple[dict[str, Any], list[Edge]]:
    """Nodes and edges with nested graphs put in place, their nodes named "graph.node".

    Raises:
        CheckpointError: an edge to a node that is not there.
    """
    nodes, edges = dict(graph.nodes), list(dict.fromkeys((str(a), str(b)) for a, b in graph.edges))
    for edge in edges:
        if not nodes.keys() >= set(edge):
            raise CheckpointError(f"the graph does not hold both ends of the edge {edge}; the graph is damaged")
    for name, inner in [(name, node) for name, node in nodes.items() if isinstance(node, nir.NIRGraph)]:
        with in_layer(name):
            within, links = _unfolded(inner)
            start, end = (f"{name}.{_end(within, kind)}" for kind in (nir.Input, nir.Output))
        del nodes[name]
        nodes |= {f"{name}.{key}": node for key, node in within.items()}
        edges = [(end if a == name else a, start if b == name else b) for a, b in edges]
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in links]
        for port in (start, end):
            del nodes[port]
            edges = without(port, edges)
    return nodes, edges


def without(node: str, edges: list[Edge]) -> list[Edge]:
    """The edges once ``node``, which changes nothing, is taken out and its neighbours are joined.

    >>> without("b", [("a", "b"), ("b", "c"), ("b", "d")])
    [('a', 'c'), ('a', 'd')]
    """
    sources, targets = [a for a, b in edges if b == node], [b for a, b in edges if a == node]
    return [edge for edge in edges if node not in edge] + [(a, b) for a in sources for b in targets]


def _end(nodes: dict[str, Any], kind: type) -> str:
    names = [name for name, node in nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise UnsupportedModelError(
            f"the graph has {len(names)} nodes of type {kind.__name__} ({', '.join(names) or 'none'}); it must have one"
        )
    return names[0]


def _feeds_weight(name: str, nodes: dict[str, Any], edges: list[Edge], shape: Shape) -> bool:
    """Whether a matrix behind this Flatten takes all of its input, as where a tool counted the batch as axis 0."""
    behind = [nodes[target] for source, target in edges if source == name]
    return any(isinstance(n, nir.Linear | nir.Affine) and n.weight.shape[-1] == numpy.prod(shape) for n in behind)


def _module_of(node: Any, shape: Shape, dt: float, reset: Reset, whole: bool) -> nn.Module:
    if isinstance(node, NEURON_NODES):
        sizes = [numpy.shape(value) for name, value in vars(node).items() if name in _PER_NEURON]
        if not all(numpy.prod(size) == 1 or _spreads(size, shape) for size in sizes):
            raise CheckpointError(f"{type(node).__name__} of shape {sizes[0]} gets an input of shape {shape}")
        return neuron_of(node, dt, reset)
    if isinstance(node, nir.Flatten):
        first, last = int(node.start_dim), int(node.end_dim)
        return nn.Flatten() if whole else nn.Flatten(first + (first >= 0), last + (last >= 0))
    for kind, make in _PLAIN.items():
        if isinstance(node, kind):
            return make(node)
    raise UnsupportedModelError(
        f"NIR's {type(node).__name__} has no rule; those with one are Linear, Affine, Scale, Conv1d, Conv2d, "
        "SumPool2d, AvgPool2d, Flatten, LIF, CubaLIF, LI, CubaLI and IF"
    )


def _spreads(size: Shape, shape: Shape) -> bool:
    """Whether parameters of this size are those of neurons of that shape, or the same along some axes."""
    return len(size) == len(shape) and all(own in (1, whole) for own, whole in zip(size, shape, strict=True))


_PER_NEURON = ("tau", "tau_mem", "tau_syn", "r", "v_leak", "v_threshold", "v_reset", "w_in")


def _shape_after(module: nn.Module, node: Any, shape: Shape) -> Shape:
    try:
        return shape_after(module, shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{type(node).__name__} does not take an input of shape {shape}: {error}") from error


def _linear(node: Any) -> nn.Module:
    weight = _values(node.weight)
    if weight.dim() != 2:
        raise UnsupportedModelError(f"a weight of shape {tuple(weight.shape)} has no rule; use a matrix")
    bias = getattr(node, "bias", None)
    return _filled(skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _convolution(node: Any) -> nn.Module:
    weight = _values(node.weight)
    axes, groups = weight.dim() - 2, int(node.groups)
    bias = None if node.metadata.get("bias") == "none" else node.bias
    padding = node.padding if isinstance(node.padding, str) else _whole(node.padding, axes)
    try:
        module = skip_init(
            nn.Conv1d if axes == 1 else nn.Conv2d,
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_whole(node.stride, axes),
            padding=padding,
            dilation=_whole(node.dilation, axes),
            groups=groups,
            bias=bias is not None,
        )
    except ValueError as error:
        raise UnsupportedModelError(f"torch has no such convolution: {error}") from error
    return _filled(module, weight, bias)


def _filled(module: Any, weight: torch.Tensor, bias: Any) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(_values(bias))
    filled: nn.Module = module
    return filled


def _values(array: Any) -> torch.Tensor:
    return torch.as_tensor(numpy.asarray(array, numpy.float32), device="cpu")


def _whole(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(int(number) for number in numpy.broadcast_to(numpy.asarray(value), (axes,)))


def _pair(value: Any) -> tuple[int, int]:
    first, second = _whole(value, 2)
    return first, second


def _pooling(node: Any) -> nn.Module:
    kernel, stride, padding = (_pair(value) for value in (node.kernel_size, node.stride, node.padding))
    # An average over a divisor of 1 is a sum, and linear for autograd too; nn.LPPool2d is not.
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)


def _gain(node: Any) -> nn.Module:
    return Gain(_values(node.scale))


_PLAIN: dict[type, Callable[[Any], nn.Module]] = {
    nir.Linear: _linear,
    nir.Affine: _linear,
    nir.Conv1d: _convolution,
    nir.Conv2d: _convolution,
    nir.SumPool2d: _pooling,
    nir.AvgPool2d: _pooling,
    nir.Scale: _gain,
}
