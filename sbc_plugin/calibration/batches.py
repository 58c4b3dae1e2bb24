"""What a batch of data is: its input, its labels, its sequences; and iterables that can be run through once only.

A batch is the input (T, B, ...): time, sequences, features; or a tuple, list or dict that holds it, with labels beside
it if there are any. A batch of any other kind is for a ``forward`` of the user's own, and nothing here looks into it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from sbc_plugin.errors import CalibrationError

INPUT_KEYS = ("x", "input", "data")
LABEL_KEYS = ("labels", "label", "y", "target")


def input_of(batch: Any) -> Tensor:
    """The input tensor of a batch: the batch itself, its first item, or its "x", "input" or "data".

    Raises:
        CalibrationError: none of these is a tensor.

    >>> input_of({"x": torch.ones(2), "label": 3}).tolist()
    [1.0, 1.0]
    """
    x = batch
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), next(iter(batch.values()), None))
    elif isinstance(batch, Sequence) and len(batch):
        x = batch[0]
    if not isinstance(x, Tensor):
        raise CalibrationError(
            f"a batch of type {type(batch).__name__} holds no input tensor; give the tensor, a tuple, list or dict "
            'whose first item (or "x", "input", "data") is it, or pass `forward`'
        )
    return x


def labels_of(batch: Any) -> Tensor | None:
    """The labels (B,) that a batch holds: its second item, or its "labels", "label", "y" or "target"; None if none.

    >>> labels_of({"x": torch.zeros(1, 2, 1), "label": [3, 4]}).tolist()
    [3, 4]
    """
    given = _beside(batch)
    if given is None:
        return None
    labels = torch.as_tensor(given)
    return labels if labels.dim() == 1 and not labels.is_floating_point() else None


def holds_values(batch: Any) -> bool:
    """Whether a batch holds numbers to fit where others hold labels: floats that are no one-hot classes.

    >>> holds_values((torch.zeros(4, 2, 1), torch.rand(2))), holds_values((torch.zeros(4, 2, 1), torch.eye(2)))
    (True, False)
    """
    given = _beside(batch)
    if not isinstance(given, Tensor) or not given.is_floating_point() or not given.numel():
        return False
    one_hot = given.dim() > 1 and bool(((given == 0) | (given == 1)).all() and (given.sum(-1) == 1).all())
    return not one_hot


def _beside(batch: Any) -> Any:
    """What a batch holds beside its input, None if nothing."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None


def dense(x: Tensor) -> Tensor:
    """The same values in a tensor that is neither sparse nor quantised.

    Raises:
        CalibrationError: a nested tensor, whose sequences differ in length.
    """
    if x.is_nested:
        raise CalibrationError("the input is a nested tensor; pad its sequences to one length, or pass `forward`")
    x = x.dequantize() if x.is_quantized else x
    return x if x.layout == torch.strided else x.to_dense()


def sequences_in(batch: Any) -> int:
    """How many sequences a batch holds; 0 where only the user's own ``forward`` knows.

    >>> sequences_in((torch.zeros(10, 4, 2), "labels"))
    4
    """
    try:
        x = input_of(batch)
    except CalibrationError:
        return 0
    return x.shape[1] if x.dim() > 1 else 1


def check_batch(batch: Any, number: int) -> None:
    """Refuse an empty input, NaN and infinity in a batch, where it is known which tensor its input is.

    Raises:
        CalibrationError: no step, no sequence or no feature; NaN or infinity; or no values at all.
    """
    try:
        x = input_of(batch)
    except CalibrationError:
        return
    if x.is_nested:  # for a forward of the user's own
        return
    if x.is_meta:
        raise CalibrationError(f"batch {number}: the input is on the meta device, so it has no values; give real data")
    if x.numel() == 0:
        raise CalibrationError(
            f"batch {number}: the input has shape {tuple(x.shape)}, so it holds no steps or sequences"
        )
    values = dense(x)
    values = values.float() if values.is_floating_point() and values.dtype.itemsize == 1 else values
    if (x.is_floating_point() or x.is_complex()) and not values.isfinite().all():
        raise CalibrationError(f"batch {number}: the input holds NaN or infinity; clean the calibration data")


def peek(calibration_data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and an iterable of all batches, the first included.

    Raises:
        CalibrationError: there is no batch, or the first is empty.
    """
    found, data = begun(calibration_data)
    if not found:
        refuse_none()
    check_batch(found[0], 0)
    return found[0], data


def begun(calibration_data: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """The first batch in a list, which is empty if there is none, and an iterable of all batches, the first included.

    Raises:
        CalibrationError: the data is no iterable of batches.
    """
    if isinstance(calibration_data, Tensor):
        shape = tuple(calibration_data.shape)
        raise CalibrationError(
            f"calibration_data is one tensor {shape}, an iterable of batches is needed; if it is one batch, "
            "(T, B, ...), give [tensor]"
        )
    try:
        iterator = iter(calibration_data)
    except TypeError:
        kind = type(calibration_data).__name__
        raise CalibrationError(
            f"calibration_data is no iterable of batches but {kind}; give a list or loader"
        ) from None
    found = list(islice(iterator, 1))
    return found, (chain(found, iterator) if iterator is calibration_data else calibration_data)


def refuse_none() -> NoReturn:
    """Refuse calibration data without a batch.

    Raises:
        CalibrationError: always.
    """
    raise CalibrationError("calibration_data holds no batch; give at least one, or a fresh iterator")


def repeatable(data: Iterable[Any]) -> Iterable[Any]:
    """The data, as a list where it could be run through only once.

    >>> list(repeatable(iter([1, 2]))), repeatable((1, 2))
    ([1, 2], (1, 2))
    """
    return list(data) if isinstance(data, Iterator) else data
