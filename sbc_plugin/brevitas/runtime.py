"""What a model takes in onnxruntime: a file is written, read and run."""

import math
import time
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.export import Form, check_packages, example_of, written
from sbc_plugin.calibration.driver import Driver
from sbc_plugin.calibration.forward import TRACED
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.errors import CompressionError
from sbc_plugin.evaluation.runtime import Runtime
from sbc_plugin.layers import library_of

LONGEST = 16  # steps of a sequence that is written as a whole; of a longer one, these stand for all
RUNS, SECONDS = 5, 0.1  # the quickest of so many, each of at least so long
PRODUCTS, SAME = ("MatMul", "Gemm", "Conv", "ConvTranspose"), ("Transpose", "Identity", "Reshape")


@autocast_off()
def measure_runtime(model: nn.Module, batch: Any, batch_first: bool | None = None) -> Runtime:
    """Write a model as ONNX, with floats or with the integers of its Brevitas layers, and run it on one sequence.

    A model that can be called step by step is; of one that cannot, up to 16 steps are run at once, and their time is
    multiplied up to the length of the sequence.

    Args:
        model: a spiking network, which is left as it is.
        batch: (T, B, ...), or as ``compress`` takes it; its first sequence is run.
        batch_first: as for ``compress``.

    Raises:
        SettingsError: a package that is not installed.
        UnsupportedModelError: it cannot be written as ONNX; see :func:`sbc_plugin.brevitas.export_onnx`.
        CalibrationError: the batch does not fit the model.
    """
    check_packages()
    model = unwrapped(model)
    x = example_of(model, batch)
    driver = library_of(model).default_forward(model, batch, batch_first)
    assert isinstance(driver, Driver)  # of every library that is known
    x = x.transpose(0, 1) if driver.swapped else x
    axis = 1 - driver.batch_axis if driver.swapped else driver.batch_axis
    x = x.index_select(axis, torch.arange(TRACED, device=x.device) % x.shape[axis])
    length = 1 if driver.still else x.shape[1 - axis]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that integer kernels change: here time counts
        path = Path(folder) / "model.onnx"
        steps, one, states = 1, x.narrow(axis, 0, 1), None
        if not driver.still:
            with suppress(CompressionError):  # it cannot be called step by step
                states, one = written(model, path, x, Form()).start(1), one.select(1 - axis, 0)
        if states is None:
            steps = 1 if driver.still else min(length, LONGEST)
            written(model, path, x, Form(steps=steps))
            one = one if driver.still else one.narrow(1 - axis, 0, steps)
        seconds = _seconds(path, one, states or {})
        return Runtime(1000 * seconds * length / steps, path.stat().st_size, *_weights(path))


def _seconds(path: Path, x: Tensor, states: dict[str, Any]) -> float:
    """Processor seconds of a call."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    given = {"input": x.cpu().numpy(), **states}
    given = {value.name: given[value.name] for value in session.get_inputs()}
    calls, best = 1, math.inf
    for run in range(1 + RUNS):
        taken = 0.0
        while (run == 0 and taken < SECONDS) or taken == 0.0:
            started = time.process_time()
            for _ in range(calls):
                session.run(None, given)
            taken = time.process_time() - started
            calls = calls if run or taken >= SECONDS else 2 * calls
        best = min(best, taken / calls)
    return best


def _weights(path: Path) -> tuple[int, int]:
    """How many numbers inputs are multiplied with, each tensor counted once; and how many of these are integers."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    codes = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    alike = {node.output[0]: node.input[0] for node in graph.node if node.op_type in SAME}
    found: dict[str, bool] = {}
    for node in graph.node:
        for name in node.input[:2] if node.op_type in PRODUCTS else ():
            name = alike.get(name, name)
            source = codes.get(name, name)
            source = alike.get(source, source)
            if source in sizes:
                found[source] = name in codes
    return sum(sizes[name] for name in found), sum(sizes[name] for name, whole in found.items() if whole)
