"""Which channels belong together, found by changing each and watching who notices, without any dependency graph."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from sbc_plugin.torch_pruning.consumers import is_depthwise
from sbc_plugin.torch_pruning.graph.dependency_graph import group_of
from sbc_plugin.torch_pruning.readers import MIXED, readers_of
from sbc_plugin.torch_pruning.replay import Replay

Channel = tuple[str, str, int]  # layer, "out" or "in", number


class CoupledChannels:
    """Sets of channels that have to go together, by union and find over all that depend on each other.

    Args:
        replay: of the model.

    Attributes:
        mixed: layers with a reader whose inputs depend on several of their channels each.
    """

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.mixed: set[str] = set()
        self._names = {layer: name for name, layer in replay.layers.items()}
        self._parent: dict[Channel, Channel] = {}
        # A layer with one channel is never cut, and as a mask it reaches channels that do not belong together.
        names = [name for name in replay.layers if replay.channels(name) > 1]
        for name, readers in readers_of(replay, names).items():
            for reader, numbers in readers.items():
                if (numbers == MIXED).any():
                    self.mixed.add(name)
                for position, channel in enumerate(numbers.tolist()):
                    if channel >= 0:
                        self._join((name, "out", channel), (reader, "in", position))
            if is_depthwise(replay.layers[name]):
                for channel in range(replay.channels(name)):
                    self._join((name, "out", channel), (name, "in", channel))
        self._sets: dict[Channel, set[Channel]] = defaultdict(set)
        for member in list(self._parent):
            self._sets[self._root(member)].add(member)

    def with_outputs(self, name: str, channels: Iterable[int]) -> set[Channel]:
        """These outputs of a layer, and all channels that have to go with them."""
        found = {(name, "out", channel) for channel in channels}
        return found.union(*(self._sets[self._root(channel)] for channel in list(found)))

    def difference(self, graph: Any, name: str, group: Any) -> str:
        """What is wrong with the group that a graph makes of a layer's outputs; "" if nothing is.

        Where channels are mixed, nothing can be said here; the rehearsal decides.
        """
        members = {self._names.get(item.dep.target.module, "") for item in group.items}
        if members & self.mixed:
            return ""
        count = self.replay.channels(name)
        if count == 1 or not any(side == "in" for _, side, _ in self.with_outputs(name, range(count))):
            return ""  # it has no channel to spare, or no layer reads it, only the model's user does
        # 1. The group holds the right channels: for all outputs of the layer, and for three of them alone.
        for channels in (range(count), *([c] for c in sorted({0, count // 2, count - 1}))):
            claimed = self._claimed(graph, group_of(graph, self.replay.layers[name], channels))
            true = self.with_outputs(name, channels)
            if claimed != true:
                return "its group is wrong: " + _message({"missing": true - claimed, "too many": claimed - true})
        # 2. Each of them goes with the right output of the layer.
        for item in group.items:
            for (layer, side, number), root in zip(self._channels(graph, item), item.root_idxs, strict=False):
                if self._root((layer, side, number)) != self._root((name, "out", root)):
                    return f"channel {root} is paired with the wrong {side}put {number} of {layer!r}"
        return ""

    def _claimed(self, graph: Any, group: Any) -> set[Channel]:
        return {channel for item in group.items for channel in self._channels(graph, item)}

    def _channels(self, graph: Any, item: Any) -> list[Channel]:
        """The channels that one item of a group cuts; none where its module is no layer."""
        layer = item.dep.target.module
        if layer not in self._names:
            return []
        sides = ["out"] if graph.is_out_channel_pruning_fn(item.dep.handler) else ["in"]
        if is_depthwise(layer):
            sides = ["out", "in"]
        return [(self._names[layer], side, number) for side in sides for number in item.idxs]

    def _root(self, channel: Channel) -> Channel:
        while self._parent.setdefault(channel, channel) != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def _join(self, a: Channel, b: Channel) -> None:
        self._parent[self._root(a)] = self._root(b)


def _message(differences: dict[str, set[Channel]]) -> str:
    counts = Counter((what, side, layer) for what, channels in differences.items() for layer, side, _ in channels)
    return "; ".join(f"{what} {n} {side}puts of {layer!r}" for (what, side, layer), n in sorted(counts.items()))
