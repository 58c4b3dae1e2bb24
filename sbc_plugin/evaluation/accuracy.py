"""Accuracy: how often the output that is largest, summed over time, is that of the label."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import labels_of, peek
from sbc_plugin.calibration.driver import result_of
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.errors import CalibrationError
from sbc_plugin.evaluation.answers import scores_of
from sbc_plugin.layers import Forward


@autocast_off()
def accuracy(
    model: nn.Module, data: Iterable[Any], *, forward: Forward | None = None, batch_first: bool | None = None
) -> float:
    """The fraction of sequences whose label's output is the largest; of equal ones, the lowest label's counts.

    Args:
        model: left as it was.
        data: batches that hold labels (B,): pairs ``(x, labels)``, or dicts with "labels", "label", "y" or "target".
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None. Its result is (T, B,
            classes), summed over time here, or (B, classes); or a tuple or list whose first item is that.
        batch_first: as for ``compress``.

    Raises:
        CalibrationError: no data, no labels, or a result of another shape.
    """
    first, data = peek(data)
    runner = Runner.of(model, first, forward, batch_first, library_or_plain(model))
    right = total = 0
    with torch.no_grad():
        for number, batch in enumerate(data):
            labels = labels_of(batch)
            if labels is None:
                raise CalibrationError(f"batch {number} holds no labels; give pairs (x, labels)")
            runner.check(batch, number)
            right += right_answers(runner(batch), labels, number)
            total += len(labels)
    return right / total


def right_answers(output: Any, labels: Tensor, number: int) -> int:
    """How many of a batch's labels (B,) are the largest output, of :func:`accuracy`'s forms.

    Raises:
        CalibrationError: an output of another shape; the message names the batch by its ``number``.

    >>> right_answers(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]), 0)
    1
    """
    return int(right_sequences(output, labels, number).sum())


def right_sequences(output: Any, labels: Tensor, number: int) -> Tensor:
    """Which sequences (B,) of a batch are answered rightly, on the processor; else as :func:`right_answers`.

    Raises:
        CalibrationError: an output of another shape; the message names the batch by its ``number``.
    """
    scores = scores_of(output)
    if scores is None or len(scores) != len(labels):
        given = result_of(output)
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise CalibrationError(
            f"batch {number}: the output is {found} for {len(labels)} labels; (T, B, classes) or "
            "(B, classes) is needed, pass `forward` if the model's is another"
        )
    return scores.argmax(1).cpu() == labels.cpu()
