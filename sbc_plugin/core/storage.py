"""A weight in few bytes, and back in every bit.

Where a weight lies on a grid, its codes are stored; where it is shorter, zeros are left out. The grid is found from the
values alone (:mod:`sbc_plugin.core.exact_grids`). Source: docs/checkpoint.md, which says where each byte lies.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sbc_plugin.core.exact_grids import BITS_OF, MULTIPLES, ExactGrid, exact_grids, products, zero_codes
from sbc_plugin.core.packing import (
    TRIT,
    best_width,
    bytes_for,
    gaps_between,
    mask_positions,
    pack_bits,
    pack_gaps,
    unpack_bits,
    unpack_gaps,
)
from sbc_plugin.errors import CheckpointError

PART = 5 * 2**17  # values unpacked at once; a multiple of 8 and of 5, so that every part starts at a byte
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class PackedWeight:
    """How the bytes of a packed weight are read: positions, then values or codes, then scales, then zero points.

    Attributes:
        shape: of the weight.
        dtype: of the weight.
        kept: how many values are stored; the others are 0.
        places: which values are stored: "all"; "mask", a bit for each weight; or "gaps" between them.
        width: bits of a gap; 0 without gaps.
        bits: of a code: 1 to 8, or ``TRIT`` for codes 0 to 2, five of which share a byte; 0 where the values themselves
            are stored.
        zero: the code of 0.0; None where each scale has its own, in a byte each.
        scales: how many equal blocks of consecutive weights have a scale of their own; 0 without codes.
        scale_dtype: of the scales.
        size: of all bytes together.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kept: int
    places: str
    width: int
    bits: float
    zero: int | None
    scales: int
    scale_dtype: torch.dtype
    size: int


def packed_bytes(weight: Tensor) -> int:
    """Size of a weight (rows, ...) in a file of :func:`sbc_plugin.save`, bytes, without the file's header.

    >>> packed_bytes(torch.ones(4, 8))  # 32 codes of one bit and one scale
    8
    """
    form, _ = _plan(weight.detach())
    return weight.numel() * weight.element_size() if form is None else form.size


def pack(weight: Tensor) -> tuple[PackedWeight, Tensor] | None:
    """How a weight (rows, ...) is packed, and its bytes, uint8 (size,); None if packing makes it no smaller."""
    weight = weight.detach().cpu()
    form, grid = _plan(weight)
    if form is None:
        return None
    flat = weight.flatten()
    kept = _is_kept(flat)
    parts = []
    if form.places == "mask":
        parts.append(pack_bits(kept, 1))
    elif form.places == "gaps":
        parts.append(pack_gaps(gaps_between(kept.nonzero()[:, 0]), form.width))
    stored = slice(None) if form.places == "all" else kept
    if grid is None:
        parts.append(_bytes_of(flat[stored]))
    else:
        zeros = zero_codes(grid.multiples)[0] if form.zero is None else torch.full_like(grid.multiples[:, 0], form.zero)
        parts.append(pack_bits((grid.multiples + zeros[:, None]).flatten()[stored], form.bits))
        parts.append(_bytes_of(grid.scale))
        if form.zero is None:
            parts.append(zeros.to(torch.uint8))
    return form, torch.cat(parts)


def unpack(form: PackedWeight, data: Tensor) -> Tensor:
    """The weight of :func:`pack`, equal in every bit; beside it this takes little memory.

    Raises:
        CheckpointError: the bytes do not fit ``form``.
    """
    count, blocks = prod(form.shape), form.scales
    ends = [
        bytes_for(form.kept, form.bits or form.dtype.itemsize * 8),
        blocks * form.scale_dtype.itemsize if form.bits else 0,
        blocks if form.bits and form.zero is None else 0,
    ]
    beside = form.size - sum(ends)
    most = {"all": 0, "mask": bytes_for(count, 1)}.get(form.places, form.size)
    fits = len(data) == form.size and (0 if form.places == "gaps" else most) <= beside <= most
    fits = fits and 0 <= form.kept <= count and (form.places != "all" or form.kept == count)
    if not fits or (form.bits and (blocks < 1 or count % blocks)):
        raise CheckpointError(f"{len(data)} bytes are no weight of {form}; the file is damaged")
    places, values, scales, zeros = data.split([beside, *ends])
    where = _positions(form, places, count)
    scale, flat = _from_bytes(scales, form.scale_dtype), torch.zeros(count, dtype=form.dtype, device=data.device)
    for start in range(0, form.kept, PART):
        stop = min(start + PART, form.kept)
        index = torch.arange(start, stop, device=data.device) if where is None else where[start:stop]
        if form.bits:
            part = values[bytes_for(start, form.bits) : bytes_for(stop, form.bits)]
            block = index // (count // blocks)
            zero = zeros[block].long() if form.zero is None else form.zero
            multiples = unpack_bits(part, form.bits, stop - start) - zero
            flat[index] = products(multiples[:, None], scale[block], form.dtype)[:, 0]
        else:
            width = form.dtype.itemsize
            flat[index] = _from_bytes(values[start * width : stop * width], form.dtype)
    return flat.reshape(form.shape)


