"""``audit``: does a dependency graph say what the model really does?

Two questions are answered, both with the model's neurons made linear. *Who reads a channel?* The channels of each layer
are changed while the inputs of all layers are watched, and the graph's groups have to hold the same channels together
(:mod:`.coupled_channels`). *Is the cut right?* One channel of every group is cut in a copy, alone and together with the
others, whose output has to be that of the model with these channels set to 0 (:mod:`.rehearsal`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch_pruning as tp
from torch import nn

from sbc_plugin.torch_pruning.consumers import is_depthwise
from sbc_plugin.torch_pruning.coupled_channels import CoupledChannels
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, group_of, run_once, trace_inputs
from sbc_plugin.torch_pruning.graph.nodes import Junction
from sbc_plugin.torch_pruning.rehearsal import Rehearsal
from sbc_plugin.torch_pruning.replay import Replay

Run = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found.

    Attributes:
        layers: those that were checked as the root of a group.
        problems: (layer, reason) of each layer whose channels must not be cut.
        unknown: those of them whose group the graph does not know, so that no way of cutting it helps.
    """

    layers: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    unknown: frozenset[str] = frozenset()

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
    num_heads: Mapping[nn.Module, int] | None = None,
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
            groups[name] = group_of(graph, layer, range(graph.get_out_channels(layer)))
        else:
            problems[name] = "it is not in the dependency graph"
    coupled = CoupledChannels(replay)
    for name, group in groups.items():
        reason = _tangled(graph, group) or coupled.difference(graph, name, group)
        if reason:
            problems[name] = reason
    unknown = frozenset(problems)
    known = {name: group for name, group in groups.items() if name not in unknown}
    problems |= rehearse(replay, graph, known, num_heads or {})
    found = tuple((name, problems[name]) for name in replay.layers if name in problems)
    return Audit(tuple(replay.layers), found, unknown)


def _tangled(graph: Any, group: Any) -> str:
    reasons = getattr(graph, "sbc_tangled", {})
    cut = [item.dep.target for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)]
    found = [reasons[node] for node in cut if node in reasons]
    return f"its channels are mixed, or put where no group can follow them, by {found[0]}" if found else ""


def rehearse(replay: Replay, graph: Any, groups: Mapping[str, Any], dealt: Mapping[Any, int]) -> dict[str, str]:
    """Cut a channel of each group in a copy, alone and all together; layer -> reason for the groups that go wrong.

    Each group is cut alone, because two cuts may cancel in what they do wrong.

    Args:
        replay: of the model.
        graph: that made the groups.
        groups: one for each layer that makes channels, by its name.
        dealt: layers whose channels are dealt to equal parts that lose as many each, with the number of parts.
    """
    # 1. One group for each set of coupled layers; its result holds for the other layers of the set.
    trials: dict[str, Any] = {}
    covered: dict[nn.Module, str] = {}
    same: dict[str, str] = {}
    for name, group in groups.items():
        root = group[0].dep.target.module
        if root in covered:
            same[name] = covered[root]
            continue
        trial = _trial(graph, group, dealt)
        if trial is not None:
            trials[name] = trial
            for item in group.items:
                if graph.is_out_channel_pruning_fn(item.dep.handler):
                    covered[item.dep.target.module] = name
    if not trials:
        return {}
    # 2. One at a time.
    rehearsal = Rehearsal(replay, graph, dealt)
    wrong = rehearsal.each_wrong({name: [trial] for name, trial in trials.items()})
    # 3. Those that are right alone have to be right together.
    right = [name for name, reason in wrong.items() if not reason]
    if len(right) > 1 and (reason := rehearsal.wrong([trials[name] for name in right])):
        wrong |= {name: f"{reason}, when {', '.join(map(repr, right))} are cut together" for name in right}
    wrong |= {name: wrong[leader] for name, leader in same.items() if leader in wrong}
    return {name: reason for name, reason in wrong.items() if reason}


def _trial(graph: Any, group: Any, dealt: Mapping[Any, int]) -> Any:
    """The group with one channel of each head or convolution group; None where nothing can be compared."""
    if any(isinstance(i.dep.target.module, Junction) and not i.dep.target.outputs for i in group.items):
        return None  # it reaches the model's output
    root = group[0].dep.target.module
    count, parts = graph.get_out_channels(root), [1]
    for item in group.items:
        module = item.dep.target.module
        parts.append(dealt.get(module, 1) if isinstance(module, nn.Module) else 1)
        if isinstance(module, nn.modules.conv._ConvNd) and not is_depthwise(module):
            parts.append(module.groups)
    size = count // max(parts)
    trial = group_of(graph, root, range(0, size * max(parts), size)) if size > 1 else None
    return trial if trial is not None and graph.check_pruning_group(trial) else None
