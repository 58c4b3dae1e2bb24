"""A NIR file or graph as a Norse model."""

from math import inf, prod
from pathlib import Path
from typing import Any

import nir
import numpy
from torch import nn

from sbc_plugin.errors import CheckpointError, SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.nir.hdf5 import DEEPEST, MAX_BYTES, read_tree
from sbc_plugin.nir.network import Edge, Network, running_order, shape_after
from sbc_plugin.nir.neuron_nodes import NEURON_NODES, PER_NEURON, Reset, neuron_of, reset_named
from sbc_plugin.nir.plain_nodes import flatten, plain_module, whole_numbers

DEFAULT_DT = 1e-3  # s; that of Norse's own import
MOST_EDGES = 10**6  # that stand for one node once it is taken out
NUMBER_BYTES = 4  # of a float32
Shape = tuple[int, ...]


def read(
    source: str | Path | Any,
    *,
    dt: float | None = None,
    reset_method: str | Reset | None = None,
    max_bytes: int = MAX_BYTES,
) -> Network:
    """The network of a NIR file or graph, one time step a call: ``output, state = network(x, state)``.

    Every number of the file counts: r, w_in, v_leak and v_reset too. Flatten leaves the batch alone, nested graphs are
    unfolded, inputs that meet are added, and an edge that closes a loop takes one time step. A file is checked before
    anything of it is read; one that leads into other files is refused.

    Args:
        source: path of a .nir file, or a ``nir.NIRGraph``.
        dt: step of time, s. NIR knows only continuous time; None = what :func:`sbc_plugin.nir.write` noted in the file,
            else 1e-3 s. The result says it: ``network.dt``.
        reset_method: "reset_value" (to v_reset, as NIR has it), "reset_subtract" (of the threshold), or a function of
            ``norse.torch.functional.reset``; None = what was noted in the file, else "reset_value".
        max_bytes: that the arrays of a file together, or what a node hands on, may take.

    Returns:
        A model in eval mode that ``compress`` and ``compare`` take, in float32.

    Raises:
        CheckpointError: no such file, no NIR, values that are no finite numbers, a graph whose shapes do not fit, or
            more than ``max_bytes``.
        UnsupportedModelError: a node that Norse or this package does not have.
        SettingsError: dt not positive or longer than a time constant, or an unknown reset method.
    """
    graph = source if isinstance(source, nir.NIRGraph) else _load(Path(source), max_bytes)
    dt, reset = _clock(graph, dt), _reset(graph, reset_method)
    nodes, edges = _unfolded(graph)
    start, end = _end(nodes, nir.Input), _end(nodes, nir.Output)
    order, delayed = running_order(edges, start)
    unreached = sorted(nodes.keys() - set(order))
    if unreached or end not in order:
        raise CheckpointError(f"nodes {unreached} get no input; connect them, or take them out")
    sources: dict[str, list[str]] = {node: [] for node in order}
    for edge in edges:
        if edge[1] == start:
            raise CheckpointError(f"the edge {edge} leads into the graph's input; the graph is damaged")
        if edge not in delayed:
            sources[edge[1]].append(edge[0])
    with in_layer(start):
        shapes = {start: _input_shape(nodes[start], max_bytes)}
    readers: dict[str, list[Any]] = {node: [] for node in order}
    for before, behind in edges:
        readers[before].append(nodes[behind])
    modules: dict[str, nn.Module] = {}
    for node in order[1:]:
        taken = shapes[sources[node][0]]
        with in_layer(node):
            shapes[node] = taken
            if node != end:
                modules[node], shapes[node] = _module_of(nodes[node], taken, readers[node], dt, reset)
                _check_size(shapes[node], max_bytes)
    for edge in edges:
        first = shapes[sources[edge[1]][0]]
        if shapes[edge[0]] != first:
            meeting = sorted({first, shapes[edge[0]]})
            raise CheckpointError(f"node {edge[1]!r}: inputs of shapes {meeting} meet; the graph is damaged")
    return Network(modules, edges, (start, end), shapes[start], dt, reset).eval()


