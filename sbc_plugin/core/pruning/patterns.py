"""Where zeros may lie: anywhere, N of M kept (``"2:4"``), or in blocks (``"block:4"``).

Columns of a weight are ordered (input channel, kernel position): ``column = channel * positions + position``. A pattern
runs along consecutive input channels of one kernel position. :func:`pattern_order` brings the columns of one group or
block side by side, so that everything after it sees contiguous groups.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        kind: "unstructured", "n:m" or "block".
        size: M of N:M, K of a block, 1 when unstructured: how many consecutive inputs form a group.
        kept: N of N:M, else 0.
    """

    kind: Literal["unstructured", "n:m", "block"]
    size: int = 1
    kept: int = 0

    def __str__(self) -> str:
        return {"n:m": f"{self.kept}:{self.size}", "block": f"block:{self.size}"}.get(self.kind, self.kind)


UNSTRUCTURED = Pattern("unstructured")


def parse_pattern(text: str) -> Pattern:
    """Read ``"unstructured"``, ``"N:M"`` (N kept of M) or ``"block:K"``.

    >>> parse_pattern("2:4")
    Pattern(kind='n:m', size=4, kept=2)
    >>> parse_pattern("block:4")
    Pattern(kind='block', size=4, kept=0)

    Raises:
        SettingsError: none of these, or numbers that make no pattern.
    """
    expected = 'expected "unstructured", "N:M" with 1 <= N < M (as "2:4"), or "block:K" with K >= 1 (as "block:4")'
    if text == "unstructured":
        return UNSTRUCTURED
    first, colon, second = text.partition(":")
    if not colon or not (second.isascii() and second.isdigit()):
        raise SettingsError(f"pattern {text!r} is not known; {expected}")
    size = int(second)
    if first == "block":
        if size < 1:
            raise SettingsError(f"pattern {text!r} has blocks of {size} inputs; {expected}")
        return Pattern("block", size)
    if not (first.isascii() and first.isdigit()):
        raise SettingsError(f"pattern {text!r} is not known; {expected}")
    kept = int(first)
    if not 1 <= kept < size:
        raise SettingsError(f"pattern {text!r} keeps {kept} of {size} inputs; {expected}")
    return Pattern("n:m", size, kept)


def check_pattern(pattern: Pattern, columns: int, positions: int = 1) -> None:
    """Make sure that a layer of ``columns`` columns, ``positions`` of them a channel, can hold the pattern.

    >>> check_pattern(parse_pattern("2:4"), columns=72, positions=9)

    Raises:
        SettingsError: the columns are no whole number of channels, or the channels no whole number of groups.
    """
    if positions < 1 or columns % positions:
        raise SettingsError(f"{columns} columns are no whole number of channels of {positions} kernel positions")
    channels = columns // positions
    if channels % pattern.size:
        raise SettingsError(
            f'pattern "{pattern}" needs input channels in multiples of {pattern.size}, this layer has {channels}; '
            'use pattern="unstructured" for it'
        )


def pattern_zeros(pattern: Pattern, rows: int, columns: int, zeros: int) -> int:
    """The zeros a layer can have under the pattern when ``zeros`` are wished.

    N:M fixes their number; blocks round the wish down to whole blocks.

    >>> pattern_zeros(parse_pattern("1:4"), rows=2, columns=8, zeros=0)
    12
    >>> pattern_zeros(parse_pattern("block:4"), rows=2, columns=8, zeros=11)
    8
    """
    if pattern.kind == "n:m":
        return rows * columns // pattern.size * (pattern.size - pattern.kept)
    return zeros // pattern.size * pattern.size


def pattern_order(pattern: Pattern, columns: int, positions: int = 1, device: torch.device | None = None) -> Tensor:
    """The columns, (columns,), in an order in which each group or block is contiguous.

    >>> pattern_order(parse_pattern("block:2"), columns=8, positions=2).tolist()
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    order = torch.arange(columns, device=device)
    if pattern.kind == "unstructured" or positions == 1:
        return order
    return order.view(-1, positions).T.reshape(-1)


def smallest(score: Tensor, count: int) -> Tensor:
    """True at exactly ``count`` smallest entries of ``score``, of any shape; ties go to the first in memory order.

    >>> smallest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    flat = score.reshape(-1)
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if count >= len(flat):
        return torch.ones_like(score, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    chosen = flat <= threshold
    if int(chosen.sum()) == count:
        return chosen.view_as(score)
    chosen = flat < threshold
    tied = flat == threshold
    left = count - int(chosen.sum())
    chosen |= tied if int(tied.sum()) == left else tied & (tied.cumsum(0) <= left)
    return chosen.view_as(score)


def ranks(score: Tensor) -> Tensor:
    """The place of each entry when the last axis is sorted upwards; ties go to the first.

    >>> ranks(torch.tensor([[3.0, 1.0, 3.0]])).tolist()
    [[1, 0, 2]]
    """
    return score.argsort(dim=-1, stable=True).argsort(dim=-1)


def keep_largest(score: Tensor, zeros: int, pattern: Pattern = UNSTRUCTURED) -> Tensor:
    """The mask (rows, columns), True = kept, of the largest non-negative scores, contiguous groups, ``zeros`` removed.

    A block counts by the sum of its scores. N:M ignores ``zeros``, which follows from the pattern.

    >>> keep_largest(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 0, parse_pattern("1:2")).tolist()
    [[True, False, False, True]]
    """
    if pattern.kind == "unstructured":
        return ~smallest(score, zeros)
    grouped = score.view(len(score), -1, pattern.size)
    if pattern.kind == "block":
        removed = smallest(grouped.sum(-1), zeros // pattern.size)
        return ~removed[..., None].expand_as(grouped).reshape(score.shape)
    return (ranks(grouped) >= pattern.size - pattern.kept).view(score.shape)
