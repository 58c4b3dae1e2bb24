"""A Brevitas model as an ONNX file that other runtimes execute with the same spikes."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.freezing import check_quantised
from sbc_plugin.brevitas.layers import copy_model, is_quantised, replace_modules
from sbc_plugin.brevitas.onnx_trace import (
    TRACED_OPSET,
    Sequence,
    Summing,
    check_runs,
    free_axes,
    has_divisor,
    pad_explicitly,
    trace,
)
from sbc_plugin.brevitas.quantizer_integers import integers
from sbc_plugin.calibration.driver import Driver, as_input
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.core.matrix_form import WEIGHTED
from sbc_plugin.core.quantization.integers import Integers
from sbc_plugin.errors import CalibrationError, SettingsError, UnsupportedModelError
from sbc_plugin.layers import SNNLibrary, library_of

KINDS = ("qcdq", "qonnx")
PACKAGES = ("onnx", "onnxoptimizer", "onnxruntime")
OPSET = 21  # the first with 4-bit integers


@dataclass(frozen=True, eq=False)
class Exported:
    """What one needs to run an exported file.

    Attributes:
        path: of the file.
        kind: "qcdq" or "qonnx".
        steps: of the sequences (T, B, ...) that the file takes; None for one time step (B, ...) a call.
        states: of a file of one step: name of an input -> its value before the first step, of one sequence, (...). The
            output "<name>_next" is its value for the next step. Empty where the file takes whole sequences.
        floats: weights that stand in the file as floats: name -> reason.
    """

    path: Path
    kind: str
    steps: int | None
    states: dict[str, Tensor]
    floats: dict[str, str]

    def start(self, batch: int) -> dict[str, Any]:
        """The states before the first step of ``batch`` sequences, as NumPy arrays (batch, ...), by input's name."""
        return {name: value.expand(batch, *value.shape).numpy().copy() for name, value in self.states.items()}


@dataclass(frozen=True)
class Form:
    """What a file is to be like: ``kind``, ``steps``, ``opset`` and ``free_batch`` of :func:`export_onnx`."""

    kind: str = "qcdq"
    steps: int | None = None
    opset: int | None = None
    free_batch: bool = True


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_input: Any,
    *,
    kind: str = "qcdq",
    steps: int | None = None,
    opset: int | None = None,
    free_batch: bool = True,
) -> Exported:
    """Write a spiking Brevitas model as an ONNX file; the model is left as it is, and the file appears whole or not.

    "qcdq" is standard ONNX: each weight is an initialiser of 8, 4 or 2 bits behind a DequantizeLinear with a scale a
    channel or tensor, and runs in onnxruntime. "qonnx" writes Quant nodes (domain qonnx.custom_op.general) on float
    weights, as FINN and qonnx's executor read them; its batch is the example's. Inputs and outputs are called "input"
    and "output"; of one step there is besides an input for every state, e.g. "1.v" of neuron "1", and an output
    "1.v_next". The number of sequences is free in "qcdq", which one run of onnxruntime checks. Initial states
    are in the result, and in the file's metadata under "sbc.states".

    Sums of floats depend on their order, so a membrane may differ in its last bits from one runtime to the next, and a
    spike where it meets the threshold. With power-of-two scales, binary inputs and no bias every sum is exact.

    Args:
        model: of ``compress(..., backend="brevitas")`` or ``quantize_layers``; float32.
        path: of the file; one that is there is replaced.
        example_input: a sequence (T, B, ...), or a batch whose first item it is; B of at least 1. Of a model that takes
            (B, T, ...), or a still input (B, ...) for steps of its own, as the model takes it; so does the file.
        kind: "qcdq" or "qonnx".
        steps: None for one time step a call, states in and out; T for whole sequences of T steps, cut from the example
            (any number for a still input).
        opset: of ONNX, only for "qcdq": 21 (None) stores codes of up to 4 bits in 4 bits each, from 25 on those of up
            to 2 bits in 2, below 21 all of them in 8.
        free_batch: False fixes the number of sequences to the example's, for models that reckon with it.

    Raises:
        SettingsError: an unknown kind, a package that is not installed, steps or opset out of range.
        UnsupportedModelError: no Brevitas layer, groups, another type than float32, a neuron that is not known to
            export, a model without a state for one step, or an operation that ONNX has no word for.
        CalibrationError: the example is not (T, B, ...), or holds fewer than ``steps`` steps.
        CheckpointError: the file cannot be written.
    """
    form = Form(kind, steps, opset, free_batch)
    _check_settings(kind, steps, opset)
    check_quantised(model)
    return written(model, path, example_input, form)


