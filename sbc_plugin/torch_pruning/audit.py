"""Ground truth for coupled channels: does a dependency graph say what the model really does?

Two questions, both asked of the model with linear neurons. *Who reads a channel?* Channels of each layer are changed
and every layer's inputs watched; what belongs together has to be what the graph's groups say. *Is the cut right?* In a
copy, one channel of every group is cut; its output has to be that of the model with these channels set to 0.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, run_once, tensors_in, trace_inputs
from sbc_plugin.torch_pruning.graph.neuron_pruners import NeuronPruner
from sbc_plugin.torch_pruning.graph.nodes import Junction, Parts
from sbc_plugin.torch_pruning.replay import MIXED, Replay, linear_neurons, outputs_without

Channel = tuple[str, str, int]  # layer, "out" or "in", number
Run = Callable[[nn.Module, Any], Any]
HINT = " (queries, keys and values need num_heads)"
TOLERANCE = 1e-4  # of the largest output: single precision, summed in another order


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found.

    Attributes:
        layers: those that were checked as the root of a group.
        problems: (layer, reason) of each layer whose channels must not be cut.
    """

    layers: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether every group is exact."""
        return not self.problems

    def __str__(self) -> str:
        """A line a problem."""
        head = f"{len(self.layers)} layers, {len(self.layers) - len(self.problems)} exact"
        return "\n".join([head, *(f"  {layer}: {reason}" for layer, reason in self.problems)])


def audit(
    model: nn.Module,
    example_inputs: Any,
    graph: Any = None,
    *,
    num_heads: dict[nn.Module, int] | None = None,
    forward_fn: Run = run_once,
) -> Audit:
    """Compare a dependency graph with what changing and cutting channels really does. The model is left as it was.

    Args:
        model: as it was when the graph was built.
        example_inputs: as for torch-pruning.
        graph: a ``tp.DependencyGraph``; a new, exact one by default.
        num_heads: heads of the layers that make queries, keys and values, as given to the pruner; without it, cutting
            attention's channels is wrong and found to be so.
        forward_fn: ``forward_fn(model, example_inputs)``, as for torch-pruning, where calling the model is not enough.
    """
    if graph is None:
        with exact_tracing(model):
            graph = tp.DependencyGraph().build_dependency(model, trace_inputs(model, example_inputs), forward_fn)
    replay = Replay(model, example_inputs, forward_fn)
    problems: dict[str, str] = {}
    groups = {}
    for name, layer in replay.layers.items():
        if layer in graph.module2node and graph.get_pruner_of_module(layer).get_out_channels(layer) is not None:
            groups[name] = _group(graph, layer, range(graph.get_out_channels(layer)))
        else:
            problems[name] = "it is not in the dependency graph"
    truth = _Truth(replay)
    for name, group in groups.items():
        reason = _tangled(graph, group) or truth.differs(graph, name, group)
        if reason:
            problems[name] = reason
    unsuspected = {name: group for name, group in groups.items() if name not in problems}
    problems |= _rehearse(replay, graph, unsuspected, num_heads or {})
    return Audit(tuple(replay.layers), tuple((name, problems[name]) for name in replay.layers if name in problems))


def _group(graph: Any, layer: nn.Module, channels: Iterable[int]) -> Any:
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, list(channels))


def _tangled(graph: Any, group: Any) -> str:
    reasons = getattr(graph, "sbc_tangled", {})
    found = [reasons[item.dep.target] for item in group.items if item.dep.target in reasons]
    return f"its channels are mixed, or put where no group can follow them, by {found[0]}" if found else ""


class _Truth:
    """Channels that belong together, as found by changing them."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.names = {layer: name for name, layer in replay.layers.items()}
        self.parent: dict[Channel, Channel] = {}
        self.mixed: set[str] = set()
        for name, layer in replay.layers.items():
            for reader, numbers in replay.readers(name).items():
                if (numbers == MIXED).any():
                    self.mixed.add(name)
                for position, channel in enumerate(numbers.tolist()):
                    if channel >= 0:
                        self._join((name, "out", channel), (reader, "in", position))
            if _depthwise(layer):
                for channel in range(replay.channels(name)):
                    self._join((name, "out", channel), (name, "in", channel))
        self.classes: dict[Channel, set[Channel]] = defaultdict(set)
        for member in list(self.parent):
            self.classes[self._root(member)].add(member)

    def _root(self, channel: Channel) -> Channel:
        while self.parent.setdefault(channel, channel) != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def _join(self, a: Channel, b: Channel) -> None:
        self.parent[self._root(a)] = self._root(b)

    def together(self, name: str, channels: Iterable[int]) -> set[Channel]:
        """All that has to go with these outputs of a layer."""
        found = {(name, "out", channel) for channel in channels}
        return found.union(*(self.classes[self._root(channel)] for channel in list(found)))

    def differs(self, graph: Any, name: str, group: Any) -> str:
        """How a group differs from the truth, "" if it does not; where channels mix, only the rehearsal can show it."""
        members = {self.names.get(item.dep.target.module, "") for item in group.items}
        if members & self.mixed:
            return ""
        count = self.replay.channels(name)
        if not any(side == "in" for _, side, _ in self.together(name, range(count))):
            return ""  # only the model's user reads it
        for channels in (range(count), *([c] for c in sorted({0, count // 2, count - 1}))):
            claimed = self._claimed(graph, _group(graph, self.replay.layers[name], channels))
            true = self.together(name, channels)
            if claimed != true:
                return "its group is wrong: " + _told({"missing": true - claimed, "too many": claimed - true})
        for item in group.items:
            for (layer, side, number), root in zip(self._of(graph, item), item.root_idxs, strict=False):
                if self._root((layer, side, number)) != self._root((name, "out", root)):
                    return f"channel {root} is paired with the wrong {side}put {number} of {layer!r}"
        return ""

    def _claimed(self, graph: Any, group: Any) -> set[Channel]:
        return {channel for item in group.items for channel in self._of(graph, item)}

    def _of(self, graph: Any, item: Any) -> list[Channel]:
        layer = item.dep.target.module
        if layer not in self.names:
            return []
        sides = ["out"] if graph.is_out_channel_pruning_fn(item.dep.handler) else ["in"]
        return [
            (self.names[layer], side, i) for side in (("out", "in") if _depthwise(layer) else sides) for i in item.idxs
        ]


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == layer.out_channels > 1


def _told(differences: dict[str, set[Channel]]) -> str:
    counts = Counter((what, side, layer) for what, channels in differences.items() for layer, side, _ in channels)
    return "; ".join(f"{what} {n} {side}puts of {layer!r}" for (what, side, layer), n in sorted(counts.items()))


def _rehearse(replay: Replay, graph: Any, groups: dict[str, Any], num_heads: dict[nn.Module, int]) -> dict[str, str]:
    """Cut one channel of every group in a copy; where that is wrong, one group at a time, to say which."""
    plans: dict[str, Any] = {}
    covered: dict[nn.Module, str] = {}
    same: dict[str, str] = {}
    for name, group in groups.items():
        root = group[0].dep.target.module
        if root in covered:
            same[name] = covered[root]
        plan = _plan(graph, group, num_heads)
        if plan is not None and root not in covered:
            plans[name] = plan
            for item in group.items:
                if graph.is_out_channel_pruning_fn(item.dep.handler):
                    covered[item.dep.target.module] = name
    if not plans or not _cut_wrong(replay, graph, list(plans.values())):
        return {}
    wrong = {name: _cut_wrong(replay, graph, [plan]) for name, plan in plans.items()}
    wrong |= {name: wrong[leader] for name, leader in same.items() if leader in wrong}
    return {name: reason for name, reason in wrong.items() if reason}


def _plan(graph: Any, group: Any, num_heads: dict[nn.Module, int]) -> Any:
    """A group with one channel of each head or convolution group; None where nothing can be compared."""
    if any(isinstance(i.dep.target.module, Junction) and not i.dep.target.outputs for i in group.items):
        return None  # it reaches the model's output
    root = group[0].dep.target.module
    count, parts = graph.get_out_channels(root), [1]
    for item in group.items:
        module = item.dep.target.module
        parts.append(num_heads.get(module, 1) if isinstance(module, nn.Module) else 1)
        if isinstance(module, nn.modules.conv._ConvNd) and not _depthwise(module):
            parts.append(module.groups)
    size = count // max(parts)
    plan = _group(graph, root, range(0, size * max(parts), size)) if size > 1 else None
    return plan if plan is not None and graph.check_pruning_group(plan) else None


def _cut_wrong(replay: Replay, graph: Any, plans: list[Any]) -> str:
    """Why the copy with these groups cut is not the model with their channels set to 0; "" if it is."""
    # 1. Cut a copy of the model.
    copy = replay.library.copy_model(replay.model)
    cut = _cut(replay, graph, plans, copy)
    # 2. What the model itself computes with these channels at 0.
    restore = [_silence(parameter, axis, channels) for parameter, axis, channels in cut.parameters]
    try:
        expected = outputs_without(replay, cut.sent, cut.read)
    finally:
        for action in restore:
            action()
    # 3. What the copy computes.
    try:
        with linear_neurons(copy):
            outputs = tensors_in(replay.forward(copy, replay.inputs))
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the model does not run without one of its channels: {str(error).splitlines()[0]}{HINT}"
    if _equal(expected, outputs):
        return ""
    return f"without one of its channels the model is not the one with it set to 0{HINT}"


@dataclass
class _Cut:
    """What was cut out of a copy, by the modules and parameters of the model itself.

    Attributes:
        sent: layer or norm -> its output channels.
        read: layer -> its input channels.
        parameters: parameters of no layer: each with its axis and channels.
    """

    sent: dict[nn.Module, list[int]] = field(default_factory=dict)
    read: dict[nn.Module, list[int]] = field(default_factory=dict)
    parameters: list[tuple[nn.Parameter, int, list[int]]] = field(default_factory=list)


def _cut(replay: Replay, graph: Any, plans: list[Any], copy: nn.Module) -> _Cut:
    """Cut all groups out of the copy, each node's channels of all groups at once."""
    channels_of: dict[tuple[Any, Any], set[int]] = defaultdict(set)
    for plan in plans:
        for item in plan.items:
            if not isinstance(item.dep.target.module, Junction | Parts):
                channels_of[item.dep.target, item.dep.handler] |= set(item.idxs)
    names = {module: name for name, module in replay.model.named_modules()}
    copies = dict(copy.named_modules())
    cut = _Cut()
    for (node, handler), numbers in channels_of.items():
        channels, module, pruner = sorted(numbers), node.module, handler.__self__
        pruner.pruning_dim = node.pruning_dim
        if isinstance(module, nn.Parameter):
            _assign(copy, graph._param_to_name[module], handler(module, channels))
            cut.parameters.append((module, node.pruning_dim, channels))
        elif module in names:
            copied = copies[names[module]]
            if isinstance(pruner, NeuronPruner):
                pruner.axes[copied] = pruner.axes[module]
            handler(copied, channels)
            if replay.is_layer(module) and not graph.is_out_channel_pruning_fn(handler):
                cut.read[module] = channels
            elif replay.is_layer(module) or isinstance(module, nn.modules.batchnorm._NormBase):
                cut.sent[module] = channels
    return cut


def _silence(parameter: Tensor, axis: int, channels: list[int]) -> Callable[[], Any]:
    before = parameter.detach().clone()
    parameter.data.movedim(axis, 0)[channels] = 0
    return lambda: parameter.data.copy_(before)


def _assign(model: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(a.abs().max()))
        for a, b in zip(expected, found, strict=True)
    )
