"""How many bytes a compressed weight takes: codes where it lies on a grid, zeros left out where that is shorter."""

import math

import torch
from torch import Tensor

CODES = 127  # the largest code of 8 bits
TOLERANCE = 1e-4  # of a code: what float32 and bfloat16 rounding leave of an integer


def grid_bits(weight: Tensor) -> int | None:
    """The fewest bits (2 to 8) whose symmetric integer codes, times one scale a row, give ``weight``; None if none do.

    A row's scale is sought as its smallest nonzero magnitude divided by 1, 2, ... 127, so this finds the grid of a
    weight whose history is not known. Zero points other than 0 and group-wise scales are not found.

    Args:
        weight: (rows, columns).

    >>> grid_bits(torch.tensor([[0.5, -1.0, 0.0], [0.3, 0.9, 0.6]]))
    3
    >>> grid_bits(torch.tensor([[0.5, -0.77, 0.1234, 0.91]])) is None
    True
    """
    magnitude = weight.detach().double().abs()
    magnitude = magnitude[magnitude.amax(1) > 0]
    largest_codes = torch.zeros(len(magnitude), dtype=torch.float64, device=weight.device)
    smallest = magnitude.where(magnitude > 0, torch.inf).amin(1)
    for code in range(1, CODES + 1):
        open_rows = (largest_codes == 0).nonzero()[:, 0]
        if not len(open_rows):
            break
        codes = magnitude[open_rows] / (smallest[open_rows] / code)[:, None]
        fits = ((codes - codes.round()).abs() <= TOLERANCE * codes.clamp_min(1)).all(1) & (codes.amax(1) < CODES + 0.5)
        largest_codes[open_rows[fits]] = codes.amax(1).round()[fits]
    if len(magnitude) == 0:
        return 2
    if not largest_codes.all():
        return None
    return max(2, math.ceil(math.log2(float(largest_codes.max()) + 1)) + 1)


def packed_bytes(weight: Tensor, bits: int | None = None) -> int:
    """Size of a weight (rows, columns), packed: codes of ``bits`` each and a float32 scale a row, or float32 values.

    Zeros are left out where that is shorter, their places told by a bit mask or by 16- or 32-bit column indices.

    Args:
        weight: (rows, columns).
        bits: of a code; None = sought with :func:`grid_bits`.

    >>> packed_bytes(torch.ones(4, 8), bits=4)  # 32 codes of half a byte and 4 scales
    32
    """
    bits = grid_bits(weight) if bits is None else bits
    rows, columns = weight.shape
    kept = int(weight.count_nonzero())
    value, scales = (32, 0) if bits is None else (bits, 4 * rows)
    index = 16 if columns <= 2**16 else 32
    dense, masked = weight.numel() * value, weight.numel() + kept * value
    indexed = kept * (value + index) + 32 * rows
    return math.ceil(min(dense, masked, indexed) / 8) + scales
