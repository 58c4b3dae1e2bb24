"""Run exported files as their users do: in onnxruntime, step by step or whole, and in qonnx's executor."""

from typing import Any

import numpy
import onnxruntime
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from torch import Tensor

from sbc_plugin.brevitas import Exported


def session(exported: Exported, integer_kernels: bool = True) -> Any:
    """Of onnxruntime; by itself it puts integer kernels of its own in the place of quantised layers."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0" if integer_kernels else "1")
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(exported.path, options)


def run_steps(exported: Exported, x: Tensor, integer_kernels: bool = True) -> Tensor:
    """A file of one step over (T, B, ...), the states handed on."""
    runtime, states, outputs = session(exported, integer_kernels), exported.start(x.shape[1]), []
    for step in x.numpy():
        output, *after = runtime.run(None, {"input": step} | states)
        states = dict(zip(states, after, strict=True))
        outputs.append(output)
    return torch.from_numpy(numpy.stack(outputs))


def run_whole(exported: Exported, x: Tensor, integer_kernels: bool = True) -> Tensor:
    (output,) = session(exported, integer_kernels).run(["output"], {"input": x.numpy()})
    return torch.from_numpy(output)


def run_qonnx(exported: Exported, x: Tensor) -> Tensor:
    """QONNX files of one step or whole sequences, in qonnx's executor."""
    model = ModelWrapper(str(exported.path)).transform(InferShapes())
    if exported.steps is not None:
        return torch.from_numpy(execute_onnx(model, {"input": x.numpy()})["output"])
    states, outputs = exported.start(x.shape[1]), []
    for step in x.numpy():
        found = execute_onnx(model, {"input": step} | states)
        states = {name: found[f"{name}_next"] for name in states}
        outputs.append(found["output"])
    return torch.from_numpy(numpy.stack(outputs))
