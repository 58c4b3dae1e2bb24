"""Trying one step of tuning on a few sequences: whether gradients can be taken, in what memory, and what a step costs.

Costs are counted, not timed, so that what follows from them is the same on every machine: operations of torch, the
elements that they write, and multiplications; each counts as many seconds as it takes on one core of a processor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import TRACED, Runner
from sbc_plugin.calibration.hessians import Overview
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.memory import memory_left
from sbc_plugin.compression.objective import distance_on, targets
from sbc_plugin.compression.tuning import gradients, no_gradient
from sbc_plugin.core.costs import solver_products
from sbc_plugin.core.sizes import in_words
from sbc_plugin.errors import CompressionError
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import TUNED_SEQUENCES, Calibration

OPERATION, ELEMENT, PRODUCT = 8e-6, 5e-10, 1.2e-11  # seconds of each, products in single precision;
DOUBLE = 2  # times as many in double precision
LAYER, COLUMN = 0.03, 6e-4  # seconds of a layer's solvers around their products, and for each column
SHARE = 0.5  # of the memory that is left, for what a step keeps
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


@dataclass(frozen=True)
class Trial:
    """One step of tuning on a few sequences.

    Attributes:
        reason: why no step can be taken, "" if one can.
        forward: cost of running a batch as large as the first.
        step: cost of a step on one piece.
        pieces: sequences of a piece.
    """

    reason: str = ""
    forward: Cost = Cost()
    step: Cost = Cost()
    pieces: int = TUNED_SEQUENCES


def tried(runner: Runner, layers: list[SpikingLayer], batch: Any, calibration: Calibration) -> Trial:
    """A step on the first sequences of a batch; the model stays as it is.

    Args:
        runner: of the dense model.
        layers: whose weights shall get gradients.
        batch: of calibration data.
        calibration: settings; what it takes the output for, and the memory, count.
    """
    piece = next(iter(runner.pieces(batch, TRACED)))
    sequences, kept = runner.sequences(piece), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        aims = targets(runner, [piece], calibration.outputs == "classes")
        with torch.enable_grad(), gradients(runner.model, layers), layer_by_layer(runner, piece) as source:
            # A run of its own for the memory, because hooks on what is kept hide that it was changed in place.
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = distance_on(source, aims, aims.train[0])
            with Counter() as counter:
                loss = distance_on(source, aims, aims.train[0])
                forward = counter.cost
                if not loss.requires_grad:
                    return Trial(no_gradient(runner.model))
                loss.backward()
    except (CompressionError, RuntimeError) as error:  # whatever stands in the way, tuning was not asked for
        return Trial(str(error).partition("\n")[0])
    room, needed = memory_left(calibration.memory_bytes), sum(kept.values()) / max(sequences, 1)
    size, reason = TUNED_SEQUENCES, ""
    if sequences and room is not None and needed:
        size = min(size, int(SHARE * room / needed))
        if size < 1:
            reason = f"a step on one sequence takes {in_words(needed)}, and {in_words(room)} are left"
    held = max(runner.sequences(batch), 1)
    step = counter.cost.on(min(max(size, 1), held) / sequences) if sequences else counter.cost
    return Trial(reason, forward.on(held / sequences) if sequences else forward, step, max(size, 1))


def tried_by_all(runner: Runner, layers: list[SpikingLayer], batch: Any, calibration: Calibration) -> Trial:
    """The same on all ranks: what one cannot do none does, and pieces are as small as the smallest."""
    with ranks.alone():
        trial = tried(runner, layers, batch, calibration)
    found = ranks.everyone(trial)
    reason = next((each.reason for each in found if each.reason), "")
    return replace(found[0], reason=reason, pieces=min(each.pieces for each in found))


def affordable(steps: int, trial: Trial, one_shot: float, lost: float | None = None) -> int:
    """How many of the steps tuning takes by default: all, a half, a quarter, or none.

    Args:
        steps: that bring most.
        trial: of one of them.
        one_shot: seconds of :func:`one_shot_seconds`.
        lost: of the accuracy, as expected; None where that is not known.
    """
    most = MOST_FOR_LITTLE * one_shot if lost is not None and lost < LITTLE else max(MOST * one_shot, FREE)
    return next((round(part * steps) for part in PARTS if part * steps * trial.step.seconds <= most), 0)


def one_shot_seconds(
    trial: Trial, layers: Sequence[SpikingLayer], overview: Mapping[str, Overview], first: int
) -> float:
    """What calibration and solvers take, as counted.

    Args:
        trial: of a step of tuning, which tells what a run costs.
        layers: of the model.
        overview: of each layer, by name.
        first: sequences of the first batch.
    """
    solving = sum(
        LAYER + COLUMN * layer.columns + DOUBLE * PRODUCT * solver_products(layer.rows, layer.columns, layer.hessians)
        for layer in layers
    )
    summing = sum(PRODUCT * overview[layer.name].samples * layer.columns**2 for layer in layers)
    sequences = max((each.sequences for each in overview.values()), default=0)
    return solving + summing + trial.forward.seconds * max(sequences / first if first else 1.0, 1.0)


class Counter(TorchDispatchMode):
    """Counts what runs inside its block.

    >>> with Counter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.cost.products
    24.0
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func.overloadpacket)
        products = flops(*args, **(kwargs or {}), out_val=result) / 2 if flops is not None else 0.0
        made = [] if func.is_view else [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        written = sum(leaf.numel() for leaf in made)
        before = self.cost
        self.cost = Cost(before.operations + 1, before.elements + written, before.products + products)
        return result
