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

from sbc_plugin.torch_pruning.coupled_channels import CoupledChannels
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, group_of, run_once, trace_inputs
from sbc_plugin.torch_pruning.rehearsal import rehearse
from sbc_plugin.torch_pruning.replay import Replay

Run = Callable[[nn.Module, Any], Any]


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
    unsuspected = {name: group for name, group in groups.items() if name not in problems}
    problems |= rehearse(replay, graph, unsuspected, num_heads or {})
    return Audit(tuple(replay.layers), tuple((name, problems[name]) for name in replay.layers if name in problems))


def _tangled(graph: Any, group: Any) -> str:
    reasons = getattr(graph, "sbc_tangled", {})
    cut = [item.dep.target for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)]
    found = [reasons[node] for node in cut if node in reasons]
    return f"its channels are mixed, or put where no group can follow them, by {found[0]}" if found else ""
