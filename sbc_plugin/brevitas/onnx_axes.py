"""Operations that move axes, as the tracer ought to write them.

Torch's tracer copies axes that are counted from the back into ONNX' Transpose, which has no such axes, and computes
with them where it joins two of them: the file is refused by the checker, or moves other axes than the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

parsed: Callable[..., Callable[[Any], Any]] = torch.onnx.symbolic_helper.parse_args


def order_of_move(rank: int, source: list[int], destination: list[int]) -> list[int]:
    """The order of axes after ``movedim``: entry k is the axis that comes to place k.

    >>> order_of_move(4, [-3], [-1])
    [0, 2, 3, 1]
    """
    moved = {to % rank: axis % rank for axis, to in zip(source, destination, strict=True)}
    others = iter(axis for axis in range(rank) if axis not in moved.values())
    return [moved[place] if place in moved else next(others) for place in range(rank)]


def _transposed(g: Any, x: Any, order: list[int]) -> Any:
    return x if order == sorted(order) else g.op("Transpose", x, perm_i=order)


@parsed("v", "t", "t")
def _moved(g: Any, x: Any, source: torch.Tensor, destination: torch.Tensor) -> Any:
    order = order_of_move(x.type().dim(), source.flatten().tolist(), destination.flatten().tolist())
    return _transposed(g, x, order)


@parsed("v", "is")
def _permuted(g: Any, x: Any, dims: list[int]) -> Any:
    return _transposed(g, x, [axis % len(dims) for axis in dims])


RULES: dict[str, Any] = {"aten::movedim": _moved, "aten::moveaxis": _moved, "aten::permute": _permuted}


class Unflattened(TorchFunctionMode):
    """Inside the block ``unflatten`` is the reshape that it stands for, whose sizes are seen one by one in the file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of a call."""
        if func is torch.Tensor.unflatten and len(args) == 3 and isinstance(args[1], int):
            x, axis, sizes = args
            axis %= x.dim()
            return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
        return func(*args, **(kwargs or {}))


@contextmanager
def axes_from_the_front(opset: int) -> Iterator[None]:
    """Inside the block, torch's tracer counts axes from the front."""
    exporter: Any = torch.onnx
    for name, rule in RULES.items():
        exporter.register_custom_op_symbolic(name, rule, opset)
    try:
        yield
    finally:
        for name in RULES:
            exporter.unregister_custom_op_symbolic(name, opset)
