"""Shapes that the tracer wrote down as numbers although the number of sequences is in them."""

from pathlib import Path
from typing import Any

import numpy

from sbc_plugin.errors import extra

with extra("onnx"):
    import onnx
    from onnx import numpy_helper


def free_reshapes(path: Path, other: Path) -> None:
    """Let each Reshape find the number of sequences itself, where the tracer has fixed it; ``path`` is rewritten.

    Torch's tracer takes the shape behind one Reshape for constant, and fixes the sizes that the next one reads from it.
    A size that is another one in a trace of another number of sequences is theirs.

    Args:
        path: of the traced file.
        other: of the same model, traced with another number of sequences.

    Raises:
        OSError: a file cannot be read or written.
    """
    model, second = onnx.load(path), onnx.load(other)
    if [node.op_type for node in model.graph.node] != [node.op_type for node in second.graph.node]:
        return
    constants, others = _constants(model.graph), _constants(second.graph)
    changed = False
    for number, (node, twin) in enumerate(zip(list(model.graph.node), second.graph.node, strict=True)):
        if node.op_type != "Reshape" or node.input[1] not in constants or twin.input[1] not in others:
            continue
        shape, there = constants[node.input[1]], others[twin.input[1]]
        if shape.shape == there.shape and (shape != there).sum() == 1 and (shape > 0).all():
            name = f"free_shape_{number}"
            model.graph.initializer.append(numpy_helper.from_array(numpy.where(shape != there, -1, shape), name))
            node.input[1] = name
            changed = True
    if changed:
        onnx.save(model, path)


def _constants(graph: Any) -> dict[str, Any]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found
