"""Whole numbers in few bits: of a fixed width side by side, five of base 3 in a byte, and positions by their gaps."""

import torch
from torch import Tensor

CHUNK = 2**20  # numbers expanded to bits at once; a multiple of 8, so that every chunk ends at a byte
WIDTHS = range(1, 17)  # of a gap, bits
TRITS = 5  # numbers of base 3 in a byte: 3^5 = 243
TRIT = 8 / TRITS  # bits that one of them takes


def pack_bits(numbers: Tensor, bits: float) -> Tensor:
    """Numbers (n,) from 0 to ``2^bits - 1`` as bytes (ceil(n * bits / 8),), uint8.

    Number k takes the bits ``k * bits`` to ``k * bits + bits - 1`` of the stream, its lowest bit first; a byte holds
    eight bits of the stream, the first as its lowest. The rest of the last byte is 0. With ``TRIT`` bits, numbers
    are from 0 to 2 and :func:`pack_trits` packs them.

    >>> pack_bits(torch.tensor([1, 2, 3, 0, 1]), 2).tolist()  # 0b00_11_10_01, 0b01
    [57, 1]
    """
    if bits == TRIT:
        return pack_trits(numbers)
    places, powers = torch.arange(int(bits), device=numbers.device), 2 ** torch.arange(8, device=numbers.device)
    packed = []
    for part in numbers.long().split(CHUNK):
        stream = ((part[:, None] >> places) & 1).flatten()
        stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
        packed.append((stream.view(-1, 8) * powers).sum(1).to(torch.uint8))
    return torch.cat(packed)


def unpack_bits(data: Tensor, bits: float, count: int) -> Tensor:
    """The first ``count`` numbers of ``bits`` each in bytes made by :func:`pack_bits`, int64 (count,).

    >>> unpack_bits(torch.tensor([57, 1], dtype=torch.uint8), 2, 5).tolist()
    [1, 2, 3, 0, 1]
    """
    if bits == TRIT:
        return unpack_trits(data, count)
    width = int(bits)
    places, powers = torch.arange(8, device=data.device), 2 ** torch.arange(width, device=data.device)
    numbers = [torch.zeros(0, dtype=torch.int64, device=data.device)]
    for part in data.split(CHUNK // 8 * width):  # bytes of CHUNK numbers
        stream = ((part.long()[:, None] >> places) & 1).flatten()
        whole = len(stream) // width * width
        numbers.append((stream[:whole].view(-1, width) * powers).sum(1))
    return torch.cat(numbers)[:count]


def pack_trits(numbers: Tensor) -> Tensor:
    """Numbers (n,) from 0 to 2 as bytes (ceil(n / 5),), uint8: five a byte, the first as its lowest digit in base 3.

    The rest of the last byte is 0.

    >>> pack_trits(torch.tensor([1, 2, 0, 0, 0, 2])).tolist()  # 1 + 2 * 3, 2
    [7, 2]
    """
    powers = 3 ** torch.arange(TRITS, device=numbers.device)
    digits = torch.nn.functional.pad(numbers.long(), (0, -len(numbers) % TRITS))
    return (digits.view(-1, TRITS) * powers).sum(1).to(torch.uint8)


def unpack_trits(data: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers in bytes made by :func:`pack_trits`, int64 (count,).

    >>> unpack_trits(torch.tensor([7, 2], dtype=torch.uint8), 6).tolist()
    [1, 2, 0, 0, 0, 2]
    """
    powers = 3 ** torch.arange(TRITS, device=data.device)
    return (data.long()[:, None] // powers % 3).flatten()[:count]


def bytes_for(count: int, bits: float) -> int:
    """How many bytes :func:`pack_bits` needs for ``count`` numbers."""
    return -(-count // TRITS) if bits == TRIT else -(-count * int(bits) // 8)


def gaps_between(positions: Tensor) -> Tensor:
    """The places between each position (n,), ascending, and the one before it; for the first, all places before it."""
    return positions.diff(prepend=positions.new_full((1,), -1)) - 1


def best_width(gaps: Tensor) -> tuple[int, int]:
    """The width, in bits, in which :func:`pack_gaps` needs the fewest bytes, and that number of bytes."""
    fields = {width: len(gaps) + int((gaps // (2**width - 1)).sum()) for width in WIDTHS}
    width = min(fields, key=lambda width: (fields[width] * width, width))
    return width, bytes_for(fields[width], width)


def pack_gaps(gaps: Tensor, width: int) -> Tensor:
    """Gaps as fields of ``width`` bits, packed, uint8.

    A field below ``2^width - 1`` is a gap that ends at a position. A field of ``2^width - 1`` passes over that many
    places and ends at no position, so that a longer gap takes several fields.
    """
    longest = 2**width - 1
    last = (gaps // longest + 1).cumsum(0) - 1
    fields = gaps.new_full((int(last[-1]) + 1 if len(last) else 0,), longest)
    fields[last] = gaps % longest
    return pack_bits(fields, width)


def unpack_gaps(data: Tensor, width: int, count: int) -> Tensor:
    """The first ``count`` positions in bytes made by :func:`pack_gaps`, int64; fewer if it holds fewer.

    >>> unpack_gaps(pack_gaps(gaps_between(torch.tensor([0, 9, 10])), 2), 2, 3).tolist()
    [0, 9, 10]
    """
    found, known, passed = [torch.zeros(0, dtype=torch.int64, device=data.device)], 0, 0
    for part in data.split(CHUNK // 8 * width):  # bytes of CHUNK fields
        fields = unpack_bits(part, width, len(part) * 8 // width)
        ends = fields < 2**width - 1
        reached = (fields + ends.long()).cumsum(0) + passed
        found.append(reached[ends] - 1)
        known, passed = known + len(found[-1]), int(reached[-1]) if len(reached) else passed
        if known >= count:
            break
    return torch.cat(found)[:count]


def mask_positions(data: Tensor, count: int) -> Tensor:
    """Where the first ``count`` bits of bytes made by :func:`pack_bits` are 1, int64, ascending.

    >>> mask_positions(torch.tensor([0b101, 0b11], dtype=torch.uint8), 9).tolist()
    [0, 2, 8]
    """
    found = [torch.zeros(0, dtype=torch.int64, device=data.device)]
    for number, part in enumerate(data.split(CHUNK // 8)):
        start = number * CHUNK
        found.append(unpack_bits(part, 1, max(0, min(len(part) * 8, count - start))).nonzero()[:, 0] + start)
    return torch.cat(found)
