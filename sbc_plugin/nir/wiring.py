"""How the modules of a model are connected: of :func:`sbc_plugin.nir.read`, Norse's import, or a SequentialState."""

from collections.abc import Container
from itertools import pairwise
from typing import Any, NamedTuple

import norse.torch as norse
from nirtorch.graph_executor import GraphExecutor
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import Tensor, nn

from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.nir.network import Edge, Network
from sbc_plugin.nir.reading import Shape, without

TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


class Wiring(NamedTuple):
    """A model as modules and edges.

    Attributes:
        modules: by node, those that change nothing left out.
        edges: between nodes and the two ends.
        ends: the names of input and output.
        input_shape: of one time step of one sequence; None if the model does not say.
        leading: axes before a sequence's own: batch, or time and batch.
    """

    modules: dict[str, nn.Module]
    edges: list[Edge]
    ends: tuple[str, str]
    input_shape: Shape | None
    leading: int


def is_wired(model: nn.Module) -> bool:
    """Whether the model says how its modules are connected."""
    return isinstance(model, Network | GraphExecutor | nn.Sequential)


def wiring_of(model: nn.Module) -> Wiring:
    """Modules and edges of a model that was read, of ``norse.from_nir``, or of a SequentialState.

    Raises:
        UnsupportedModelError: a model of another kind.
    """
    shape: Shape | None = None
    if isinstance(model, Network):
        modules = {node: model.module_of(node) for node in model.nodes.values()}
        edges, ends, shape = list(model.edges), model.ends, model.input_shape
    elif isinstance(model, GraphExecutor):
        modules, edges, ends = _executed(model)
    elif isinstance(model, nn.Sequential):
        modules = dict(_chain(model, ""))
        ends = (free("input", modules), free("output", modules))
        path = [ends[0], *modules, ends[1]]
        edges = list(pairwise(path))
    else:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not say how its modules are connected; give example=batch, by which "
            "sbc_plugin.nir.trace finds it out"
        )
    for name in [name for name, module in modules.items() if isinstance(module, TRANSPARENT)]:
        del modules[name]
        edges = without(name, edges)
    if shape is None:
        first = [modules[b] for a, b in edges if a == ends[0] and b in modules]
        sizes = {m.weight.shape[1] for m in first if isinstance(m, nn.Linear)}  # norse.from_nir swaps in_features
        weights = [m.input_weights for m in first if hasattr(m, "input_weights")]
        sizes |= {weight.shape[1] for weight in weights if isinstance(weight, Tensor)}
        shape = (sizes.pop(),) if len(sizes) == 1 else None
    sequence = any(isinstance(module, SNN | SNNRecurrent | norse.Lift) for module in modules.values())
    return Wiring(modules, edges, ends, shape, 2 if sequence else 1)


def free(name: str, taken: Container[str]) -> str:
    """The name, with "_" behind it as often as makes it free."""
    while name in taken:
        name += "_"
    return name


def _chain(model: nn.Module, prefix: str) -> Any:
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            yield from _chain(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def _executed(model: Any) -> tuple[dict[str, nn.Module], list[Edge], tuple[str, str]]:
    """Modules, edges and ends of a graph of Norse's import; graphs inside of it are opened up.

    Raises:
        UnsupportedModelError: a graph without an input or an output.
    """
    ports = {getattr(node.elem, "node_type", None): node.name for node in model.graph.node_list}
    if "input" not in ports or "output" not in ports:
        raise UnsupportedModelError("the graph has no input or no output node; read the file with sbc_plugin.nir.read")
    ends = (ports["input"], ports["output"])
    modules = {node.name: node.elem for node in model.graph.node_list if node.name not in ends}
    edges = [(str(a), str(b)) for a, b in model.graph.get_edges()]
    for name in [name for name, module in modules.items() if isinstance(module, GraphExecutor)]:
        inner, within, (first, last) = _executed(modules.pop(name))
        inside = {node: f"{name}.{node}" for node in inner}
        modules |= {inside[node]: module for node, module in inner.items()}
        ways_in, ways_out = ([inside[b] for a, b in within if a == first], [inside[a] for a, b in within if b == last])
        joined = [(inside[a], inside[b]) for a, b in within if a in inside and b in inside]
        for a, b in edges:
            starts, stops = ways_out if a == name else [a], ways_in if b == name else [b]
            joined += [(start, stop) for start in starts for stop in stops]
        edges = joined
    return modules, edges, ends
