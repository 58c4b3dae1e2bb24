"""Which channels of which module reach a tensor: autograd's graph read with the layouts of :mod:`.layouts`.

While the model runs once, every prunable module returns a leaf that remembers its module, so what lies between two
modules is a small graph of its own, however long the sequence is. Steps that do the same thing give the same sources,
and sources are sets, so the result does not grow with the number of time steps.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sbc_plugin.torch_pruning.graph.layouts import (
    Layout,
    Strides,
    along,
    arrival,
    broadcast,
    contracted,
    inserted,
    permuted,
    removed,
    viewed,
)

VIEWS = frozenset(["View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Flatten", "Unflatten"])
MIXING = frozenset(
    ["Mm", "Mv", "Dot", "Addmm", "Addmv", "Addbmm", "Baddbmm", "Linear", "MkldnnLinear", "Convolution"]
) | frozenset(["NativeLayerNorm", "NativeGroupNorm", "Index", "Flip", "Roll", "Sort", "Topk", "Take", "Put"])
LAST = {"T": (-1, -2), "Mt": (-1, -2)}


class Source(NamedTuple):
    """A producer of channels: a node of the graph, and which of its parts (None: it has one)."""

    node: Any
    part: int | None = None


Reach = frozenset[tuple[Source, Layout]]
NOTHING: Reach = frozenset()


def tag(output: Tensor, reach: Reach) -> Tensor:
    """The same values, cut from what came before, known to :class:`Wiring`; safe to change in place."""
    leaf = output.detach().requires_grad_()
    leaf.sbc_reach = reach  # type: ignore[attr-defined]
    return leaf.clone()


class Junctions(Protocol):
    """What :class:`Wiring` builds with."""

    def concat(self, parts: list[tuple[frozenset[tuple[Source, Strides]], int]]) -> Source:
        """Parts side by side: the sources of each, and its size."""

    def split(self, sources: frozenset[tuple[Source, Strides]], sizes: tuple[int, ...], part: int) -> Source:
        """One part of several."""

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
        """How the sources number the positions along ``axis``; those that do not are tangled, for the reason given."""
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
        if operation == "Cat":
            return self._concatenated(inputs, signed(fn._saved_dim) % len(out), out)
        if operation in ("Bmm", "Mm", "Mv") and len(inputs) == 2:
            return self._product(inputs, operation)
        if operation.startswith("ScaledDotProduct"):
            return self._attention(inputs[:3], out)
        inputs = self._aligned(fn, inputs)
        if operation in ("Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "UnsafeSplitWithSizes"):
            return self._parts(operation, fn, number, inputs, out)
        return self._each(inputs, operation, lambda layout: _rule(operation, fn, layout, out))

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
        """A parameter's channels lie where those of its partner do, whatever dimension it varies along."""
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
        """What one part of a tensor reaches: of a chunk, split, slice or unbind, or one index."""
        (reach, shape), *_ = inputs
        dim = signed(fn._saved_dim) % len(shape)
        inside = frozenset((source, layout) for source, layout in reach if dim in layout.channel_dims)
        drops = operation in ("Select", "Unbind")

        def beside(layout: Layout) -> Layout | None:
            return removed(layout, [dim], keep=False) if drops else broadcast_except(layout, dim, out)

        # 1. Channels along other dimensions all go on.
        others = self._each([(reach - inside, None)], operation, beside)
        if not inside:
            return others
        # 2. Channels along this dimension: one index of their most significant digit,
        if drops:
            return others | self._selected(operation, fn, number, inside, dim)
        # 3. all of them, where the part is the whole,
        if out[dim] == shape[dim]:
            return others | inside
        # 4. none that could be followed, where a slice has a step,
        sizes, part = _sizes(operation, fn, number, shape[dim])
        if not sizes:
            return others | self._each([(inside, None)], operation, lambda layout: None)
        # 5. or those of one part of a split.
        sources = self.arrive(inside, dim - len(shape), operation)
        return others | {(self.junctions.split(sources, sizes, part), along(out, dim))}

    def _selected(self, operation: str, fn: Any, number: int, inside: Reach, dim: int) -> Reach:
        """One index of the most significant digit, as in q, k, v = qkv.reshape(B, N, 3, heads, -1).unbind(2)."""
        result: set[tuple[Source, Layout]] = set()
        for source, layout in inside:
            digits, count = layout.digits, layout.shape[dim]
            if layout.hidden or layout.dims[dim] != (digits[0],) or len(digits) == 1:
                self._tangle(source, operation)
                continue
            part = number if operation == "Unbind" else signed(fn._saved_index) % count
            size = 1
            for digit in digits[1:]:
                size *= digit.size
            new = self.junctions.split(frozenset([(source, Strides())]), (size,) * count, part)
            dims = tuple(d for k, d in enumerate(layout.dims) if k != dim)
            result.add((new, Layout(dims)))
        return frozenset(result)

    def _product(self, inputs: list[tuple[Reach, Any]], operation: str) -> Reach:
        (left, a), (right, b) = inputs
        rank = len(a)
        if rank != len(b) or not left or not right:
            return self._each(inputs, operation, lambda layout: None)
        first = {(s, contracted(la, rank - 1, rank - 1, b[-1])) for s, la in left}
        second = {(s, contracted(la, rank - 2, rank - 2, a[-2])) for s, la in right}
        return _completed(frozenset(first | second))

    def _attention(self, inputs: list[tuple[Reach, Any]], out: tuple[int, ...]) -> Reach:
        (query, q), (key, _), (value, v) = inputs
        rank, result = len(out), set()
        for source, layout in (*query, *key):
            result.add((source, contracted(layout, rank - 1, rank - 1, v[-1])))
        for source, layout in value:
            result.add((source, contracted(layout, rank - 2, rank - 2, q[-2])))
        return _completed(frozenset(result))


