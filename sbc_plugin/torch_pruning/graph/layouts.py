"""Where a producer's channels lie in a tensor, exactly, through any view, permutation or contraction.

A dimension of a tensor is a product of *factors*. A factor that carries channels has a *digit*: the number of a channel
is the mixed-radix number of all digits, the most significant first. A view of (B, N, C) as (B, N, heads, C / heads)
splits the digit of C in two; Flatten puts C and the spatial size into one dimension. Sizes that happen to be equal
decide nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple


class Factor(NamedTuple):
    """A part of a dimension: its size, and its digit in the number of the channel; None if it carries no channel."""

    size: int
    digit: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """The factors of each dimension, without those of size 1.

    Attributes:
        dims: one tuple of factors for each dimension of the tensor, the outermost factor first.
        hidden: digits that a contraction summed over.
    """

    dims: tuple[tuple[Factor, ...], ...]
    hidden: tuple[Factor, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(prod(f.size for f in dim) for dim in self.dims)

    @property
    def digits(self) -> list[Factor]:
        """All factors with a digit, the most significant first, hidden ones included."""
        factors = (f for dim in (*self.dims, self.hidden) for f in dim if f.digit is not None)
        return sorted(factors, key=lambda f: f.digit or ())

    @property
    def channel_dims(self) -> list[int]:
        """Dimensions that carry channels, that of the most significant digit first."""
        found = [(f.digit, d) for d, dim in enumerate(self.dims) for f in dim if f.digit is not None]
        return list(dict.fromkeys(d for _, d in sorted(found)))


class Strides(NamedTuple):
    """``group`` neighbouring channels of the source share ``spread`` neighbouring channels of the target.

    (1, 1) is the identity, (1, H * W) what Flatten does, (H * W, 1) what a view from features to (C, H, W) does.
    """

    group: int = 1
    spread: int = 1


def along(shape: Sequence[int], axis: int) -> Layout:
    """The layout of a tensor whose channels lie on one axis.

    >>> along((2, 5, 4), -1).dims
    ((Factor(size=2, digit=None),), (Factor(size=5, digit=None),), (Factor(size=4, digit=(0,)),))
    """
    axis %= len(shape)
    return Layout(tuple(_factors(size, (0,) if d == axis else None) for d, size in enumerate(shape)))


def _factors(size: int, digit: tuple[int, ...] | None = None) -> tuple[Factor, ...]:
    return (Factor(size, digit),) if size != 1 else ()


def viewed(layout: Layout, shape: Iterable[int]) -> Layout | None:
    """The layout after a view, squeeze or unsqueeze; None where a dimension would cut a factor in unequal parts.

    >>> viewed(along((2, 4, 3, 3), 1), (2, 36)).dims[1]
    (Factor(size=4, digit=(0,)), Factor(size=9, digit=None))
    """
    factors = [f for dim in layout.dims for f in dim]
    dims = []
    for size in shape:
        dim: list[Factor] = []
        while size > 1 and factors:
            first = factors.pop(0)
            if first.size % size == 0 and first.size != size:
                major, minor = ((*first.digit, 0), (*first.digit, 1)) if first.digit is not None else (None, None)
                factors.insert(0, Factor(first.size // size, minor))
                first = Factor(size, major)
            elif size % first.size:
                return None
            size //= first.size
            if first.digit is None and dim and dim[-1].digit is None:
                first = Factor(dim.pop().size * first.size)
            dim.append(first)
        if size > 1:
            return None
        dims.append(tuple(dim))
    return None if factors else replace(layout, dims=tuple(dims))


def permuted(layout: Layout, order: Sequence[int]) -> Layout:
    """The layout after a permutation: dimension d of the result is dimension ``order[d]``."""
    return replace(layout, dims=tuple(layout.dims[d] for d in order))


def inserted(layout: Layout, dim: int, size: int) -> Layout:
    """The layout with a new dimension in front of dimension ``dim``."""
    return replace(layout, dims=(*layout.dims[:dim], _factors(size), *layout.dims[dim:]))


def removed(layout: Layout, dims: Iterable[int], keep: bool) -> Layout | None:
    """The layout without these dimensions, of size 1 if they are kept; None where one of them carries channels."""
    gone = set(dims)
    if gone & set(layout.channel_dims):
        return None
    left = [() if d in gone else dim for d, dim in enumerate(layout.dims) if keep or d not in gone]
    return replace(layout, dims=tuple(left))


def broadcast(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after an operation on each element by itself; None where broadcasting changes a channel dimension.

    >>> broadcast(along((4, 1, 1), 0), (2, 4, 5, 5)).channel_dims
    [1]
    """
    missing = len(shape) - len(layout.dims)
    if missing < 0:
        return None
    dims = [_factors(size) for size in shape[:missing]]
    for dim, size in zip(layout.dims, shape[missing:], strict=True):
        same = prod(f.size for f in dim) == size
        if not same and any(f.digit is not None for f in dim):
            return None
        dims.append(dim if same else _factors(size))
    return replace(layout, dims=tuple(dims))


def broadcast_except(layout: Layout, dim: int, shape: tuple[int, ...]) -> Layout | None:
    """As :func:`broadcast`, where the size along a dimension without channels may change."""
    if dim in layout.channel_dims:
        return None
    short = removed(layout, [dim], keep=True)
    return None if short is None else broadcast(short, shape)


def contracted(layout: Layout, dim: int, position: int, size: int) -> Layout:
    """The layout after a matrix product that sums over ``dim``; the other operand brings a dimension of ``size``."""
    summed = tuple(f for f in layout.dims[dim] if f.digit is not None)
    dims = [d for number, d in enumerate(layout.dims) if number != dim]
    dims.insert(position, _factors(size))
    return Layout(tuple(dims), layout.hidden + summed)


def arrival(layout: Layout, axis: int) -> Strides | None:
    """How channels of the source number the positions along ``axis``; None if they do not number them in order."""
    dim, digits = layout.dims[axis], layout.digits
    leading = [f for f in dim if f.digit is not None]
    ordered = list(dim[: len(leading)]) == leading == digits[: len(leading)]
    if not leading or layout.hidden or not ordered:
        return None
    return Strides(prod(f.size for f in digits[len(leading) :]), prod(f.size for f in dim[len(leading) :]))
