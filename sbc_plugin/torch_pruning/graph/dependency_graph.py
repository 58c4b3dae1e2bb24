"""torch-pruning's dependency graph, made exact on spiking models.

torch-pruning walks the whole autograd graph of a forward: on a spiking model that graph grows with time, loops through
the neurons' states, and ends at a threshold. Here the model runs once, and the graph gets a node for each prunable
module, for each place where their outputs meet, and for each concatenation or split of channels; index mappings come
from the shapes that autograd saw (see :mod:`.wiring`). Groups, importance and cutting stay torch-pruning's own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.torch_pruning.graph.layouts import Layout, along, broadcast
from sbc_plugin.torch_pruning.graph.neuron_pruners import NeuronPruner, neuron_pruners
from sbc_plugin.torch_pruning.graph.nodes import Nodes, Parts, PartsPruner
from sbc_plugin.torch_pruning.graph.wiring import NOTHING, Reach, Wiring, tag


@contextmanager
def exact_tracing(model: nn.Module) -> Iterator[None]:
    """Every dependency graph that torch-pruning builds for ``model`` inside the block is exact for spiking models.

    It serves any number of time steps, frozen parameters, ``(output, state)`` results and step models, and adds pruning
    functions for neurons. The model, its modes, the random state and torch-pruning itself are afterwards as they were
    before, also after an exception; a graph that was built stays exact outside the block. Sizes that the attributes of
    a layer state, and its weight does not have, are put right for good: torch-pruning counts channels by them.
    """
    original = tp.DependencyGraph.build_dependency

    @wraps(original)
    def build(graph: Any, traced: nn.Module, *given: Any, **named: Any) -> Any:
        if traced is not model:
            return original(graph, traced, *given, **named)
        _put_sizes_right(model)
        call = signature(original).bind(graph, traced, *given, **named)
        unwrapped = dict(call.arguments.get("unwrapped_parameters") or {})
        customized = call.arguments.get("customized_pruners") or {}
        call.arguments |= {
            "unwrapped_parameters": list(unwrapped.items()),
            "customized_pruners": {**neuron_pruners(model), **customized, Parts: PartsPruner()},
            "verbose": False,  # it warns about parameters of no module, whose dimension is known here
        }
        tracer = _Tracer(graph, model, unwrapped)
        with replaced(graph, "_trace", tracer.trace), torch.enable_grad(), eval_mode(model):
            original(*call.args, **call.kwargs)
        tracer.nodes.map_indices()
        graph.sbc_tangled = dict(tracer.wiring.tangled)
        return graph

    with replaced(tp.DependencyGraph, "build_dependency", build):
        yield


def _put_sizes_right(model: nn.Module) -> None:
    """Give layers the sizes of their weights, which e.g. Norse's import from NIR does not."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute for the length of the block."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def group_of(graph: Any, layer: nn.Module, channels: Iterable[int]) -> Any:
    """The group of torch-pruning that cuts these outputs of a layer."""
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, list(channels))


def trace_inputs(model: nn.Module, example_inputs: Any) -> Any:
    """What to hand to torch-pruning as ``example_inputs``: a bare tensor, which it would unpack, becomes a tuple."""
    if isinstance(example_inputs, dict):
        return example_inputs
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def run_once(model: nn.Module, example_inputs: Any) -> Any:
    """The model's output for torch-pruning's example inputs, without the state that comes with it.

    A step model runs twice, the state handed on, so that what it feeds back is seen.
    """
    output = _called(model, example_inputs)
    if not isinstance(output, tuple):
        return output
    library = library_or_plain(model)
    return output[0] if any(library.is_neuron(module) for module in model.modules()) else output