def _positions(form: PackedWeight, places: Tensor, count: int) -> Tensor | None:
    """Where the stored values lie, (kept,) ascending; None if they are all there are.

    Raises:
        CheckpointError: they are other than ``kept`` places of the weight.
    """
    if form.places == "all":
        return None
    where = mask_positions(places, count) if form.places == "mask" else unpack_gaps(places, form.width, form.kept)
    if len(where) != form.kept or (form.kept and int(where[-1]) >= count):
        raise CheckpointError(f"the positions of {form.kept} weights do not fit {form}; the file is damaged")
    return where


def _plan(weight: Tensor) -> tuple[PackedWeight | None, ExactGrid | None]:
    """How the weight is packed in the fewest bytes, and the grid of its codes; None if it is smallest unpacked."""
    if weight.dtype not in FLOATS or weight.dim() < 2 or not weight.numel():
        return None, None
    # 1. All ways to say where values lie, times all ways to store them; of equally short ones the first.
    every_place = _all_places(weight)
    size, places, values = min(
        (
            (places.size + bytes_for(places.kept, values.bits) + values.beside, places, values)
            for values in _all_values(weight)
            for places in every_place
        ),
        key=lambda choice: choice[0],
    )
    if size >= weight.numel() * weight.element_size():
        return None, None
    # 2. The result as a record, in which values that are no codes have no bits.
    grid = values.grid
    coded = (0, 0, weight.dtype) if grid is None else (values.bits, len(grid.scale), grid.scale.dtype)
    bits, scales, scale_dtype = coded
    form = PackedWeight(
        shape=tuple(weight.shape),
        dtype=weight.dtype,
        kept=places.kept,
        places=places.kind,
        width=places.width,
        bits=bits,
        zero=values.zero,
        scales=scales,
        scale_dtype=scale_dtype,
        size=size,
    )
    return form, grid


@dataclass(frozen=True)
class _Places:
    """One way to say where the stored values lie."""

    kind: str  # "all", "mask" or "gaps"
    size: int  # bytes
    kept: int  # how many values are stored
    width: int = 0  # of a gap, bits


def _all_places(weight: Tensor) -> list[_Places]:
    kept = _is_kept(weight.flatten()).nonzero()[:, 0]
    width, size = best_width(gaps_between(kept))
    return [
        _Places("all", 0, weight.numel()),
        _Places("mask", -(-weight.numel() // 8), len(kept)),
        _Places("gaps", size, len(kept), width),
    ]


@dataclass(frozen=True)
class _Values:
    """One way to store values."""

    bits: float  # of a value or its code
    zero: int | None  # the code of 0.0; None where each scale has its own
    beside: int  # bytes of scales and zero points
    grid: ExactGrid | None  # None where the values themselves are stored


def _all_values(weight: Tensor) -> list[_Values]:
    """Codes on each grid that the weight lies on, if they fit a byte; and last the values themselves."""
    found = []
    for grid in exact_grids(weight):
        zeros, largest = zero_codes(grid.multiples)
        zero, scales = int(zeros.max()), len(grid.scale) * grid.scale.element_size()
        common = _bits_for(int(grid.multiples.amax()) + zero)
        found.append(_Values(common, zero, scales, grid))
        found.append(_Values(_bits_for(largest), None, scales + len(grid.scale), grid))
    found = [values for values in found if values.bits <= 8 and (values.zero or 0) <= MULTIPLES]
    return [*found, _Values(weight.element_size() * 8, 0, 0, None)]


def _bits_for(largest: int) -> float:
    """The bits of a code from 0 to ``largest``."""
    return TRIT if largest == 2 else max(1, largest.bit_length())


def _is_kept(flat: Tensor) -> Tensor:
    return flat.view(BITS_OF[flat.element_size()]) != 0


def _bytes_of(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _from_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    return data.clone().view(dtype)  # a copy lies at an address that suits the type