def _completed(reach: Reach) -> Reach:
    """Give contracted channels the place of their partner's: query and key are cut like the value they meet."""
    visible = [layout for _, layout in reach if not layout.hidden and layout.digits]
    result = set()
    for source, layout in reach:
        twin = next((other for other in visible if other.digits == layout.digits), layout) if layout.hidden else layout
        result.add((source, twin))
    return frozenset(result)


def broadcast_except(layout: Layout, dim: int, shape: tuple[int, ...]) -> Layout | None:
    """As :func:`broadcast`, where the size along a dimension without channels may change."""
    if dim in layout.channel_dims:
        return None
    short = removed(layout, [dim], keep=True)
    return None if short is None else broadcast(short, shape)


def _rule(operation: str, fn: Any, layout: Layout, out: tuple[int, ...]) -> Layout | None:
    rank = len(layout.dims)
    if operation in VIEWS:
        return viewed(layout, out)
    if operation in ("Permute", "Transpose", *LAST):
        order = list(range(rank))
        if operation == "Permute":
            return permuted(layout, [signed(d) % rank for d in fn._saved_dims])
        a, b = LAST.get(operation) or (signed(fn._saved_dim0), signed(fn._saved_dim1))
        order[a], order[b] = order[b], order[a]
        return permuted(layout, order)
    if operation == "Stack":
        dim = signed(fn._saved_dim) % (rank + 1)
        return inserted(layout, dim, out[dim])
    if operation in MIXING:
        return None
    if hasattr(fn, "_saved_keepdim"):
        dims = getattr(fn, "_saved_dim", ())
        dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
        return removed(layout, [signed(d) % rank for d in dims], fn._saved_keepdim)
    along_dim = getattr(fn, "_saved_dim", None)
    if isinstance(along_dim, int) and rank and signed(along_dim) % rank in layout.channel_dims:
        return None
    return broadcast(layout, out)


def _sizes(operation: str, fn: Any, number: int, total: int) -> tuple[tuple[int, ...], int]:
    """The parts of a split along the channels and which of them this is; no parts for a slice with a step."""
    if operation == "Slice":
        start, end = signed(fn._saved_start), signed(fn._saved_end)
        start, end = (start % total if start < 0 else start), (end % total if end < 0 else min(end, total))
        return ((start, end - start, total - end), 1) if fn._saved_step == 1 else ((), 0)
    if hasattr(fn, "_saved_split_sizes"):
        return tuple(fn._saved_split_sizes), number
    size = fn._saved_split_size
    return tuple(min(size, total - k) for k in range(0, total, size)), number


def signed(value: int) -> int:
    """Autograd saves negative numbers as unsigned ones."""
    return value - 2**64 if value >= 2**63 else value


def _inputs(fn: Any) -> list[tuple[Any, int]]:
    return [(function, number) for function, number in fn.next_functions if function is not None]


def _shape(fn: Any, number: int) -> tuple[int, ...]:
    if hasattr(fn, "variable"):
        return tuple(fn.variable.shape)
    return tuple(int(size) for size in fn._input_metadata[number].shape)
