"""Modules and edges as a NIR graph: the node of each module, with its shapes."""

from collections.abc import Iterable
from typing import Any

import nir
import norse.torch as norse
import numpy
import torch
from torch import Tensor, nn

from sbc_plugin.checkpoint.file import is_text
from sbc_plugin.errors import SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.nir.network import running_order, shape_after
from sbc_plugin.nir.neuron_nodes import Gain, Reset, node_of, reset_of
from sbc_plugin.nir.reading import Shape
from sbc_plugin.nir.wiring import Wiring
from sbc_plugin.norse.neurons import NEURONS, WITH_WEIGHTS


def graph_of_wiring(wiring: Wiring, shape: Shape | None) -> Any:
    """The ``nir.NIRGraph`` of modules and edges, with the shapes of every node.

    Args:
        wiring: of a model that has values.
        shape: of one time step of one sequence.

    Raises:
        UnsupportedModelError: a module without a counterpart in NIR, or a name that no file can hold.
        SettingsError: no input shape, or one that does not fit.
    """
    start, end = wiring.ends
    if shape is None:
        raise SettingsError("the model does not say its input shape; give input_shape, e.g. (2, 34, 34)")
    _check_names([start, end, *wiring.modules])
    order, _ = running_order(wiring.edges, start)
    shapes: dict[str, Shape] = {start: tuple(shape)}
    nodes: dict[str, Any] = {start: nir.Input(numpy.array(shape))}
    edges = list(wiring.edges)
    for name in order[1:]:
        taken = shapes[next(a for a in order if (a, name) in wiring.edges)]
        shapes[name] = taken
        if name == end:
            nodes[name] = nir.Output(numpy.array(taken))
            continue
        module = wiring.modules[name]
        with in_layer(name):
            if isinstance(module, WITH_WEIGHTS):
                shapes[name] = (*taken[:-1], len(module.input_weights))
                first, back = f"{name}.input_weights", f"{name}.recurrent_weights"
                if taken_names := {first, back} & wiring.modules.keys():
                    raise UnsupportedModelError(f"another node is called {min(taken_names)!r}; rename it")
                nodes[first] = nir.Linear(as_array(module.input_weights))
                edges = [(a, first if b == name else b) for a, b in edges] + [(first, name)]
                if hasattr(module, "recurrent_weights"):
                    nodes[back] = nir.Linear(as_array(module.recurrent_weights))
                    edges += [(name, back), (back, name)]
                nodes[name] = node_of(module, shapes[name])
            else:
                nodes[name], shapes[name] = _node(module, taken, wiring.leading)
    return nir.NIRGraph(nodes, edges, metadata=_noted(wiring.modules))


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that no HDF5 file holds: "/" parts the names of groups there, and "." is the group itself.

    Raises:
        UnsupportedModelError: there is such a name.
    """
    for name in names:
        if name in ("", ".") or not {"/", "\0"}.isdisjoint(name) or not is_text(name):
            raise UnsupportedModelError(
                f"node {name!r}: a .nir file takes no names that are empty, '.', no text, or hold '/'; rename it "
                "in the model or graph, e.g. with '.' in the place of '/'"
            )


def _node(module: nn.Module, shape: Shape, leading: int) -> tuple[Any, Shape]:
    if isinstance(module, norse.Lift):
        module, leading = module.lifted_module, 1
    plain = _plain(module, shape, leading)
    if plain is None:
        return node_of(module, shape), shape
    if isinstance(module, nn.Flatten):
        return plain, tuple(int(size) for size in plain.output_type["output"])
    try:
        after = shape_after(module, shape)
    except RuntimeError as error:
        raise SettingsError(
            f"{type(module).__name__} does not take an input of shape {shape}: {error}; give input_shape, without time "
            "and batch"
        ) from error
    # NIR's own inference has grouped convolutions and oblong kernels wrong.
    plain.input_type, plain.output_type = {"input": numpy.array(shape)}, {"output": numpy.array(after)}
    return plain, after


def _plain(module: nn.Module, shape: Shape, leading: int) -> Any:
    if isinstance(module, nn.Linear):
        weight = as_array(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, as_array(module.bias))
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _convolution(module, shape)
    if isinstance(module, nn.AvgPool2d | nn.LPPool2d):
        return _pooling(module)
    if isinstance(module, nn.Flatten):
        first, last = (d if d < 0 else d - leading for d in (module.start_dim, module.end_dim))
        if first < -len(shape) or (module.start_dim >= 0 > first):
            raise UnsupportedModelError(f"{module} joins the batch with the rest; use start_dim={leading}")
        return nir.Flatten(numpy.array(shape), first % len(shape), last % len(shape))
    return nir.Scale(numpy.broadcast_to(as_array(module.gain), shape).copy()) if isinstance(module, Gain) else None


def _convolution(module: Any, shape: Shape) -> Any:
    if module.padding_mode != "zeros":
        raise UnsupportedModelError(f"padding_mode={module.padding_mode!r} has no counterpart in NIR; use 'zeros'")
    one = isinstance(module, nn.Conv1d)

    def size(value: Any) -> Any:
        return value[0] if one and not isinstance(value, str) else value

    node = (nir.Conv1d if one else nir.Conv2d)(
        input_shape=shape[1] if one else tuple(shape[1:]),
        weight=as_array(module.weight),
        stride=size(module.stride),
        padding=size(module.padding),
        dilation=size(module.dilation),
        groups=module.groups,
        bias=numpy.zeros(len(module.weight), numpy.float32) if module.bias is None else as_array(module.bias),
    )
    if module.bias is None:
        node.metadata["bias"] = "none"  # NIR's convolutions always hold one
    return node


def _pooling(module: Any) -> Any:
    def pair(value: Any) -> Any:
        return numpy.broadcast_to(numpy.asarray(value), (2,)).copy()

    total = isinstance(module, nn.LPPool2d) or module.divisor_override == 1
    padding = 0 if isinstance(module, nn.LPPool2d) else module.padding
    plain = not module.ceil_mode and getattr(module, "norm_type", 1) == 1
    if isinstance(module, nn.AvgPool2d):
        plain = plain and module.divisor_override in (None, 1) and (module.count_include_pad or not numpy.any(padding))
    if not plain:
        raise UnsupportedModelError(f"{module} has no counterpart in NIR; use a plain average or sum without ceil_mode")
    stride = module.kernel_size if module.stride is None else module.stride
    return (nir.SumPool2d if total else nir.AvgPool2d)(pair(module.kernel_size), pair(stride), pair(padding))


def _noted(modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Time step and reset method of a model.

    Raises:
        SettingsError: neurons that differ in one of them.
    """
    modules = {name: getattr(module, "lifted_module", module) for name, module in modules.items()}
    inside = [cell for module in modules.values() for cell in module.modules()]
    steps = {float(cell.dt) for cell in inside if isinstance(cell, NEURONS)}
    if len(steps) > 1:
        raise SettingsError(f"neurons step by different dt {sorted(steps)}; NIR has one clock: give all the same dt")
    resets: set[Reset] = {reset_of(m) for m in modules.values() if _spikes(m)}
    if len(resets) > 1:
        raise SettingsError("neurons reset in different ways; a .nir file is read with one: give all the same")
    noted: dict[str, Any] = {"dt": steps.pop()} if steps else {}
    # of a function that is not Norse's, the name: reading then asks for the function
    return noted | ({"reset_method": resets.pop().__name__} if resets else {})


def _spikes(module: nn.Module) -> bool:
    last = getattr(module, "lif", getattr(module, "cell", module))
    return hasattr(getattr(last, "p", None), "v_th")


def as_array(tensor: Tensor) -> Any:
    """As an array; half precision as float32, because files of NIR and their readers have no bfloat16."""
    half = tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize
    return (tensor.float() if half else tensor).detach().cpu().numpy().copy()
