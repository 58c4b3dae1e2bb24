"""What groups of torch-pruning cut of each module, together."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from sbc_plugin.core.matrix_form import Transposed
from sbc_plugin.torch_pruning.consumers import is_depthwise
from sbc_plugin.torch_pruning.graph.nodes import Junction, Parts

Cuts = dict[tuple[Any, Callable[..., Any]], list[int]]  # (node, pruning function) -> channels that go


def merged(groups: Iterable[Any]) -> Cuts:
    """What several groups cut of each node that holds something to cut."""
    merged: dict[tuple[Any, Any], set[int]] = defaultdict(set)
    for group in groups:
        for item in group.items:
            if item.idxs and not isinstance(item.dep.target.module, Junction | Parts):
                merged[item.dep.target, item.dep.handler] |= set(item.idxs)
    return {key: sorted(channels) for key, channels in merged.items()}


def uneven(graph: Any, cuts: Cuts) -> str:
    """Which grouped convolution cannot be cut so; "" if all can.

    Its groups have to lose the same inputs, because torch-pruning keeps the same columns in all rows, and as many
    outputs each.
    """
    for (node, cut), channels in cuts.items():
        module = node.module
        if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or is_depthwise(module):
            continue
        outputs, groups = graph.is_out_channel_pruning_fn(cut), module.groups
        if isinstance(module, Transposed):
            return f"torch-pruning cannot cut the transposed convolution {_name(node)!r} of {groups} groups"
        size = (module.out_channels if outputs else module.in_channels) // groups
        lost = [{c % size for c in channels if c // size == group} for group in range(groups)]
        if len({len(part) for part in lost} if outputs else {frozenset(part) for part in lost}) > 1:
            side = "numbers of outputs" if outputs else "inputs"
            return f"the {groups} groups of the convolution {_name(node)!r} would lose different {side}"
    return ""


def _name(node: Any) -> str:
    """The layer's name; torch-pruning adds its class in brackets."""
    return str(node.name).split(" (")[0]
