"""The grids on which a weight lies in every bit, found from its values alone.

It does not matter who quantised the weight, or which of its values were pruned since.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLES = 255  # of a scale, the largest that 8 bits hold on one side of 0
SAMPLE = 24  # values of a block that sort out most scales at once
TRIES = 16  # scales of a block tried on all its values; those of a grid are found with the first few
FIRST_BLOCKS, BLOCK_VALUES = 8, 2**20
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a float -> the integers that show its bits


@dataclass(frozen=True)
class ExactGrid:
    """A weight as whole multiples of scales, one scale for each block of consecutive values.

    Attributes:
        scale: (blocks,).
        multiples: (blocks, values), int64; ``multiples * scale``, rounded to the weight's dtype, is the weight.
    """

    scale: Tensor
    multiples: Tensor


def zero_codes(multiples: Tensor) -> tuple[Tensor, int]:
    """The code of 0.0 in each block, (blocks,), if its smallest value has code 0; and the largest code then."""
    zeros = -multiples.amin(1).clamp_max(0)
    return zeros, int((multiples.amax(1).clamp_min(0) + zeros).amax())


def exact_grids(weight: Tensor) -> list[ExactGrid]:
    """All grids of a weight (rows, ...) that are worth a look; [] if it lies on none.

    They are one scale for the whole weight, and one for each row. Where neither fits, they are the scales of the
    longest pieces of a row that fit, if these take fewer bytes than the values that are not zero. Zero points may
    differ between blocks, so a block may hold multiples from -255 to 255 as long as its codes take 8 bits.
    """
    rows = len(weight)
    columns = weight.numel() // rows
    values = weight.count_nonzero() * weight.element_size()
    if not weight.isfinite().all() or ((weight == 0) & weight.signbit()).any():
        return []  # a code has no sign to give to zero
    grids: list[ExactGrid] = []
    counts = [1, rows, *(rows * columns // size for size in range(columns // 2, 1, -1) if columns % size == 0)]
    for blocks in dict.fromkeys(counts):
        if blocks not in (1, rows) and (grids or blocks * torch.float32.itemsize >= values):
            break
        for dtype in (torch.float32, torch.float64)[weight.dtype == torch.float64 :]:
            found = _exact_grid(weight.reshape(blocks, -1), dtype)
            if found is not None and zero_codes(found.multiples)[1] <= MULTIPLES:
                grids.append(found)
                break
    return grids


def _exact_grid(blocks: Tensor, scale_dtype: torch.dtype) -> ExactGrid | None:
    """The grid of blocks (blocks, values); None unless every value is a whole multiple of a scale in every bit."""
    scales, multiples = [], []
    first, size = 0, FIRST_BLOCKS  # few at first, since they rule out most weights that lie on no grid
    while first < len(blocks):
        found = _exact_blocks(blocks[first : first + size], scale_dtype)
        if found is None:
            return None
        scales.append(found.scale)
        multiples.append(found.multiples)
        first, size = first + size, max(1, BLOCK_VALUES // (MULTIPLES * SAMPLE + blocks.shape[1]))
    return ExactGrid(torch.cat(scales), torch.cat(multiples))


def _exact_blocks(blocks: Tensor, scale_dtype: torch.dtype) -> ExactGrid | None:
    """The grid of a few blocks (blocks, values); None if there is none.

    The smallest magnitude of a block is 1, 2, ... or 255 times its scale; the first of these divisors that gives all
    other values wins.
    """
    # 1. The divisors that may fit, judged by the largest values of each block.
    values = blocks.double()
    magnitude = values.abs()
    largest = magnitude.amax(1)
    smallest = magnitude.where(magnitude > 0, torch.inf).amin(1).where(largest > 0, 1.0)
    divisors = torch.arange(1, MULTIPLES + 1, device=blocks.device)
    ratios = (magnitude.topk(min(SAMPLE, blocks.shape[1])).values / smallest[:, None])[..., None] * divisors
    rounding = 1.01 * torch.finfo(blocks.dtype).eps  # half of it from each value of a ratio
    fits = ((ratios - ratios.round()).abs() <= rounding * ratios).all(1)
    fits &= (largest / smallest)[:, None] * divisors < MULTIPLES + 0.5
    # 2. Try them on all values, smallest first, until each block has a scale.
    scale = torch.ones(len(blocks), dtype=scale_dtype, device=blocks.device)
    multiples = torch.zeros(blocks.shape, dtype=torch.int64, device=blocks.device)
    waiting = torch.arange(len(blocks), device=blocks.device)
    for _ in range(TRIES):
        if not len(waiting):
            return ExactGrid(scale, multiples)
        if not fits[waiting].any(1).all():
            return None
        divisor = divisors[fits[waiting].int().argmax(1)]
        tried = (values[waiting] / (smallest[waiting] / divisor)[:, None]).round().long()
        found = torch.zeros(len(waiting), dtype=torch.bool, device=blocks.device)
        for candidate in _scales(magnitude[waiting], tried.abs(), blocks.dtype, scale_dtype):
            equal = _same(products(tried, candidate, blocks.dtype), blocks[waiting]) & ~found
            scale[waiting[equal]], multiples[waiting[equal]] = candidate[equal], tried[equal]
            found |= equal
        fits[waiting, divisor - 1] = False
        waiting = waiting[~found]
    return None


def _scales(magnitude: Tensor, multiples: Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> list[Tensor]:
    """Scales (blocks,) whose multiples may round to the magnitudes (blocks, values) in ``dtype``.

    Each magnitude bounds the scale to half a unit in its last place, divided by its multiple. The middle of what all
    bounds leave comes first, then its neighbours.
    """
    mantissa, exponent = torch.frexp(magnitude)
    half = torch.ldexp(torch.full_like(magnitude, torch.finfo(dtype).eps / 4), exponent)
    counts = multiples > 0
    least = (magnitude - half.where(mantissa != 0.5, half / 2)) / multiples
    most = (magnitude + half) / multiples
    middle = (least.where(counts, 0.0).amax(1) + most.where(counts, torch.inf).amin(1)) / 2
    found = [middle.where(counts.any(1), 1.0).to(scale_dtype)]
    for towards in (torch.inf, -torch.inf):
        step = found[0]
        for _ in range(2):
            step = torch.nextafter(step, torch.full_like(step, towards))
            found.append(step)
    return found


def products(multiples: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``multiples * scale`` (blocks, values), computed in the dtype of ``scale`` and rounded to ``dtype``."""
    return (multiples.to(scale.dtype) * scale[:, None]).to(dtype)


def _same(found: Tensor, wanted: Tensor) -> Tensor:
    """Which rows are equal in every bit; -0.0 is not 0.0."""
    bits = BITS_OF[wanted.element_size()]
    return (found.view(bits) == wanted.contiguous().view(bits)).all(1)
