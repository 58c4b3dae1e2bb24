"""Work on one layer after the other, dealt to the ranks of ``torch.distributed`` by what each layer costs."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.progress import Shown, progress_bar
from sbc_plugin.core.solution import Solution
from sbc_plugin.layers import SpikingLayer

Result = TypeVar("Result")


def cost(layer: SpikingLayer) -> float:
    """What solving a layer takes, in products: its Hessians' inverses, and a pass over the columns for each row.

    Args:
        layer: to be solved.
    """
    return float(layer.columns**2 * ((layer.hessians or 1) * layer.columns + layer.rows))


def dealt(
    layers: Iterable[SpikingLayer],
    work: Callable[[SpikingLayer], Result],
    doing: str = "compressing",
    progress: Shown = False,
) -> dict[str, tuple[Result, float]]:
    """What the work on each layer gives, the same bits on all ranks, and the seconds that it took.

    Each rank works on its layers; then each result goes to the others.

    Args:
        layers: to work on, in the same order on all ranks.
        work: gives a :class:`Solution`, a tensor, or plain numbers.
        doing: what is done, for the progress bar.
        progress: show it; None = on a terminal.
    """
    layers = list(layers)
    owners = ranks.deal([cost(layer) for layer in layers])
    own = [layer for layer, owner in zip(layers, owners, strict=True) if owner == ranks.rank()]
    found: dict[str, tuple[Result, float]] = {}
    for layer in progress_bar(own, doing, "layer", progress):
        started = time.perf_counter()
        result = work(layer)
        found[layer.name] = result, time.perf_counter() - started
    if ranks.count() == 1:
        return found
    ranks.meet(doing)
    device = [layer.parts[0].tensor.device for layer in layers]
    return {
        layer.name: _from_owner(found.get(layer.name), owner, device)
        for layer, owner, device in zip(layers, owners, device, strict=True)
    }


def _from_owner(found: tuple[Result, float] | None, owner: int, device: torch.device) -> tuple[Result, float]:
    """A result of the owner, who alone holds one, with its tensors on this rank's device."""
    result, seconds = (None, 0.0) if found is None else found
    tensors, rest = _taken_apart(result)
    shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
    shapes, rest, seconds = ranks.handed((shapes, rest, seconds), owner)
    if found is None:
        tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes]
    bits = [tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous() for tensor in tensors]
    ranks.spread(bits, owner)
    if found is not None:
        return found
    tensors = [values.to(tensor.dtype) for values, tensor in zip(bits, tensors, strict=True)]
    return _put_together(tensors, rest), seconds


def _taken_apart(result: Any) -> tuple[list[Tensor], Any]:
    """The large tensors of a result, and what is left of it."""
    if isinstance(result, Tensor):
        return [result], "tensor"
    if not isinstance(result, Solution):
        return [], result
    tensors = [result.weight, result.mask]
    if result.grid is None:
        return tensors, replace(result, weight=_NOTHING, mask=_NOTHING)
    grid = replace(result.grid, scale=_NOTHING, zero_point=_NOTHING)
    return [*tensors, result.grid.scale, result.grid.zero_point], replace(
        result, weight=_NOTHING, mask=_NOTHING, grid=grid
    )


def _put_together(tensors: list[Tensor], rest: Any) -> Any:
    if not isinstance(rest, Solution):
        return tensors[0] if tensors else rest
    grid = rest.grid if rest.grid is None else replace(rest.grid, scale=tensors[2], zero_point=tensors[3])
    return replace(rest, weight=tensors[0], mask=tensors[1], grid=grid)


_NOTHING = torch.empty(0, device="cpu")