def _load(path: Path, max_bytes: int) -> Any:
    content = read_tree(path, "node", max_bytes)
    if unknown := sorted(_types(content) - set(nir.ir.__all__)):
        raise UnsupportedModelError(
            f"{path} holds nodes of type {', '.join(unknown)}, which nir {nir.version} does not know; "
            "install a newer nir, or take them out"
        )
    try:
        _check_nodes(content)
        if content["type"] != "NIRGraph":
            raise ValueError(f"it holds a single {content['type']}, no graph")
        # NIR's own check has grouped convolutions and oblong kernels wrong
        with numpy.errstate(all="ignore"):
            return nir.dict2NIRNode(content | {"type_check": False})
    except Exception as error:  # of a damaged file nir raises whatever it stumbles over
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as NIR: {reason}; write it again with nir.write") from error


def _types(content: dict[str, Any]) -> set[str]:
    """The types of a node and of all nodes inside it."""
    inside = [item for item in content.values() if isinstance(item, dict)]
    own = {content["type"]} if isinstance(content.get("type"), str) else set()
    return own.union(*map(_types, inside))


def _check_nodes(content: dict[str, Any]) -> None:
    """Refuse what nir takes without a look: notes that are no table, and weights that it would spread to any size.

    Raises:
        ValueError: there is such a thing.
    """
    if not isinstance(content.get("metadata", {}), dict):
        raise ValueError("its metadata is no table of names")
    if "type_check" in content:
        raise ValueError("a node has no 'type_check'")
    size, own = numpy.shape(content.get("w_in", 0.0)), numpy.shape(content.get("v_leak", 0.0))
    if prod(size) != 1 and size != own:
        raise ValueError(f"w_in has shape {size}, v_leak {own}")
    for node in content["nodes"].values() if isinstance(content.get("nodes"), dict) else ():
        _check_nodes(node)


def _clock(graph: Any, given: float | None) -> float:
    """The step of time, s: as it is given, else as the graph notes it.

    Raises:
        SettingsError: it is given, and is no positive number.
        CheckpointError: the graph notes something else.
    """
    dt = _noted(graph).get("dt", DEFAULT_DT) if given is None else given
    single = numpy.asarray(dt)
    if single.size == 1 and single.dtype.kind in "iuf" and 0 < float(single.reshape(())) < inf:
        return float(single.reshape(()))
    if given is None:
        raise CheckpointError(f"the file notes the step of time dt={dt!r}, no positive number; give dt= in seconds")
    shown = f"{dt:g}" if isinstance(dt, int | float) else repr(dt)
    raise SettingsError(f"dt={shown} is no step of time; give seconds, e.g. 1e-3")


def _reset(graph: Any, given: str | Reset | None) -> Reset:
    """The reset method: as it is given, else as the graph notes it.

    Raises:
        SettingsError: an unknown one.
        CheckpointError: the graph notes something that is no name.
    """
    noted = _noted(graph).get("reset_method", "reset_value")
    if given is None and not isinstance(noted, str):
        raise CheckpointError(f"the file notes reset_method={noted!r}, no name; give reset_method=")
    return reset_named(noted if given is None else given)


def _noted(graph: Any) -> dict[str, Any]:
    return graph.metadata if isinstance(graph.metadata, dict) else {}


def _input_shape(node: Any, max_bytes: int) -> Shape:
    shape = node.input_type["input"]
    if shape is None:
        raise UnsupportedModelError("the input has no shape; give nir.Input the shape of one time step")
    whole = whole_numbers(shape)
    _check_size(whole, max_bytes)
    return whole


def _check_size(shape: Shape, max_bytes: int) -> None:
    """Refuse shapes of what a node hands on that are none, or that would take too much memory.

    Raises:
        CheckpointError: it is such a shape.
    """
    if min(shape, default=1) < 1:
        raise CheckpointError(f"shape {shape} of one time step has an axis without values; the graph is damaged")
    if NUMBER_BYTES * prod(shape) > max_bytes:
        raise CheckpointError(
            f"shape {shape} of one time step takes {NUMBER_BYTES * prod(shape):,} bytes, more than "
            f"max_bytes={max_bytes:,}; give a larger limit if the file is to be trusted"
        )


