"""Independent copies of models, NIR graphs included."""

import copy
from typing import Any

from nirtorch.graph import Node, TorchGraph
from torch import nn

from sbc_plugin.calibration.attributes import graph_tensors
from sbc_plugin.calibration.plain import copying
from sbc_plugin.norse.layer_checks import check_plain


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, also of NIR graphs, whose cyclic nodes ``copy.deepcopy`` cannot hash while it builds them.

    Raises:
        UnsupportedModelError: a weight is parametrised, or the model keeps tensors of an autograd graph.
    """
    check_plain(model)
    memo: dict[int, Any] = {**graph_tensors(model)}
    with copying(model):
        for module in reversed(list(model.modules())):  # graphs inside of others first
            for value in vars(module).values():
                for node in value.node_list if isinstance(value, TorchGraph) else ():
                    _copy_node(node, memo)
        return copy.deepcopy(model, memo)


def _copy_node(node: Node, memo: dict[int, Any]) -> Node:
    """The copy of a graph's node and of all nodes behind it, which ``memo`` remembers for ``copy.deepcopy``."""
    if id(node) not in memo:
        copied = memo[id(node)] = Node(copy.deepcopy(node.elem, memo), node.name)
        for outgoing, shape in node.outgoing_nodes.items():
            copied.add_outgoing(_copy_node(outgoing, memo), shape)
    known: Node = memo[id(node)]
    return known
