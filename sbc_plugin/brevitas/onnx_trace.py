"""From a module to a traced ONNX file: what the tracer would get wrong is replaced before or found out after."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from brevitas.export import export_onnx_qcdq, export_qonnx
from torch import Tensor, nn

from sbc_plugin.brevitas.onnx_axes import Unflattened, axes_from_the_front
from sbc_plugin.calibration.driver import Driver, first_result
from sbc_plugin.errors import UnsupportedModelError

TRACED_OPSET = 17
UNFUSED = "session.disable_quant_qdq"  # of onnxruntime: "1" for the graph as it is written
CLOSE, SHARE = 1e-3, 0.01  # what rounding may change: far below a spike, and a spike is rarely that near its threshold


class Sequence(nn.Module):
    """Whole sequences, with their axes as the model takes them, to the model's answer, with those that it gives."""

    def __init__(self, model: nn.Module, driver: Driver) -> None:
        super().__init__()
        self.model, self._run = model, driver

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) to (T, B, ...) for a step model; else what the model itself takes and returns first.

        Raises:
            UnsupportedModelError: that is no tensor.
        """
        steps = self._run.state_items is not None
        output: Any = self._run(self.model, x) if steps else first_result(self.model(x))
        if isinstance(output, tuple):
            output = output[0]
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} answers with a {type(output).__name__}, and a tensor is exported; wrap "
                "the model in one that returns it"
            )
        return output


class Summing(nn.Module):
    """Average pooling with a divisor of its own, which the tracer would leave out without a word.

    Raises:
        UnsupportedModelError: ``ceil_mode``, whose last windows hang over the edge and are averaged over fewer values.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        if pool.ceil_mode:
            raise UnsupportedModelError(
                f"{pool} has a divisor of its own and ceil_mode, for which ONNX has no word; pad before and use "
                "ceil_mode=False"
            )
        size = pool.kernel_size
        axes = 2 if isinstance(pool, nn.AvgPool2d) else 3
        area = size**axes if isinstance(size, int) else math.prod(size)
        self.factor = area / pool.divisor_override
        self.pool = type(pool)(size, pool.stride, pool.padding, False, True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum over each window, divided by the divisor."""
        output: Tensor = self.pool(x) * self.factor
        return output


def has_divisor(module: nn.Module) -> bool:
    """Whether the module pools as only :class:`Summing` exports."""
    return isinstance(module, nn.AvgPool2d | nn.AvgPool3d) and module.divisor_override is not None


def pad_explicitly(module: Any) -> None:
    """Replace ``padding="same"`` of a dilated convolution by numbers, in place: runtimes refuse the one with the other.

    torch puts what does not halve behind the input; a hook pads there, because a convolution pads both sides alike.
    """
    if not isinstance(module, nn.modules.conv._ConvNd) or module.padding != "same" or module.padding_mode != "zeros":
        return
    sizes = zip(module.weight.shape[2:], module.dilation, strict=True)
    totals = [dilation * (size - 1) for size, dilation in sizes]
    if all(total % 2 == 0 for total in totals):
        module.padding = tuple(total // 2 for total in totals)
        return
    module.padding = (0,) * len(totals)
    amounts = [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
    module.register_forward_pre_hook(lambda _, given: (nn.functional.pad(given[0], amounts), *given[1:]))


def free_axes(module: nn.Module, args: tuple[Tensor, ...], states: list[str], axis: int) -> dict[str, dict[int, str]]:
    """Which axis of each input and output counts sequences; ``axis`` is that of the inputs.

    Raises:
        UnsupportedModelError: the model does not take twice as many, or an output does not grow with them.
    """
    names = ["output", *(f"{name}_next" for name in states)]
    single = _outputs(module(*args))
    try:
        double = _outputs(module(*(torch.cat([a, a], axis) for a in args)))
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedModelError(
            f"the model does not take twice as many sequences: {first_line(error)}; if it reckons with their number, "
            "give free_batch=False"
        ) from error
    axes = {name: {0: "batch"} for name in states} | {"input": {axis: "batch"}}
    for name, one, two in zip(names, single, double, strict=True):
        grown = [a for a, (n, m) in enumerate(zip(one.shape, two.shape, strict=True)) if m == 2 * n != n]
        if len(grown) != 1:
            shapes = tuple(one.shape), tuple(two.shape)
            raise UnsupportedModelError(f"{name!r} is {shapes[0]} of some sequences and {shapes[1]} of twice as many")
        axes[name] = {grown[0]: "batch"}
    return axes


@torch.no_grad()
def check_runs(path: Path, module: nn.Module, args: tuple[Tensor, ...], later: Tensor, axes: dict[str, Any]) -> None:
    """Run the file in onnxruntime, on twice as many sequences where their number is free, and compare with the module.

    It runs as it is written first. By itself onnxruntime puts integer kernels in the place of layers whose input and
    output are quantised, which round a bias to the unit of the integer sum; if that changes values, a warning says so.

    Raises:
        UnsupportedModelError: it does not run, or answers otherwise.
    """
    from onnxruntime import InferenceSession, SessionOptions

    counts = []
    for setting in ("1", "0"):
        options = SessionOptions()
        options.log_severity_level = 4  # errors are reported below
        options.add_session_config_entry(UNFUSED, setting)
        try:
            session = InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            counts.append(_wrong(session, module, args, later, axes))
        except Exception as error:  # its errors have no class in common
            hint = "; if the model reckons with the number of sequences, give free_batch=False" if axes else ""
            raise UnsupportedModelError(f"onnxruntime does not run the file: {first_line(error)}{hint}") from error
    (wrong, total), (fused, _) = counts
    if wrong > SHARE * total:
        raise UnsupportedModelError(
            f"in onnxruntime {wrong} of {total} values differ from the model's: an operation was exported as another; "
            "replace what lies between the layers by plain modules"
        )
    if fused > SHARE * total:
        warnings.warn(
            f"onnxruntime's integer kernels change {fused} of {total} values; for the model's own, set "
            f'add_session_config_entry("{UNFUSED}", "1") in the options of the session',
            stacklevel=4,
        )


def _wrong(
    session: Any, module: nn.Module, args: tuple[Tensor, ...], later: Tensor, axes: dict[str, Any]
) -> tuple[int, int]:
    """How many values differ from the module's, and of how many."""
    names = [entry.name for entry in session.get_inputs()]
    given = [_doubled(value, axes.get(name)) for name, value in zip(names, args, strict=True)]
    wrong = total = 0
    for x in (None, *later):
        given[0] = given[0] if x is None else _doubled(x, axes.get("input"))
        expected = _outputs(module(*given))
        outputs = session.run(None, {name: value.cpu().numpy() for name, value in zip(names, given, strict=True)})
        outputs = [torch.from_numpy(value).to(one) for value, one in zip(outputs, expected, strict=True)]
        for value, one in zip(outputs, expected, strict=True):
            wrong += int((~torch.isclose(value, one, rtol=CLOSE, atol=CLOSE)).sum())
            total += one.numel()
        given[1:] = outputs[1:]
    return wrong, total


def _doubled(value: Tensor, axes: dict[int, str] | None) -> Tensor:
    return torch.cat([value, value], next(iter(axes))) if axes else value


def first_line(error: Exception) -> str:
    """The first line of an error's message, which may go on with a whole graph."""
    return str(error).strip().partition("\n")[0]


def _outputs(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def trace(
    module: nn.Module, args: tuple[Tensor, ...], path: Path, kind: str, states: list[str], axes: dict[str, Any]
) -> None:
    """Write the module as Brevitas' exporters do, named.

    Raises:
        UnsupportedModelError: an operation that ONNX has no word for.
    """
    export = export_onnx_qcdq if kind == "qcdq" else export_qonnx
    with _explained(module), _unlogged(), axes_from_the_front(TRACED_OPSET), Unflattened():
        export(
            module.eval(),  # afterwards Brevitas gives every part the mode of the whole
            args=args,
            export_path=str(path),
            input_names=["input", *states],
            output_names=["output", *(f"{name}_next" for name in states)],
            dynamic_axes=axes,
            opset_version=TRACED_OPSET,
            keep_initializers_as_inputs=False,
            dynamo=False,  # the newer exporter stores float weights
        )


@contextmanager
def _explained(module: nn.Module) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(
            f"{type(module.model).__name__} cannot be exported: {first_line(error)}; replace the operation it names"
        ) from error


@contextmanager
def _unlogged() -> Iterator[None]:
    """Inside the block torch does not write the whole graph to standard output where an export fails.

    torch has no public switch for it, and turns its own on in every export.
    """
    held: Any = torch._C
    log = getattr(held, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    held._jit_onnx_log = lambda *words: None
    try:
        yield
    finally:
        held._jit_onnx_log = log
