"""Who reads a channel: the inputs of all layers that change when the channel does, found for many layers at once.

A layer's inputs depend on the layers right in front of it only, because all other outputs are held as recorded. So
layers that reach different inputs are changed in the same runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from math import comb
from typing import Any

import torch
from torch import Tensor

UNRELATED, MIXED = -1, -2
LARGE = 40.0  # times the layer's largest output: such an increase passes max pooling and rectifiers
DRAWN_AGAIN = 4  # times that other weights are drawn, for layers of which some channels are seen and others are not


def readers_of(replay: Any, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """For each name, reader -> (inputs,): the channel of ``name`` that an input depends on, or UNRELATED, or MIXED.

    Layers without an input that depends on ``name`` are left out.

    Every channel has a code of n bits, half of which are 1. For each bit the model runs once, with all channels
    changed that have this bit. The bits in whose runs an input changes are the code of its channel, or more bits than
    a code has where it depends on several, because no code contains another. 512 channels take 12 runs.

    Args:
        replay: of the model.
        names: of the layers whose channels are changed.
    """
    found = _decoded(replay, names, LARGE)
    # What blocks an increase, as min pooling does, may let a decrease pass.
    _fill_in(found, _decoded(replay, _unseen(replay, found), -LARGE))
    # A rectifier that never opens hides what its product with a gate depends on, and opens for other weights.
    for number in range(1, DRAWN_AGAIN + 1):
        if not (partly := [name for name in _unseen(replay, found) if _seen(found[name])]):
            break
        _fill_in(found, _decoded(replay.drawn_again(number), partly, LARGE))
    return found


def _fill_in(found: dict[str, dict[str, Tensor]], more: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put what other runs have seen where nothing is known yet."""
    for name, readers in more.items():
        for reader, numbers in readers.items():
            known = found[name].get(reader, numbers)
            found[name][reader] = known.where(known != UNRELATED, numbers)


def _unseen(replay: Any, found: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Layers with a channel that no input depends on, as far as is known; none whose channels are mixed."""
    seen = {name: _seen(readers) for name, readers in found.items()}
    return [name for name, channels in seen.items() if MIXED not in channels and len(channels) < replay.channels(name)]


def _seen(readers: Mapping[str, Tensor]) -> set[int]:
    """The channels that some input depends on; MIXED where it depends on several."""
    return {number for numbers in readers.values() for number in numbers.unique().tolist()} - {UNRELATED}


def _decoded(replay: Any, names: Sequence[str], change: float) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for reach in _disjoint(replay, names, change):
        together = _together(replay, reach, change)
        if together is None:  # a layer reaches an input only while some of its channels are changed, not all of them
            together = {name: (_together(replay, {name: None}, change) or {})[name] for name in reach}
        found |= together
    return found


def _disjoint(replay: Any, names: Sequence[str], change: float) -> Iterator[dict[str, Any]]:
    """Layers that reach different inputs, each with what it reaches: layer -> (inputs,), bool."""
    if len(names) == 1:
        yield {names[0]: None}
        return
    classes: list[tuple[dict[str, Any], Tensor]] = []
    for name in names:
        reached = replay.changed({name: torch.ones(replay.channels(name), dtype=torch.bool, device="cpu")}, change)
        flat = torch.cat([reached[reader] for reader in sorted(reached)])
        for members, taken in classes:
            if not (taken & flat).any():
                members[name] = reached
                taken |= flat
                break
        else:
            classes.append(({name: reached}, flat))
    yield from (members for members, _ in classes)


def _together(replay: Any, reach: Mapping[str, Any], change: float) -> dict[str, dict[str, Tensor]] | None:
    """What :func:`readers_of` says of these layers; None if one of them reaches more than ``reach`` says."""
    counts = [replay.channels(name) for name in reach]
    starts = [sum(counts[:number]) for number in range(len(counts))]
    codes = _codes(sum(counts))
    parts = list(zip(reach, codes.split(counts), strict=True))
    bits = int(codes.max()).bit_length()
    passes = [replay.changed({name: part >> bit & 1 == 1 for name, part in parts}, change) for bit in range(bits)]
    found: dict[str, dict[str, Tensor]] = {name: {} for name in reach}
    for reader in passes[0]:
        seen = torch.stack([changed[reader].long() << bit for bit, changed in enumerate(passes)]).sum(0)
        channels = _channels(seen, codes)
        unclaimed = channels != UNRELATED
        for (name, reached), start, count in zip(reach.items(), starts, counts, strict=True):
            mine = unclaimed if reached is None else unclaimed & reached[reader]
            own = (channels >= start) & (channels < start + count)
            if (mine & (channels >= 0) & ~own).any():
                return None
            if mine.any():
                found[name][reader] = torch.where(own, channels - start, channels).where(mine, UNRELATED)
            unclaimed = unclaimed & ~mine
        if unclaimed.any():
            return None
    return found


def _codes(count: int) -> Tensor:
    """The codes of so many channels, (count,), rising numbers with equally many bits that are 1."""
    bits = next(n for n in range(2, count + 2) if comb(n, n // 2) >= count)
    ones = islice(combinations(range(bits), bits // 2), count)
    return torch.tensor(sorted(sum(1 << bit for bit in code) for code in ones), device="cpu")


def _channels(seen: Tensor, codes: Tensor) -> Tensor:
    """The channel of each code that was seen: UNRELATED for none, MIXED for what is no channel's code."""
    place = torch.searchsorted(codes, seen).clamp_max(len(codes) - 1)
    return place.where(codes[place] == seen, MIXED).where(seen != 0, UNRELATED)
