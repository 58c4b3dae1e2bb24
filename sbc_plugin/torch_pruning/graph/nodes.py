"""The nodes and edges of torch-pruning's graph, built from sources and strides."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch_pruning as tp
from torch import nn

from sbc_plugin.torch_pruning.graph.layouts import Strides
from sbc_plugin.torch_pruning.graph.wiring import Source

Sources = frozenset[tuple[Source, Strides]]


class Junction(nn.Module):
    """The place where outputs meet, before a layer or at the model's end; channels of equal number are cut together."""


class Parts(nn.Module):
    """A concatenation or a split of channels.

    Attributes:
        sizes: channels of each part; they shrink as channels are cut.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def range_of(self, part: int) -> range:
        """The channels of one part."""
        ends = [0, *accumulate(self.sizes)]
        return range(ends[part], ends[part + 1])


class PartsPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Cuts the sizes of parts, which hold nothing else."""

    def prune_out_channels(self, layer: Parts, idxs: Sequence[int]) -> Parts:
        """Take the channels ``idxs`` off the parts that hold them."""
        held = [len(set(layer.range_of(part)) & set(idxs)) for part in range(len(layer.sizes))]
        layer.sizes = [size - gone for size, gone in zip(layer.sizes, held, strict=True)]
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> None:
        """None: parts set no limit of their own."""
        return None

    get_in_channels = get_out_channels


class StrideMapping:
    """An index mapping of torch-pruning: from a source's channels to positions, or back."""

    def __init__(self, strides: Strides, back: bool) -> None:
        self.take, self.give = (strides.spread, strides.group) if back else (strides.group, strides.spread)

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        """Map torch-pruning's indices, each with the root channel it belongs to."""
        found: dict[int, Any] = {}
        if self.take == self.give == 1:
            if len({index.idx for index in idxs}) == len(idxs):
                return list(idxs)
            for index in idxs:
                found.setdefault(index.idx, index)
            return list(found.values())
        for index in idxs:
            start = index.idx // self.take * self.give
            for position in range(start, start + self.give):
                found.setdefault(position, index._replace(idx=position))
        return list(found.values())


class PartMapping:
    """An index mapping of torch-pruning: from one part to the whole, or back."""

    def __init__(self, parts: Parts, part: int, back: bool) -> None:
        self.parts, self.part, self.back = parts, part, back

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        """Map torch-pruning's indices, each with the root channel it belongs to."""
        inside = self.parts.range_of(self.part)
        if self.back:
            return [index._replace(idx=index.idx - inside.start) for index in idxs if index.idx in inside]
        return [index._replace(idx=index.idx + inside.start) for index in idxs]


class Nodes:
    """Collects nodes and edges; the same sources at the same place give the same node.

    Attributes:
        module2node: what ``DependencyGraph._trace`` returns.
    """

    def __init__(self, graph: Any, unwrapped: dict[nn.Parameter, int]) -> None:
        self.graph = graph
        self.fixed = unwrapped
        self.module2node: dict[Any, Any] = {}
        self._built: dict[Any, Any] = {}
        self._edges: dict[tuple[Any, Any, Any], list[tuple[Any, Any]]] = {}

    def module(self, module: nn.Module) -> Source:
        """The source that a layer of the model is."""
        return Source(self._node(module, module, self.graph._module2name.get(module)))

    def junction(self, sources: Sources) -> Any:
        """The node where these sources meet; None for no sources."""
        if not sources:
            return None
        node = self._built.get(sources) or self._node(sources, Junction())
        for source, strides in sources:
            maps: list[tuple[Any, Any]] = []
            if source.part is not None:
                parts = source.node.module
                maps.append((PartMapping(parts, source.part, True), PartMapping(parts, source.part, False)))
            maps.append((StrideMapping(strides, False), StrideMapping(strides, True)))
            self._link(source.node, node, (source.part, strides), maps)
        return node

    def feed(self, sources: Sources, consumer: Any) -> None:
        """Link the place where these sources meet to the input of a node."""
        node = self.junction(sources)
        if node is not None:
            self._link(node, consumer, None, [])

    def concat(self, parts: list[tuple[Sources, int]]) -> Source:
        """The source that a concatenation is; each part is given by its sources and its size."""
        key = ("concat", *parts)
        if key not in self._built:
            node = self._node(key, Parts(size for _, size in parts))
            for number, (sources, _) in enumerate(parts):
                meeting = self.junction(sources)
                if meeting is not None:
                    maps = (PartMapping(node.module, number, False), PartMapping(node.module, number, True))
                    self._link(meeting, node, number, [maps])
        return Source(self._built[key])

    def split(self, sources: Sources, sizes: tuple[int, ...], part: int) -> Source:
        """The source that one part of a split is."""
        key = ("split", sources, sizes)
        if key not in self._built:
            self.feed(sources, self._node(key, Parts(sizes)))
        return Source(self._built[key], part)

    def parameter(self, value: nn.Parameter, axis: int | None = None) -> tuple[Source, int] | None:
        """The source that a parameter of no module is, and the axis on which it is cut; None if it has size 1 there.

        The axis that the user gave comes before ``axis``.
        """
        known = next((dim for parameter, dim in self.graph.unwrapped_parameters if parameter is value), None)
        if known is None:
            return None
        fixed = next((dim for parameter, dim in self.fixed.items() if parameter is value), None)
        chosen = fixed if fixed is not None else known if axis is None else axis
        if value.dim() < -chosen or value.shape[chosen] == 1:
            return None
        node = self._built.get(id(value)) or self._node(id(value), value, f"parameter {tuple(value.shape)}")
        self.graph._module2name[value] = f"parameter {tuple(value.shape)}"
        node.pruning_dim = chosen
        return Source(node), chosen

    def map_indices(self) -> None:
        """Give every dependency the mapping of its edge, once torch-pruning has made the dependencies."""
        forward: dict[Any, list[list[Any]]] = {node: [] for node in self.module2node.values()}
        backward: dict[Any, list[list[Any]]] = {node: [] for node in self.module2node.values()}
        for (start, end, _), maps in self._edges.items():
            backward[end].append([back for _, back in reversed(maps)])
            forward[start].append([there for there, _ in maps])
        for node in self.module2node.values():
            for dependency, maps_of in zip(node.dependencies, backward[node] + forward[node], strict=True):
                dependency.index_mapping = [*maps_of, None, None][:2]

    def _node(self, key: Any, module: Any, name: str | None = None) -> Any:
        if key not in self._built:
            node = tp.dependency.Node(module, None, name)
            self._built[key] = self.module2node[module] = node
        return self._built[key]

    def _link(self, start: Any, end: Any, key: Any, maps: list[tuple[Any, Any]]) -> None:
        edge = (start, end, key)
        if edge not in self._edges:
            self._edges[edge] = maps
            start.add_output(end)
            end.add_input(start)
