"""One whole sequence through a model, called in the way in which it was seen to take time: :class:`Driver`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sbc_plugin.calibration.batches import dense, input_of, labels_of
from sbc_plugin.errors import CalibrationError, UnsupportedModelError


@dataclass(frozen=True)
class Driver:
    """``forward(model, batch)`` for a model that takes one sequence in one call, or one step and a state in each.

    Attributes:
        state_items: how many results of a step go into the next call, behind the input; None: one call takes all.
        start: what goes into the first call, behind the input.
        batch_axis: of the data, which counts its sequences: 1 in (T, B, ...), 0 in (B, T, ...) and in (B, ...).
        swapped: the model takes time and batch the other way round than the data has them.
        output_axes: where the output of one call has (time, batch), or batch alone; () leaves it as it is.
        still: the data has no time axis: the model shows an input (B, ...) for steps of its own.
    """

    state_items: int | None = None
    start: tuple[None, ...] = ()
    batch_axis: int = 1
    swapped: bool = False
    output_axes: tuple[int, ...] = ()
    still: bool = False

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The output, (T, B, ...), or (B, ...) where it has no time axis.

        Raises:
            CalibrationError: the input has no time and batch axis.
            UnsupportedModelError: the model is in half precision, and does not run in it.
        """
        x = as_input(model, batch)
        x = x.transpose(0, 1) if self.swapped and x.dim() > 1 else x
        with _half_explained(model, x):
            if self.state_items is not None:
                return drive_steps(model, x, self.state_items, self.start)
            output = first_result(model(x))
        if isinstance(output, Tensor) and output.dim() > max(self.output_axes, default=0):
            return output.movedim(self.output_axes, tuple(range(len(self.output_axes))))
        return output

    def sequences(self, batch: Any) -> int:
        """How many sequences a batch holds."""
        x = input_of(batch)
        return x.shape[self.batch_axis] if x.dim() > self.batch_axis else 1

    def pieces(self, batch: Any, sequences: int) -> tuple[Tensor, ...]:
        """A batch's input in pieces of at most so many sequences; gradients can be taken through each."""
        x = dense(input_of(batch))
        x = x.clone() if x.is_inference() else x
        return x.split(sequences, dim=self.batch_axis) if x.dim() > self.batch_axis else (x,)

    def sample(self, batch: Any, steps: int, sequences: int) -> Tensor:
        """The first steps of the first sequences, repeated where there are fewer; all of a batch without such axes."""
        x = dense(input_of(batch))
        if x.dim() < 3:
            return x
        chosen = torch.arange(sequences, device=x.device) % x.shape[self.batch_axis]
        return x.index_select(self.batch_axis, chosen).narrow(
            1 - self.batch_axis, 0, min(steps, x.shape[1 - self.batch_axis])
        )

    def check(self, batch: Any, number: int) -> None:
        """Refuse a batch whose labels count another axis than the one that the model takes for its sequences.

        Raises:
            CalibrationError: there are as many labels as the time axis is long.
        """
        labels = labels_of(batch)
        x = input_of(batch)
        time = 1 - self.batch_axis
        if labels is None or x.dim() < 3 or len(labels) == x.shape[self.batch_axis] or len(labels) != x.shape[time]:
            return
        order = ("(T, B, ...)", "(B, T, ...)")[:: -1 if self.batch_axis == 0 else 1]
        raise CalibrationError(
            f"batch {number}: the input has shape {tuple(x.shape)}, read as {order[0]}: {x.shape[self.batch_axis]} "
            f"sequences, {len(labels)} labels; if it is {order[1]}, pass batch_first={self.batch_axis == 1}, or, where "
            "that is not offered, forward=sbc_plugin.norse.default_forward(model, batch, batch_first="
            f"{self.batch_axis == 1})"
        )


@contextmanager
def _half_explained(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Say what to do where a model in half precision does not run in it, because a part of it computes in float32.

    Raises:
        RuntimeError: the one raised inside, of another model.
        UnsupportedModelError: such a model failed inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if x.dtype not in (torch.float16, torch.bfloat16) or "dtype" not in str(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run in {x.dtype}: {str(error).partition(chr(10))[0]}; a part of it, such "
            "as Norse's LIFCell, computes in float32: compress model.float(), and convert the result"
        ) from error


def drive_steps(model: nn.Module, x: Tensor, state_items: int = 1, start: tuple[None, ...] = (None,)) -> Any:
    """Call a step model on each x[t] of its input (T, B, ...), handing the state on; outputs stacked, (T, B, ...).

    Args:
        model: ``*outputs, *state = model(x[t], *state)``.
        x: the input.
        state_items: how many results are the state.
        start: the state of the first call.

    Returns:
        The stacked output; a tuple of them where the model has several.

    Raises:
        CalibrationError: the input has no time and batch axis.
    """
    if x.dim() < 3:
        raise CalibrationError(
            f"input has shape {tuple(x.shape)}; a step model is driven over (T, B, ...): time, batch, features"
        )
    steps: list[tuple[Tensor, ...]] = []
    state: tuple[Any, ...] = start
    for step in x:
        results = model(step, *state)
        steps.append(tuple(_last(result) for result in results[:-state_items]))
        state = tuple(results[-state_items:])
    outputs = tuple(torch.stack(column) for column in zip(*steps, strict=True))
    return outputs[0] if len(outputs) == 1 else outputs


def first_result(results: Any) -> Any:
    """What a call returned, without a state behind it; of a list of every layer's output the last."""
    return _last(results[0]) if isinstance(results, tuple) and results else results


def result_of(output: Any) -> Any:
    """What a forward returned, without the state that may stand behind it in a tuple or list."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _last(result: Any) -> Any:
    return _last(result[-1]) if isinstance(result, list) and result else result


def check_has_values(model: nn.Module) -> None:
    """Refuse a model whose weights are only shapes, or not even that.

    Raises:
        UnsupportedModelError: a parameter or buffer on the meta device, or of a lazy module that has not run yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UnsupportedModelError(
                f"{name!r} has no shape before the model has run once; call model(x) on some data"
            )
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name!r} is on the meta device, so it has no values; make the model a real one first: "
                "model.to_empty(device='cpu'), then model.load_state_dict(...)"
            )


def as_input(model: nn.Module, batch: Any) -> Tensor:
    """The batch's input tensor, dense, on the model's device and of its floating type.

    Raises:
        CalibrationError: it is complex.
        UnsupportedModelError: the model has no values.
    """
    check_has_values(model)
    x = dense(input_of(batch))
    if x.is_complex():
        raise CalibrationError(
            f"the input is {x.dtype}, whose imaginary part a model of real numbers would lose; give real features, "
            "e.g. torch.view_as_real(x).flatten(-2), or x.abs()"
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x.float() if parameter is None else x.to(parameter)
