"""Which groups of a pruner must not be cut, and what would help; which layers a step leaves whole."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sbc_plugin.torch_pruning.audit import Audit, Run, rehearse
from sbc_plugin.torch_pruning.graph.dependency_graph import group_of
from sbc_plugin.torch_pruning.graph.nodes import Parts
from sbc_plugin.torch_pruning.rehearsal import Rehearsal
from sbc_plugin.torch_pruning.replay import Replay


def with_way_out(audited: Audit, pruner: Any, example_inputs: Any, forward_fn: Run) -> dict[str, str]:
    """The audit's problems, layer -> reason, with what would help.

    Where a split deals a layer's channels to equal parts, and the layer is right if each part loses as many, the reason
    says how to ask for that.

    Args:
        audited: what the audit found.
        pruner: of torch-pruning.
        example_inputs: as for torch-pruning.
        forward_fn: ``forward_fn(model, example_inputs)``.
    """
    model, graph, dealt, found = pruner.model, pruner.DG, pruner.out_channel_groups, dict(audited.problems)
    layers = {name: model.get_submodule(name) for name in found if name not in audited.unknown}
    parts = {name: _equal_parts(graph, layer) for name, layer in layers.items()}
    parts = {name: count for name, count in parts.items() if count > max(1, dealt.get(layers[name], 1))}
    if parts:
        tried = dealt | {layers[name]: count for name, count in parts.items()}
        groups = {name: group_of(graph, layers[name], range(graph.get_out_channels(layers[name]))) for name in parts}
        left = rehearse(Replay(model, example_inputs, forward_fn), graph, groups, tried)
        for name in parts.keys() - left.keys():
            found[name] += (
                f"; its channels are dealt to {parts[name]} equal parts, and can be cut if each part loses as many: "
                f"out_channel_groups={{model.{name}: {parts[name]}}}"
            )
    return found


def _equal_parts(graph: Any, layer: nn.Module) -> int:
    """The most equal parts that a split makes of channels of this layer; 1 for none."""
    group = group_of(graph, layer, range(graph.get_out_channels(layer)))
    sizes = [item.dep.target.module.sizes for item in group.items if isinstance(item.dep.target.module, Parts)]
    return max((len(each) for each in sizes if len(set(each)) == 1), default=1)


def plan_problems(pruner: Any, plans: Iterable[Any], example_inputs: Any, forward_fn: Run) -> dict[str, str]:
    """Layers -> reason, for the groups of one step that break the model when they are cut as planned.

    Whole heads are left out, because a model has to be told their new number after the cut.

    Args:
        pruner: of torch-pruning.
        plans: groups of torch-pruning, with the channels that are about to go.
        example_inputs: as for torch-pruning.
        forward_fn: ``forward_fn(model, example_inputs)``.
    """
    plans = [plan for plan in plans if not (pruner.prune_num_heads and pruner._is_atten_group(plan)[0])]
    if not plans:
        return {}
    rehearsal = Rehearsal(Replay(pruner.model, example_inputs, forward_fn), pruner.DG, pruner.out_channel_groups)
    together = rehearsal.wrong(plans)
    if not together:
        return {}
    roots = [pruner.DG._module2name.get(plan[0].dep.target.module, "") for plan in plans]
    alone = {root: rehearsal.wrong([plan]) for root, plan in zip(roots, plans, strict=True)}
    wrong = {root: reason for root, reason in alone.items() if reason}
    return wrong or {root: together for root in roots}


def refusal(problems: Mapping[str, str]) -> str:
    """What to tell of layers that must not be cut, layer -> reason: each reason once, and the line that helps."""
    layers: dict[str, list[str]] = {}
    for name, reason in problems.items():
        layers.setdefault(reason, []).append(name)
    reasons = [
        f"{names[0]!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in layers.items()
    ]
    count, them = ("1 layer", "it") if len(problems) == 1 else (f"{len(problems)} layers", "them")
    return (
        f"cutting {count} would break the model: {'; '.join(reasons)}. Keep {them} whole, so that the others are cut: "
        f"ignored_layers=[model.get_submodule(name) for name in {list(problems)}]; nothing was cut"
    )


def left_whole(pruner: Any, plans: Iterable[Any], problems: Mapping[str, str]) -> dict[str, str]:
    """Layer -> reason, for the layers that shall lose channels and have lost none, nor lose any in this step.

    Args:
        pruner: of torch-pruning.
        plans: groups of torch-pruning, with the channels that are about to go.
        problems: layer -> reason why its channels must not be cut.
    """
    graph, names = pruner.DG, pruner.DG._module2name
    cut = {module for plan in plans for module in _senders(graph, plan)}
    found = {}
    for layer in graph.module2node:
        counts = isinstance(layer, tuple(pruner.root_module_types)) and layer not in pruner.ignored_layers
        if not counts or layer in cut or not pruner.get_target_pruning_ratio(layer) > 0:
            continue
        count = graph.get_out_channels(layer)
        group = group_of(graph, layer, range(count))
        kept = [names[module] for module in _senders(graph, group) if module in pruner.ignored_layers]
        if count < pruner.layer_init_out_ch[layer]:
            continue  # an earlier step has cut it
        if count == 1:
            reason = "it has one channel"
        elif kept:
            reason = f"its channels go with those of {kept[0]!r}, which is ignored"
        elif names[layer] in problems:
            reason = problems[names[layer]]
        elif all(graph.is_out_channel_pruning_fn(item.dep.handler) for item in group.items):
            reason = "no layer reads its channels"
        else:
            reason = "its share of the pruning ratio is less than what can be cut of it"
        found[names[layer]] = reason
    return found


def _senders(graph: Any, group: Any) -> list[Any]:
    return [i.dep.target.module for i in group.items if graph.is_out_channel_pruning_fn(i.dep.handler) and i.idxs]
