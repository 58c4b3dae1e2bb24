"""One whole sequence through a model, called in the way in which it was seen to take time: :class:`Driver`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import dense, input_of, labels_of
from sbc_plugin.errors import CalibrationError


@dataclass(frozen=True)
class Driver:
    """``forward(model, batch)`` for a model that takes one sequence in one call, or one step and a state in each.

    Attributes:
        state_items: how many results of a step go into the next call, behind the input; None: one call takes all.
        start: what goes into the first call, behind the input.
        batch_axis: of the data, which counts its sequences: 1 in (T, B, ...), 0 in (B, T, ...) and in (B, ...).
        swapped: the model takes time and batch the other way round than the data has them.
        output_axes: where the output of one call has (time, batch), or batch alone; () leaves it as it is.
    """

    state_items: int | None = None
    start: tuple[None, ...] = ()
    batch_axis: int = 1
    swapped: bool = False
    output_axes: tuple[int, ...] = ()

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The output, (T, B, ...), or (B, ...) where it has no time axis.

        Raises:
            CalibrationError: the input has no time and batch axis.
        """
        x = as_input(model, batch)
        x = x.transpose(0, 1) if self.swapped and x.dim() > 1 else x
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


def _last(result: Any) -> Any:
    return _last(result[-1]) if isinstance(result, list) and result else result


def as_input(model: nn.Module, batch: Any) -> Tensor:
    """The batch's input tensor, dense, on the model's device and of its floating type."""
    x = dense(input_of(batch))
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x.float() if parameter is None else x.to(parameter)
