"""Sizes: grids are found without being told, and the shortest of three forms is taken."""

import pytest
import torch

from sbc_plugin.core.quantization import make_grid, round_to_nearest
from sbc_plugin.core.storage import grid_bits, packed_bytes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scale", ["absmax", "power_of_two"])
def test_finds_the_bits_of_a_rounded_weight(bits: int, scale: str) -> None:
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(bits))
    rounded = round_to_nearest(weight, make_grid(weight, bits, scale=scale))
    # A power-of-two scale rounds up, so the largest codes may stay unused.
    assert grid_bits(rounded) == bits or (scale == "power_of_two" and grid_bits(rounded) == bits - 1)


def test_a_trained_weight_lies_on_no_grid() -> None:
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    assert grid_bits(weight) is None
    assert packed_bytes(weight) == 20 * 300 * 4


def test_rows_of_zeros_do_not_matter() -> None:
    assert grid_bits(torch.zeros(3, 4)) == 2
    assert grid_bits(torch.tensor([[0.0, 0.0], [0.5, -0.5]])) == 2


def test_the_shortest_form_is_taken() -> None:
    rows, columns = 10, 1000
    weight = torch.zeros(rows, columns)
    weight[:, ::100] = 1.0
    kept = rows * 10
    mask = (rows * columns + kept * 4) / 8
    indices = (kept * (4 + 16) + 32 * rows) / 8
    assert indices < mask
    assert packed_bytes(weight, bits=4) == indices + 4 * rows
    weight[:, ::4] = 1.0
    assert packed_bytes(weight, bits=4) == (rows * columns + int(weight.sum()) * 4) / 8 + 4 * rows
