"""The rehearsal of a cut: in a copy of the model, one channel of every group goes before anything is really pruned."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.torch_pruning.consumers import is_depthwise
from sbc_plugin.torch_pruning.graph.dependency_graph import group_of, tensors_in
from sbc_plugin.torch_pruning.graph.neuron_pruners import NeuronPruner
from sbc_plugin.torch_pruning.graph.nodes import Junction, Parts
from sbc_plugin.torch_pruning.replay import Replay, linear_neurons, outputs_without

HINT = " (queries, keys and values need num_heads)"
TOLERANCE = 1e-4  # of the largest output: single precision, summed in another order

Cuts = dict[tuple[Any, Callable[..., Any]], list[int]]  # (node, pruning function) -> channels that go


def rehearse(replay: Replay, graph: Any, groups: dict[str, Any], num_heads: dict[nn.Module, int]) -> dict[str, str]:
    """Cut one channel of every group in a copy; layer -> reason for the groups whose cut is wrong.

    Args:
        replay: of the model.
        graph: that made the groups.
        groups: one for each layer that makes channels, by its name.
        num_heads: heads of the layers that make queries, keys and values.
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
        trial = _trial(graph, group, num_heads)
        if trial is not None:
            trials[name] = trial
            for item in group.items:
                if graph.is_out_channel_pruning_fn(item.dep.handler):
                    covered[item.dep.target.module] = name
    # 2. All of them at once: in most models every cut is right.
    if not trials or not _cut_wrong(replay, graph, list(trials.values())):
        return {}
    # 3. One at a time, to find which are wrong.
    wrong = {name: _cut_wrong(replay, graph, [trial]) for name, trial in trials.items()}
    wrong |= {name: wrong[leader] for name, leader in same.items() if leader in wrong}
    return {name: reason for name, reason in wrong.items() if reason}


def _trial(graph: Any, group: Any, num_heads: dict[nn.Module, int]) -> Any:
    """The group with one channel of each head or convolution group; None where nothing can be compared."""
    if any(isinstance(i.dep.target.module, Junction) and not i.dep.target.outputs for i in group.items):
        return None  # it reaches the model's output
    root = group[0].dep.target.module
    count, parts = graph.get_out_channels(root), [1]
    for item in group.items:
        module = item.dep.target.module
        parts.append(num_heads.get(module, 1) if isinstance(module, nn.Module) else 1)
        if isinstance(module, nn.modules.conv._ConvNd) and not is_depthwise(module):
            parts.append(module.groups)
    size = count // max(parts)
    trial = group_of(graph, root, range(0, size * max(parts), size)) if size > 1 else None
    return trial if trial is not None and graph.check_pruning_group(trial) else None


def _cut_wrong(replay: Replay, graph: Any, groups: list[Any]) -> str:
    """Why the copy with these groups cut is not the model with their channels set to 0; "" if it is."""
    cuts = _merged(groups)
    copy = _cut_copy(replay, graph, cuts)
    expected = _silenced(replay, graph, cuts)
    try:
        with linear_neurons(copy):
            found = tensors_in(replay.forward(copy, replay.inputs))
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the model does not run without one of its channels: {str(error).splitlines()[0]}{HINT}"
    if _equal(expected, found):
        return ""
    return f"without one of its channels the model is not the one with it set to 0{HINT}"


def _merged(groups: list[Any]) -> Cuts:
    """What several groups cut of each node that holds something to cut."""
    merged: dict[tuple[Any, Any], set[int]] = defaultdict(set)
    for group in groups:
        for item in group.items:
            if not isinstance(item.dep.target.module, Junction | Parts):
                merged[item.dep.target, item.dep.handler] |= set(item.idxs)
    return {key: sorted(channels) for key, channels in merged.items()}


def _cut_copy(replay: Replay, graph: Any, cuts: Cuts) -> nn.Module:
    """A copy of the model without these channels."""
    copy = replay.library.copy_model(replay.model)
    names = {module: name for name, module in replay.model.named_modules()}
    for (node, cut), channels in cuts.items():
        module, pruner = node.module, cut.__self__  # type: ignore[attr-defined] # a bound method
        pruner.pruning_dim = node.pruning_dim
        if isinstance(module, nn.Parameter):
            owner, _, attribute = graph._param_to_name[module].rpartition(".")
            setattr(copy.get_submodule(owner), attribute, cut(module, channels))
        elif module in names:
            twin = copy.get_submodule(names[module])
            if isinstance(pruner, NeuronPruner):
                pruner.axes[twin] = pruner.axes[module]
            cut(twin, channels)
    return copy


def _silenced(replay: Replay, graph: Any, cuts: Cuts) -> list[Tensor]:
    """The outputs of the model with these channels set to 0."""
    sent: dict[nn.Module, list[int]] = {}
    read: dict[nn.Module, list[int]] = {}
    with ExitStack() as stack:
        for (node, cut), channels in cuts.items():
            module = node.module
            if isinstance(module, nn.Parameter):
                stack.callback(module.data.copy_, module.detach().clone())
                module.data.movedim(node.pruning_dim, 0)[channels] = 0
            elif replay.is_layer(module) and not graph.is_out_channel_pruning_fn(cut):
                read[module] = channels
            elif replay.is_layer(module) or isinstance(module, nn.modules.batchnorm._NormBase):
                sent[module] = channels
        return outputs_without(replay, sent, read)


def _equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(a.abs().max()))
        for a, b in zip(expected, found, strict=True)
    )
