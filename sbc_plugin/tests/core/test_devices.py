"""Solvers work where their tensors are, whatever torch's default device: here one that holds no values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.allocation.knapsack import cheapest_options
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.kernels import distinct, filter_causal, impulse_response, lif, lif_box
from sbc_plugin.core.pruning.channels import Reader, channel_losses, elimination_scores
from sbc_plugin.core.pruning.prune import prune
from sbc_plugin.core.quantization.grids import make_grid
from sbc_plugin.core.quantization.scale_search import quantise
from sbc_plugin.core.storage import pack, unpack

ROWS, COLUMNS = 6, 8


def weight(seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64, device="cpu")


def hessian() -> Tensor:
    accumulator = HessianAccumulator(COLUMNS, device="cpu")
    accumulator.add(weight(1).repeat(3, 1) + torch.eye(3 * ROWS, COLUMNS, dtype=torch.float64, device="cpu"))
    return accumulator.hessian()


def on_a_grid() -> Tensor:
    grid = make_grid(weight(), 3)
    kept = weight(2) > 0
    return grid.dequantise(grid.codes(weight())).where(kept, 0.0).float()


def packed(value: Tensor) -> Tensor:
    found = pack(value)
    assert found is not None
    assert torch.equal(unpack(*found), value)
    return found[1]


def reader() -> Reader:
    owners = torch.arange(COLUMNS, device="cpu") // 2
    return Reader(weight(), hessian() + torch.eye(COLUMNS, device="cpu"), owners, torch.full((ROWS,), -1, device="cpu"))


def pruned(solver: str, pattern: str) -> Callable[[], Tensor]:
    return lambda: prune(weight(), LayerHessian(hessian()), ROWS * COLUMNS // 2, solver=solver, pattern=pattern).weight


def quantised(scale: str, granularity: str) -> Callable[[], Tensor]:
    return lambda: quantise(weight(), LayerHessian(hessian()), 3, scale=scale, granularity=granularity).weight


SOLVERS, PATTERNS = ("magnitude", "obs", "admm", "hybrid"), ("unstructured", "2:4", "block:2")
SCALES, GRANULARITIES = ("mse", "absmax", "power_of_two"), ("channel", "tensor", "group:4")
WORK: dict[str, Callable[[], Any]] = {
    **{f"{solver}, {pattern}": pruned(solver, pattern) for solver in SOLVERS for pattern in PATTERNS},
    **{f"{scale}, {size}": quantised(scale, size) for scale in SCALES for size in GRANULARITIES},
    "packing": lambda: packed(on_a_grid()),
    "channels": lambda: elimination_scores([reader()], COLUMNS // 2),
    "channels, one by one": lambda: channel_losses([reader()], COLUMNS // 2),
    "filtering": lambda: filter_causal(weight(), lif(0.3, weight(3).abs()[0, :3] / 9)),
    "impulse": lambda: impulse_response(lif_box(0.5), 4),
    "variants": lambda: distinct(lif_box(weight(3).abs()[0] / 9), COLUMNS, limit=3)[1],
    "choices": lambda: cheapest_options(
        {"a": [3.0, 1.0, 0.0], "b": [5.0, 2.0, 0.1]}, {"a": [1, 2, 3], "b": [2, 4, 6]}, 7
    ),
}


@pytest.mark.parametrize("work", WORK)
def test_the_default_device_does_not_matter(work: str) -> None:
    expected = WORK[work]()
    with torch.device("meta"):
        found = WORK[work]()
    if isinstance(expected, Tensor):
        assert found.device == expected.device and torch.equal(found, expected)
    else:
        assert found == expected
