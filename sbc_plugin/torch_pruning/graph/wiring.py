"""Which channels of which module reach a tensor: autograd's graph read with the layouts of :mod:`.layouts`.

While the model runs once, every prunable module returns a leaf that remembers its module, so what lies between two
modules is a small graph of its own, however long the sequence is. Steps that do the same thing give the same sources,
and sources are sets, so the result does not grow with the number of time steps.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sbc_plugin.torch_pruning.graph.layouts import (
    Layout,
    Strides,
    along,
    arrival,
    broadcast_except,
    contracted,
    removed,
)
from sbc_plugin.torch_pruning.graph.operations import layout_after, range_of, signed


class Source(NamedTuple):
    """A producer of channels: a node of the graph, and which of its parts; None for a node without parts."""

    node: Any
    part: int | None = None


Reach = frozenset[tuple[Source, Layout]]
NOTHING: Reach = frozenset()


def tag(output: Tensor, reach: Reach) -> Tensor:
    """The same values without their history, with a reach that :class:`Wiring` finds; safe to change in place."""
    leaf = output.detach().requires_grad_()
    leaf.sbc_reach = reach  # type: ignore[attr-defined]
    return leaf.clone()


class Junctions(Protocol):
    """Makes the sources that lie between modules."""

    def concat(self, parts: list[tuple[frozenset[tuple[Source, Strides]], int]]) -> Source:
        """The source that a concatenation is; each part is given by its sources and its size."""

    def split(self, sources: frozenset[tuple[Source, Strides]], sizes: tuple[int, ...], part: int) -> Source:
        """The source that one part of a split is."""

    def parameter(self, value: nn.Parameter, axis: int | None = None) -> tuple[Source, int] | None:
        """A parameter of no module, and the axis on which it is cut; None if it is not."""


class Wiring:
    """Finds the sources of tensors, and remembers why a source's channels cannot be separated any more.

    Attributes:
        tangled: source -> the operation that mixed its channels.
    """

    def __init__(self, junctions: Junctions) -> None:
        self.junctions = junctions
        self.tangled: dict[Any, str] = {}
        self._known: dict[tuple[Any, int], Reach] = {}

    def reach(self, x: Tensor) -> Reach:
        """The sources of a tensor and the layout of each."""
        if x.grad_fn is None:
            return NOTHING
        root = (x.grad_fn, x.output_nr)
        stack = [root]
        while stack:
            fn, number = stack[-1]
            open_ = [call for call in _inputs(fn) if call not in self._known] if (fn, number) not in self._known else []
            stack.extend(open_)
            if not open_:
                self._known.setdefault((fn, number), self._through(fn, number))
                stack.pop()
        return self._known[root]

    def arrive(self, reach: Reach, axis: int, where: str) -> frozenset[tuple[Source, Strides]]:
        """How the sources number the positions along ``axis``; ``where`` becomes the reason of those that do not."""
        found = set()
        for source, layout in reach:
            strides = arrival(layout, axis)
            if strides is None:
                self._tangle(source, where)
            else:
                found.add((source, strides))
        return frozenset(found)

    def _tangle(self, source: Source, reason: str) -> None:
        self.tangled.setdefault(source.node, reason)

    def _through(self, fn: Any, number: int) -> Reach:
        if hasattr(fn, "variable"):
            return self._leaf(fn.variable)
        operation = type(fn).__name__.rstrip("0123456789").removesuffix("Backward")
        inputs, out = [(self._known[call], _shape(*call)) for call in _inputs(fn)], _shape(fn, number)
        # 1. Operations on several tensors that lie in different places of the result.
        if operation == "Cat":
            return self._concatenated(inputs, signed(fn._saved_dim) % len(out), out)
        if operation in ("Bmm", "Mm", "Mv") and len(inputs) == 2:
            return self._product(inputs, operation)
        if operation.startswith("ScaledDotProduct"):
            return self._attention(inputs[:3], out)
        # 2. Operations that take a part of one tensor.
        inputs = self._aligned(fn, inputs)
        if operation in ("Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "UnsafeSplitWithSizes"):
            return self._parts(operation, fn, number, inputs, out)
        # 3. All others change the layout of each source by itself.
        return self._each(inputs, operation, lambda layout: layout_after(operation, fn, layout, out))

    def _each(self, inputs: Iterable[tuple[Reach, Any]], reason: str, rule: Callable[[Layout], Layout | None]) -> Reach:
        result = set()
        for reach, _ in inputs:
            for source, layout in reach:
                new = rule(layout)
                if new is None:
                    self._tangle(source, reason)
                else:
                    result.add((source, new))
        return frozenset(result)

    def _leaf(self, value: Tensor) -> Reach:
        if hasattr(value, "sbc_reach"):
            reach: Reach = value.sbc_reach
            return reach
        return self._parameter(value)

    def _parameter(self, value: Any, axis: int | None = None) -> Reach:
        found = self.junctions.parameter(value, axis)
        return NOTHING if found is None else frozenset([(found[0], along(value.shape, found[1]))])

    def _aligned(self, fn: Any, inputs: list[tuple[Reach, Any]]) -> list[tuple[Reach, Any]]:
        """The inputs, with a parameter's channels on the dimension on which those of its partner lie."""
        for number, (function, _) in enumerate(_inputs(fn)):
            value = getattr(function, "variable", None)
            if isinstance(value, nn.Parameter):
                others = [layout for k, (reach, _) in enumerate(inputs) if k != number for _, layout in reach]
                partner = next((layout for layout in others if layout.channel_dims), None)
                if partner is not None:
                    axis = partner.channel_dims[0] - len(partner.dims)
                    inputs[number] = (self._parameter(value, axis), inputs[number][1])
        return inputs

    def _concatenated(self, inputs: list[tuple[Reach, Any]], dim: int, out: tuple[int, ...]) -> Reach:
        if not any(dim in layout.channel_dims for reach, _ in inputs for _, layout in reach):
            return self._each(inputs, "Cat", lambda layout: broadcast_except(layout, dim, out))
        axis = dim - len(out)
        parts = [(self.arrive(reach, axis, "Cat"), shape[dim]) for reach, shape in inputs]
        return frozenset([(self.junctions.concat(parts), along(out, dim))])

    def _parts(self, operation: str, fn: Any, number: int, inputs: list[tuple[Reach, Any]], out: Any) -> Reach:
        """A part of a tensor along one dimension: one index, or a range of them."""
        (reach, shape), *_ = inputs
        dim, one_index = signed(fn._saved_dim) % len(shape), operation in ("Select", "Unbind")
        split = frozenset((source, layout) for source, layout in reach if dim in layout.channel_dims)

        def beside(layout: Layout) -> Layout | None:
            return removed(layout, [dim], keep=False) if one_index else broadcast_except(layout, dim, out)

        # 1. Sources whose channels lie along other dimensions: the part has all of their channels.
        whole = self._each([(reach - split, None)], operation, beside)
        # 2. Sources whose channels lie along this dimension: the part has some of their channels.
        if not split:
            return whole
        if one_index:
            return whole | self._one_index(operation, fn, number, split, dim)
        if out[dim] == shape[dim]:
            return whole | split
        return whole | self._range(operation, fn, number, split, shape)

    def _one_index(self, operation: str, fn: Any, number: int, split: Reach, dim: int) -> Reach:
        """One index of the most significant digit, as in q, k, v = qkv.reshape(B, N, 3, heads, -1).unbind(2)."""
        result = set()
        for source, layout in split:
            digits, count = layout.digits, layout.shape[dim]
            if layout.hidden or layout.dims[dim] != (digits[0],) or len(digits) == 1:
                self._tangle(source, operation)
                continue
            part = number if operation == "Unbind" else signed(fn._saved_index) % count
            size = prod(digit.size for digit in digits[1:])
            new = self.junctions.split(frozenset([(source, Strides())]), (size,) * count, part)
            result.add((new, Layout(tuple(d for k, d in enumerate(layout.dims) if k != dim))))
        return frozenset(result)

    def _range(self, operation: str, fn: Any, number: int, split: Reach, shape: tuple[int, ...]) -> Reach:
        """A range of neighbouring indices, as of a slice or of one piece of a split."""
        dim = signed(fn._saved_dim) % len(shape)
        sizes, part = range_of(operation, fn, number, shape[dim])
        if not sizes:
            return self._each([(split, None)], operation, lambda layout: None)
        sources = self.arrive(split, dim - len(shape), operation)
        return frozenset([(self.junctions.split(sources, sizes, part), along(_shape(fn, number), dim))])

    def _product(self, inputs: list[tuple[Reach, Any]], operation: str) -> Reach:
        """``left @ right`` sums over the last dimension of the left one, and the last but one of the right one."""
        (left, a), (right, b) = inputs
        rank = len(a)
        if rank != len(b) or not left or not right:
            return self._each(inputs, operation, lambda layout: None)
        rows = {(source, contracted(layout, rank - 1, rank - 1, b[-1])) for source, layout in left}
        columns = {(source, contracted(layout, rank - 2, rank - 2, a[-2])) for source, layout in right}
        return _completed(frozenset(rows | columns))

    def _attention(self, inputs: list[tuple[Reach, Any]], out: tuple[int, ...]) -> Reach:
        """softmax(query @ key^T) @ value: the channels of query and key are summed over, those of value are sent."""
        (query, q), (key, _), (value, v) = inputs
        rank, result = len(out), set()
        for source, layout in (*query, *key):
            result.add((source, contracted(layout, rank - 1, rank - 1, v[-1])))
        for source, layout in value:
            result.add((source, contracted(layout, rank - 2, rank - 2, q[-2])))
        return _completed(frozenset(result))


def _completed(reach: Reach) -> Reach:
    """Channels that were summed over take the place of their partner's, as query and key are cut like the value."""
    visible = [layout for _, layout in reach if not layout.hidden and layout.digits]
    result = set()
    for source, layout in reach:
        twin = next((other for other in visible if other.digits == layout.digits), layout) if layout.hidden else layout
        result.add((source, twin))
    return frozenset(result)


def _inputs(fn: Any) -> list[tuple[Any, int]]:
    return [(function, number) for function, number in fn.next_functions if function is not None]


def _shape(fn: Any, number: int) -> tuple[int, ...]:
    if hasattr(fn, "variable"):
        return tuple(fn.variable.shape)
    return tuple(int(size) for size in fn._input_metadata[number].shape)
