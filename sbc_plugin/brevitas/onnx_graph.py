"""An ONNX graph as the tracer leaves it, made small: each weight once, integers in as few bits as they need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from sbc_plugin.core.quantization.integers import Integers
from sbc_plugin.errors import extra

with extra("onnx"):
    import onnx
    import onnxoptimizer
    from onnx import TensorProto, helper, numpy_helper, version_converter

# ONNX' small integers for DequantizeLinear: smallest opset, type if signed, type if not, bits. 2 bits since onnx 1.20.
PACKED = (
    *([(25, TensorProto.INT2, TensorProto.UINT2, 2)] if hasattr(TensorProto, "INT2") else []),
    (21, TensorProto.INT4, TensorProto.UINT4, 4),
)
PASSES = (
    "eliminate_duplicate_initializer",
    "eliminate_common_subexpression",
    "eliminate_deadend",
    "eliminate_unused_initializer",
)


def tidy(path: Path, layers: Mapping[str, Integers], opset: int | None, notes: Mapping[str, Any]) -> None:
    """Rewrite a traced file: weights that the tracer repeated for each step stand once, and values have short names.

    Args:
        path: of the file, which is replaced.
        layers: name -> integers, by which the file's tensors are named "<layer>.codes" and "<layer>.scale".
        opset: to convert to, after which codes are packed; None leaves operators and integers as they are (QONNX).
        notes: for the file's metadata, as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    model = onnxoptimizer.optimize(onnx.load(path), list(PASSES), fixed_point=True)
    names: dict[str, str] = {}
    if opset is not None:
        model = version_converter.convert_version(model, opset)
        _skip_clips(model.graph)
        _sum_alone(model)
        names = _named(model.graph, layers)
        _pack(model.graph, opset)
    _rename(model.graph, names)
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    helper.set_model_props(model, {f"sbc.{key}": json.dumps(value) for key, value in notes.items()})
    onnx.checker.check_model(model, full_check=opset is not None)
    onnx.save(model, path)


def _skip_clips(graph: Any) -> None:
    """Leave out a Clip of constants that lie within its bounds: Brevitas writes one before each DequantizeLinear."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Clip" and all(name in constants for name in node.input):
            value, low, high = (numpy_helper.to_array(constants[name]) for name in node.input)
            if (value >= low).all() and (value <= high).all():
                for reader in graph.node:
                    reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
                graph.node.remove(node)
    _drop_unused(graph)


def _sum_alone(model: Any) -> None:
    """Gemm in place of MatMul by a transposed weight, so that a sum of spikes is taken before a state is added to it.

    onnxruntime fuses MatMul and Add, and lets the sum begin with the state: then none of its steps is exact.
    """
    known = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*known.input, *known.value_info)}
    graph = model.graph
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and [list(entry.ints) for entry in node.attribute] == [[1, 0]]
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in turned and ranks.get(node.input[0]) == 2:
            node.op_type, node.input[1] = "Gemm", turned[node.input[1]]
            node.attribute.append(helper.make_attribute("transB", 1))
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.output[0] not in read]:
        graph.node.remove(node)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _named(graph: Any, layers: Mapping[str, Integers]) -> dict[str, str]:
    """Initialisers of a DequantizeLinear -> names that say whose they are; layers with the same codes share them."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            codes, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            for layer, entry in layers.items():
                same = entry.codes.shape == codes.shape and (entry.codes.numpy() == codes).all()
                if same and (entry.scale.float().numpy() == scale).all():
                    for name, what in zip(node.input, ("codes", "scale", "zero_point"), strict=False):
                        names.setdefault(name, f"{layer}.{what}")
                    break
    return names


def _pack(graph: Any, opset: int) -> None:
    """Store the integers of each DequantizeLinear in the smallest type that the opset has for them."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        tensors = [constants[name] for name in (node.input[0], *node.input[2:])]
        values = [numpy_helper.to_array(tensor) for tensor in tensors]
        if len(values) == 2 and not values[1].any():
            del node.input[2]  # no zero point means 0
            tensors, values = tensors[:1], values[:1]
        signed = tensors[0].data_type == TensorProto.INT8
        for smallest, with_sign, without, bits in PACKED:
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            if opset >= smallest and all((value >= low).all() and (value <= high).all() for value in values):
                for tensor, value in zip(tensors, values, strict=True):
                    kind = with_sign if signed else without
                    tensor.CopyFrom(helper.make_tensor(tensor.name, kind, value.shape, _packed(value, bits), raw=True))
                break
    _drop_unused(graph)


def _packed(values: Any, bits: int) -> bytes:
    """Several codes a byte, the first in the lowest bits, as ONNX packs them."""
    per_byte = 8 // bits
    fields = values.flatten().astype(numpy.int64) & (2**bits - 1)
    fields = numpy.pad(fields, (0, -len(fields) % per_byte)).reshape(-1, per_byte)
    whole: bytes = (fields << (bits * numpy.arange(per_byte))).sum(1).astype(numpy.uint8).tobytes()
    return whole


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Short names for values inside, none for nodes: at hundreds of steps the tracer's paths outweigh the weights."""
    for value in (*graph.input, *graph.output):
        names[value.name] = value.name
    for tensor in graph.initializer:
        traced = "/" in tensor.name or "::" in tensor.name
        own = f"c{len(names)}" if traced else tensor.name.removeprefix("model.")
        tensor.name = names.setdefault(tensor.name, own)
    for node in graph.node:
        node.name = ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [name and names.setdefault(name, f"t{len(names)}") for name in node.output]
    graph.ClearField("value_info")
