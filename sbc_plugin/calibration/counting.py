"""What some work costs, counted and not timed, so that what follows from it is the same on every machine.

Operations of torch, the elements that they write, and multiplications each count as many seconds as they take on one
core of a processor.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbc_plugin.calibration.hessians import Overview
from sbc_plugin.layers import SpikingLayer

OPERATION, ELEMENT, PRODUCT = 8e-6, 5e-10, 1.2e-11  # seconds of each, products in single precision;
DOUBLE = 2  # times as many in double precision
# What pruning and quantising together took on layers of 50 to 2,312 inputs beside products of matrices: seconds a layer
# and a column, of Python around small tensors.
LAYER, COLUMN = 0.03, 6e-4
# Times one shot that tuning may take by default, as counted: where much is expected to be lost, and where little is;
# and seconds that it may take in the first case, however fast one shot is.
MOST, MOST_FOR_LITTLE, FREE = 8.0, 4.0, 10.0
LITTLE = 0.05  # of the accuracy
PARTS = (1.0, 0.5, 0.25)  # of the steps, the most that can be afforded


@dataclass(frozen=True)
class Cost:
    """What some work takes.

    Attributes:
        operations: of torch.
        elements: that these write.
        products: multiplications and additions of matrices and convolutions.
    """

    operations: float = 0.0
    elements: float = 0.0
    products: float = 0.0

    @property
    def seconds(self) -> float:
        """On one core of a processor."""
        return OPERATION * self.operations + ELEMENT * self.elements + PRODUCT * self.products

    def on(self, times: float) -> "Cost":
        """Of the same operations on so many times as many sequences."""
        return Cost(self.operations, times * self.elements, times * self.products)


class Counter(TorchDispatchMode):
    """Counts what runs inside its block.

    >>> import torch
    >>> with Counter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.cost.products
    24.0
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # takes a third of a second to import

        super().__init__()  # type: ignore[no-untyped-call]
        self.cost, self._flops = Cost(), flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = self._flops.get(func.overloadpacket)
        products = flops(*args, **(kwargs or {}), out_val=result) / 2 if flops is not None else 0.0
        made = [] if func.is_view else [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        written = sum(leaf.numel() for leaf in made)
        before = self.cost
        self.cost = Cost(before.operations + 1, before.elements + written, before.products + products)
        return result


class KeptTensors(saved_tensors_hooks):
    """Notes which tensors a graph that is made inside its block keeps for the gradients.

    Attributes:
        kept: address -> bytes, of each storage once.
    """

    def __init__(self) -> None:
        self.kept: dict[int, int] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def __enter__(self) -> "KeptTensors":  # type: ignore[override]
        super().__enter__()
        return self

    @property
    def memory(self) -> int:
        """Bytes of all together."""
        return sum(self.kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        self.kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # an output that its own graph keeps would never be freed


def affordable(steps: int, step: Cost, one_shot: float, lost: float | None = None) -> int:
    """How many of the steps tuning takes by default: all, a half, a quarter, or none.

    Args:
        steps: that bring most.
        step: one of them.
        one_shot: seconds of :func:`one_shot_seconds`.
        lost: of the accuracy, as expected; None where that is not known.
    """
    most = MOST_FOR_LITTLE * one_shot if lost is not None and lost < LITTLE else max(MOST * one_shot, FREE)
    return next((round(part * steps) for part in PARTS if part * steps * step.seconds <= most), 0)


def solving_seconds(layers: Iterable[SpikingLayer], products: Callable[[int, int, int | None], int]) -> float:
    """What the solvers take, as counted; see :func:`one_shot_seconds` for the arguments."""
    return sum(
        LAYER + COLUMN * layer.columns + DOUBLE * PRODUCT * products(layer.rows, layer.columns, layer.hessians)
        for layer in layers
    )


def one_shot_seconds(
    forward: Cost,
    layers: Sequence[SpikingLayer],
    overview: Mapping[str, Overview],
    first: int,
    products: Callable[[int, int, int | None], int],
) -> float:
    """What calibration and solvers take, as counted.

    Args:
        forward: a run of some sequences.
        layers: of the model.
        overview: of each layer, by name.
        first: sequences of that run.
        products: that solving a layer takes, by its rows, columns and Hessians.
    """
    summing = sum(PRODUCT * overview[layer.name].samples * layer.columns**2 for layer in layers)
    sequences = max((each.sequences for each in overview.values()), default=0)
    return solving_seconds(layers, products) + summing + forward.seconds * max(sequences / first if first else 1.0, 1.0)
