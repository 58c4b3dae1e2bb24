"""Bits side by side, against numpy's packbits; base 3, against Python's int; gaps, against a plain loop."""

import numpy
import pytest
import torch

from sbc_plugin.core import packing
from sbc_plugin.core.packing import (
    best_width,
    gaps_between,
    pack_bits,
    pack_gaps,
    pack_trits,
    unpack_bits,
    unpack_gaps,
    unpack_trits,
)


def numbers(count: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001])
def test_packing_is_that_of_numpy_and_comes_back(bits: int, count: int) -> None:
    drawn = numbers(count, bits)
    matrix = (drawn.numpy()[:, None] >> numpy.arange(bits)) & 1
    expected = numpy.packbits(matrix.astype(numpy.uint8).flatten(), bitorder="little")
    data = pack_bits(drawn, bits)
    assert data.dtype == torch.uint8 and data.tolist() == expected.tolist()
    assert unpack_bits(data, bits, count).tolist() == drawn.tolist()


@pytest.mark.parametrize("bits", [1, 3, 8, 13])
def test_chunks_leave_no_seam(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = numbers(1001, bits)
    whole = pack_bits(drawn, bits)
    monkeypatch.setattr(packing, "CHUNK", 64)
    assert torch.equal(pack_bits(drawn, bits), whole)
    assert torch.equal(unpack_bits(whole, bits, 1001), drawn)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 1001])
def test_a_byte_read_in_base_3_is_five_numbers(count: int) -> None:
    drawn = torch.randint(3, (count,), generator=torch.Generator().manual_seed(count))
    digits = "".join(map(str, drawn.tolist()))
    data = pack_trits(drawn)
    assert data.dtype == torch.uint8
    assert data.tolist() == [int(digits[start : start + 5][::-1], 3) for start in range(0, count, 5)]
    assert unpack_trits(data, count).tolist() == drawn.tolist()


def fields_by_loop(positions: list[int], width: int) -> list[int]:
    fields, before = [], -1
    for position in positions:
        gap = position - before - 1
        while gap >= 2**width - 1:
            fields.append(2**width - 1)
            gap -= 2**width - 1
        fields.append(gap)
        before = position
    return fields


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.6, 1.0])
def test_gaps_are_those_of_a_plain_loop_and_come_back(width: int, density: float) -> None:
    kept = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < density
    positions = kept.nonzero()[:, 0]
    fields = fields_by_loop(positions.tolist(), width)
    data = pack_gaps(gaps_between(positions), width)
    assert unpack_bits(data, width, len(fields)).tolist() == fields and len(data) == -(-len(fields) * width // 8)
    assert unpack_gaps(data, width, len(positions)).tolist() == positions.tolist()


@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 0.3, 1.0])
def test_the_best_width_is_the_shortest_of_all(density: float) -> None:
    kept = torch.rand(5000, generator=torch.Generator().manual_seed(2)) < density
    gaps = gaps_between(kept.nonzero()[:, 0])
    sizes = {width: len(pack_gaps(gaps, width)) for width in range(1, 17)}
    width, size = best_width(gaps)
    assert size == sizes[width] == min(sizes.values())