def _called(model: nn.Module, example_inputs: Any) -> Any:
    inputs = trace_inputs(model, example_inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    items = state_items(model, inputs)
    output = model(*inputs)
    return model(inputs[0], *output[-items:]) if items else output


_STATE_ITEMS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # found once, where nothing records the calls


def state_items(model: nn.Module, example_inputs: Any) -> int:
    """How many results of a step model's call are the state of the next; 0 for any other model. A few calls show it."""
    inputs = trace_inputs(model, example_inputs)
    if model not in _STATE_ITEMS:
        known = not isinstance(inputs, dict) and len(inputs) > 0 and isinstance(inputs[0], Tensor)
        _STATE_ITEMS[model] = library_or_plain(model).state_items(model, inputs[0]) if known else 0
    return _STATE_ITEMS[model]


class _Tracer:
    """Takes the place of ``DependencyGraph._trace`` for one graph."""

    def __init__(self, graph: Any, model: nn.Module, unwrapped: dict[nn.Parameter, int]) -> None:
        self.graph = graph
        self.library = library_or_plain(model)
        self.nodes = Nodes(graph, unwrapped)
        self.wiring = Wiring(self.nodes)

    def trace(
        self,
        model: nn.Module,
        example_inputs: Any,
        forward_fn: Callable[..., Any] | None,
        output_transform: Callable[..., Any] | None,
    ) -> dict[Any, Any]:
        """Run the model once and return torch-pruning's ``module2node``."""
        state_items(model, example_inputs)
        with ExitStack() as stack:
            for parameter, _ in self.graph.unwrapped_parameters:
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
            for module in model.modules():
                if self._is_node(module):
                    stack.callback(module.register_forward_hook(self._on_call, with_kwargs=True).remove)
            forward = forward_fn or (run_once if output_transform is None else _called)
            output = forward(model, example_inputs)
            output = output if output_transform is None else output_transform(output)
            for tensor in tensors_in(output):
                reach = self.wiring.reach(tensor)
                self.nodes.junction(self.wiring.arrive(reach, _leftmost(reach), "output"))
        return self.nodes.module2node

    def _is_node(self, module: nn.Module) -> bool:
        if module in self.graph.IGNORED_LAYERS_IN_TRACING:
            return False
        return type(module) in self.graph.CUSTOMIZED_PRUNERS or (
            tp.ops.module2type(module) in self.graph.REGISTERED_PRUNERS
            and tp.ops.module2type(module) != tp.ops.OPTYPE.ELEMENTWISE
        )

    def _on_call(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        given = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor)]
        attention = isinstance(module, nn.MultiheadAttention)
        reaches = [self.wiring.reach(x) for x in (given if attention else given[:1])]
        first = next(iter(tensors_in(output)))
        reach = self._linked(module, reaches, given[0], first)

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):
                same = value.is_floating_point() and value.shape in (first.shape, first.shape[1:])
                return tag(value, _fitted(reach, value)) if same else value.detach()
            if isinstance(value, tuple | list):
                parts = [cut(part) for part in value]
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            return value

        return cut(output)

    def _linked(self, module: nn.Module, reaches: list[Reach], x: Tensor, output: Tensor) -> Reach:
        """Link a module to the sources of its input; the reach of its output."""
        pruner = self.graph.get_pruner_of_module(module)
        sides = self._channel_axes(module, x, output)
        if sides is None:
            axis = _leftmost(frozenset().union(*reaches))
            sides = (axis, axis)
            if isinstance(pruner, NeuronPruner):
                pruner.axes[module] = axis
        if pruner.get_out_channels(module) is None:
            return frozenset().union(*reaches)  # nothing of it is cut, so its calls need no node in common
        arrived = [self.wiring.arrive(reach, sides[0], type(module).__name__) for reach in reaches]
        source = self.nodes.module(module)
        for sources in arrived:
            self.nodes.feed(sources, source.node)
        return frozenset([(source, along(output.shape, sides[1]))])

    def _channel_axes(self, module: nn.Module, x: Tensor, output: Tensor) -> tuple[int, int] | None:
        """Input and output channel axis, from the end; None for a module that works on every channel by itself."""
        if self.library.is_neuron(module):
            return (-1, -1) if self.library.holds_weights(module) else None
        if isinstance(module, nn.LayerNorm) and type(module).forward is not nn.LayerNorm.forward:
            return None  # as torchvision's LayerNorm2d, which moves the channels to the end and back
        return channel_axis(module, x), channel_axis(module, output)


def _leftmost(reach: Reach) -> int:
    """The axis that holds channels where no layer says which: the first from the left that has some, from the end."""
    return min((layout.channel_dims[0] - len(layout.dims) for _, layout in reach if layout.channel_dims), default=-1)


def _fitted(reach: Reach, value: Tensor) -> Reach:
    """The reach of a state, which may lack the time axis of the output."""
    result = set()
    for source, layout in reach:
        short = Layout(layout.dims[-value.dim() :], layout.hidden) if value.dim() else Layout(())
        fitted = broadcast(short, value.shape)
        if fitted is not None:
            result.add((source, fitted))
    return frozenset(result) or NOTHING


def channel_axis(layer: nn.Module, x: Tensor) -> int:
    """The axis of a layer's input or output that holds its channels, from the end."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return -1 - len(layer.kernel_size)
    if isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.PReLU):
        return min(1 - x.dim(), -1)
    return -1


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a forward's result: itself, or those of a tuple, list or dict."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for item in output for tensor in tensors_in(item)]
    return [output] if isinstance(output, Tensor) else []