def _unfolded(graph: Any, depth: int = 0) -> tuple[dict[str, Any], list[Edge]]:
    """Nodes and edges with nested graphs put in place, their nodes named "graph.node".

    Raises:
        CheckpointError: an edge to a node that is not there, two nodes of one name, or more than can be unfolded.
    """
    nodes, edges = dict(graph.nodes), list(dict.fromkeys((str(a), str(b)) for a, b in graph.edges))
    if depth > DEEPEST:
        raise CheckpointError(f"graphs lie in each other more than {DEEPEST} deep; the graph is damaged")
    for edge in edges:
        if not nodes.keys() >= set(edge):
            raise CheckpointError(f"the graph does not hold both ends of the edge {edge}; the graph is damaged")
    for name, inner in [(name, node) for name, node in nodes.items() if isinstance(node, nir.NIRGraph)]:
        with in_layer(name):
            within, links = _unfolded(inner, depth + 1)
            start, end = (f"{name}.{_end(within, kind)}" for kind in (nir.Input, nir.Output))
        del nodes[name]
        if twice := sorted(key for key in within if f"{name}.{key}" in nodes):
            raise CheckpointError(f"two nodes are called '{name}.{twice[0]}'; rename one of them")
        nodes |= {f"{name}.{key}": node for key, node in within.items()}
        edges = [(end if a == name else a, start if b == name else b) for a, b in edges]
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in links]
        for port in (start, end):
            del nodes[port]
            edges = without(port, edges)
    return nodes, edges


def without(node: str, edges: list[Edge]) -> list[Edge]:
    """The edges once ``node``, which changes nothing, is taken out and its neighbours are joined.

    Raises:
        CheckpointError: they are more than a million.

    >>> without("b", [("a", "b"), ("b", "c"), ("b", "d")])
    [('a', 'c'), ('a', 'd')]
    """
    sources, targets = [a for a, b in edges if b == node], [b for a, b in edges if a == node]
    if len(sources) * len(targets) > MOST_EDGES:
        raise CheckpointError(f"node {node!r} joins {len(sources)} nodes with {len(targets)}, which are too many edges")
    return [edge for edge in edges if node not in edge] + [(a, b) for a in sources for b in targets]


def _end(nodes: dict[str, Any], kind: type) -> str:
    names = [name for name, node in nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise UnsupportedModelError(
            f"the graph has {len(names)} nodes of type {kind.__name__} ({', '.join(names) or 'none'}); it must have one"
        )
    return names[0]


def _module_of(node: Any, shape: Shape, readers: list[Any], dt: float, reset: Reset) -> tuple[nn.Module, Shape]:
    """The module of a node whose input has this shape, and the shape of its output.

    Raises:
        CheckpointError: values or shapes that do not fit.
        UnsupportedModelError: there is no rule for the node.
    """
    kind = type(node).__name__
    if isinstance(node, NEURON_NODES):
        sizes = [numpy.shape(value) for name, value in vars(node).items() if name in PER_NEURON]
        if not all(prod(size) == 1 or _spreads(size, shape) for size in sizes):
            raise CheckpointError(f"{kind} of shape {sizes[0]} gets an input of shape {shape}")
        return neuron_of(node, dt, reset), shape
    if isinstance(node, nir.Scale) and (size := numpy.shape(node.scale)) and not _spreads(size, shape):
        raise CheckpointError(f"{kind} of shape {size} gets an input of shape {shape}")
    flat = isinstance(node, nir.Flatten)
    module = flatten(node, _feeds_weight(readers, shape)) if flat else plain_module(node)
    if module is None:
        raise UnsupportedModelError(
            f"NIR's {kind} has no rule; those with one are Linear, Affine, Scale, Conv1d, Conv2d, SumPool2d, "
            "AvgPool2d, Flatten, LIF, CubaLIF, LI, CubaLI and IF"
        )
    try:
        return module, shape_after(module, shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{kind} does not take an input of shape {shape}: {error}") from error


def _feeds_weight(readers: list[Any], shape: Shape) -> bool:
    """Whether a matrix behind a Flatten takes all of its input, as where a tool counted the batch as axis 0."""
    return any(isinstance(n, nir.Linear | nir.Affine) and numpy.shape(n.weight)[-1:] == (prod(shape),) for n in readers)


def _spreads(size: Shape, shape: Shape) -> bool:
    """Whether parameters of this size are those of neurons of that shape, or the same along some axes."""
    return len(size) == len(shape) and all(own in (1, whole) for own, whole in zip(size, shape, strict=True))