@autocast_off()
def written(model: nn.Module, path: str | Path, example_input: Any, form: Form) -> Exported:
    """:func:`export_onnx` of a model that may hold floats alone.

    Raises:
        CompressionError: as :func:`export_onnx`.
    """
    kind, steps = form.kind, form.steps
    with torch.inference_mode(False):
        target = copy_model(model).eval()
        layer_integers = integers(target) if any(map(is_quantised, target.modules())) else {}
        _check_exportable(target, layer_integers, kind)
        library = library_of(target)
        floats = _floats(target, library)
        library.drop_surrogates(target)
        target = replace_modules(target, {id(pool): Summing(pool) for pool in target.modules() if has_divisor(pool)})
        for module in target.modules():
            pad_explicitly(module)
        x = example_of(target, example_input)
        driver = library.default_forward(target, x)
        assert isinstance(driver, Driver)  # of every library that has flat steps
        x = first_steps(x, driver, steps)
        states: dict[str, Tensor] = {}
        with eval_mode(target), torch.no_grad():
            if steps is None:
                module = library.flat_step(target, x)
                states = {name: value.cpu() for name, value in module.initial.items()}
                args = (x[0], *(value.expand(x.shape[1], *value.shape) for value in module.initial.values()))
            else:
                module, args = Sequence(target, driver), (x,)
            free = form.free_batch and kind == "qcdq"
            axes = free_axes(module, args, list(states), driver.batch_axis if steps else 0) if free else {}
        with replacing(path) as beside:
            trace(module, args, beside, kind, list(states), axes)
            if axes and steps is not None:
                _free_batch(module, args, beside, axes)
            _tidy(beside, layer_integers, form, states)
            if kind == "qcdq":
                check_runs(beside, module, args, x[1:] if steps is None else x[:0], axes)
    return Exported(Path(path), kind, steps, states, floats)


def _free_batch(module: nn.Module, args: tuple[Tensor, ...], path: Path, axes: dict[str, dict[int, str]]) -> None:
    """Trace again with twice as many sequences, to see which sizes in the file are their number."""
    from sbc_plugin.brevitas.onnx_batch import free_reshapes  # needs onnx

    with TemporaryDirectory() as folder:
        other = Path(folder) / "twice.onnx"
        axis = next(iter(axes["input"]))
        trace(module, tuple(torch.cat([value, value], axis) for value in args), other, "qcdq", [], axes)
        free_reshapes(path, other)


def _check_settings(kind: str, steps: int | None, opset: int | None) -> None:
    if kind not in KINDS:
        raise SettingsError(f"kind={kind!r} is unknown; use one of {', '.join(map(repr, KINDS))}")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise SettingsError(f"steps={steps!r} is no number of time steps; use steps=20, or None for one step a call")
    check_packages()
    if opset is None:
        return
    if kind == "qonnx":
        raise SettingsError(f"opset={opset} is for kind='qcdq'; a QONNX file has opset {TRACED_OPSET}")
    from onnx import defs

    newest = defs.onnx_opset_version()
    if not TRACED_OPSET <= opset <= newest:
        raise SettingsError(f"opset={opset} is out of range; the installed onnx writes {TRACED_OPSET} to {newest}")


def check_packages() -> None:
    """Refuse to go on without the packages that write and run ONNX.

    Raises:
        SettingsError: one is not installed.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise SettingsError(f"an ONNX file needs {' and '.join(missing)}; pip install 'sbc-plugin[onnx]'")


def _check_exportable(model: nn.Module, layer_integers: dict[str, Integers], kind: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UnsupportedModelError(
                f"{name!r} is {parameter.dtype}; ONNX dequantises to float32: use model.float()"
            )
    if binary := [name for name, entry in layer_integers.items() if entry.bits == 1 and kind == "qcdq"]:
        raise UnsupportedModelError(
            f"layer {binary[0]!r}: binary codes have no DequantizeLinear; use kind='qonnx', or 'ternary' weights"
        )


def _floats(model: nn.Module, library: SNNLibrary) -> dict[str, str]:
    modules = dict(model.named_modules())
    plain = {name for name, module in modules.items() if isinstance(module, WEIGHTED) and not is_quantised(module)}
    return dict.fromkeys(sorted(plain), "not quantised") | {
        f"{name}.{attribute}": f"a parameter of {type(module).__name__}"
        for name, module in modules.items()
        if library.holds_weights(module)
        for attribute, _ in module.named_parameters(recurse=False)
    }


def example_of(model: nn.Module, batch: Any) -> Tensor:
    """The example as a tensor of the model's type.

    Raises:
        CalibrationError: it has no two axes, or is empty.
    """
    x = as_input(model, batch)
    if x.dim() < 2 or not all(x.shape):
        raise CalibrationError(f"the example has shape {tuple(x.shape)}; give a sequence (T, B, ...)")
    return x.detach()


def first_steps(x: Tensor, driver: Driver, steps: int | None) -> Tensor:
    """The first steps of an example; a still input has none, and stays whole.

    Raises:
        CalibrationError: it has no axis of time, or is too short.
    """
    if driver.still:
        return x
    if x.dim() < 3:
        raise CalibrationError(f"the example has shape {tuple(x.shape)}; give a sequence (T, B, ...)")
    time = 1 - driver.batch_axis
    if steps is not None and x.shape[time] < steps:
        raise CalibrationError(f"the example has {x.shape[time]} steps, the file shall have {steps}; give a longer one")
    return x if steps is None else x.narrow(time, 0, steps)


def _tidy(path: Path, layer_integers: dict[str, Integers], form: Form, states: dict[str, Tensor]) -> None:
    from sbc_plugin.brevitas.onnx_graph import tidy  # needs onnx

    initial = {
        name: value.flatten()[0].item() if (value == value.flatten()[0]).all() else value.tolist()
        for name, value in states.items()
    }
    notes = {"kind": form.kind, "steps": form.steps, "states": initial}
    try:
        tidy(path, layer_integers, (form.opset or OPSET) if form.kind == "qcdq" else None, notes)
    except OSError:
        raise
    except Exception as error:  # onnx' errors have no class in common
        raise UnsupportedModelError(
            f"what torch traced is no valid ONNX: {str(error).strip().partition(chr(10))[0]}; replace the operation it "
            "names by plain modules"
        ) from error
