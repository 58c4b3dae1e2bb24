"""Run a NIR graph of torch modules, one time step a call."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from itertools import chain
from operator import add
from typing import Any, NamedTuple

import torch
from norse.torch.module.snn import SNNCell
from torch import Tensor, nn

Edge = tuple[str, str]


class NetworkState(NamedTuple):
    """What one step hands to the next.

    Attributes:
        cells: each neuron's own state, by node.
        feedback: the last output of the nodes that feed an earlier one, by node.
    """

    cells: dict[str, Any]
    feedback: dict[str, Tensor]


class Network(nn.Module):
    """A graph of modules: ``output, state = network(x, state)`` for one time step x (B, ...).

    Inputs that meet at a node are added. An edge that closes a loop hands on what its source sent one step earlier; in
    the first step it hands on nothing. Unlike Norse's neurons alone, ``to`` also moves neuron parameters.

    Attributes:
        nodes: module name -> name of the node in the NIR graph ("lif1_lif" -> "lif1.lif").
        edges: between nodes; the graph's input and output are nodes without a module.
        ends: the names of input and output.
        input_shape: of one time step of one sequence.
        dt: the step of time, s.
        reset_method: Norse's function that resets a membrane after a spike.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        edges: Iterable[Edge],
        ends: tuple[str, str],
        input_shape: tuple[int, ...],
        dt: float,
        reset_method: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.nodes: dict[str, str] = {}
        self.edges, self.ends, self.input_shape = tuple(edges), ends, input_shape
        self.dt, self.reset_method = dt, reset_method
        self.order, self.delayed = running_order(self.edges, ends[0])
        # by node: whose output of this step it takes, and whose of the last
        self._sources: dict[str, tuple[list[str], list[str]]] = {node: ([], []) for node in self.order}
        for edge in self.edges:
            if edge[0] in self._sources:
                self._sources[edge[1]][edge in self.delayed].append(edge[0])
        self._modules_of: dict[str, str] = {}
        self.stateful = {node for node, module in modules.items() if takes_state(module)}
        for node, module in modules.items():  # last, for a node may be called as any attribute
            name = self._free(node)
            self.add_module(name, module)
            self.nodes[name], self._modules_of[node] = node, name

    def _free(self, node: str) -> str:
        """A name that torch takes: no dots, and no attribute of a module."""
        name = node.replace(".", "_")
        while hasattr(self, name) or not name:
            name += "_"
        return name

    def module_of(self, node: str) -> nn.Module:
        """The module of a node of the NIR graph."""
        return self.get_submodule(self._modules_of[node])

    def forward(self, x: Tensor, state: NetworkState | None = None) -> tuple[Tensor, NetworkState]:
        """One step: input (B, ...) to output (B, ...) and the state for the next step."""
        state = NetworkState({}, {}) if state is None else state
        values, cells = {self.ends[0]: x}, {}
        for node in self.order[1:]:
            now, late = self._sources[node]
            arrived = [values[source] for source in now]
            total = reduce(add, arrived + [state.feedback[source] for source in late if source in state.feedback])
            if node not in self._modules_of:
                values[node] = total
            elif node in self.stateful:
                values[node], cells[node] = self.module_of(node)(total, state.cells.get(node))
            else:
                values[node] = self.module_of(node)(total)
        return values[self.ends[1]], NetworkState(cells, {source: values[source] for source, _ in self.delayed})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Network":
        for module in self.modules():
            if isinstance(module, SNNCell):
                moved = {k: fn(v.detach()) for k, v in module.p._asdict().items() if isinstance(v, Tensor)}
                module.p = module.p._replace(**moved)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """The step of time, which a NIR file does not say."""
        return f"dt={self.dt:g} s, reset_method={self.reset_method.__name__}"


def takes_state(module: nn.Module) -> bool:
    """Whether the module is called with a state and returns one."""
    return "state" in inspect.signature(module.forward).parameters


def running_order(edges: Iterable[Edge], start: str) -> tuple[list[str], set[Edge]]:
    """The nodes reached from ``start``, each behind all that feed it, and the edges that close a loop.

    >>> running_order([("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")], "in")
    (['in', 'lif', 'w', 'out'], {('w', 'lif')})
    """
    successors: dict[str, list[str]] = {}
    for source, target in sorted(set(edges)):
        successors.setdefault(source, []).append(target)
    closing: set[Edge] = set()
    finished: list[str] = []
    entered, open_nodes = {start}, {start}
    stack = [(start, iter(successors.get(start, ())))]
    while stack:
        node, remaining = stack[-1]
        successor = next(remaining, None)
        if successor is None:
            stack.pop()
            open_nodes.discard(node)
            finished.append(node)
        elif successor in open_nodes:
            closing.add((node, successor))
        elif successor not in entered:
            entered.add(successor)
            open_nodes.add(successor)
            stack.append((successor, iter(successors.get(successor, ()))))
    return finished[::-1], closing


@torch.no_grad()
def shape_after(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that a module without a state makes of ``shape``, both of one sequence and one time step.

    Nothing is computed, so that shapes of any size take no memory.

    Raises:
        RuntimeError: the module does not take this shape.
    """
    held = {name: tensor.to("meta") for name, tensor in chain(module.named_parameters(), module.named_buffers())}
    dtype = next((tensor.dtype for tensor in held.values()), torch.float32)
    output = torch.func.functional_call(module, held, (torch.zeros(1, *shape, dtype=dtype, device="meta"),))
    return tuple(output.shape[1:])
