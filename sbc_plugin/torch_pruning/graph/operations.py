"""What one operation of autograd does to a layout, read from what its node in the graph has saved."""

from typing import Any

from sbc_plugin.torch_pruning.graph.layouts import Layout, broadcast, inserted, permuted, removed, viewed

VIEWS = frozenset(["View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Flatten", "Unflatten"])
MIXING = frozenset(
    ["Mm", "Mv", "Dot", "Addmm", "Addmv", "Addbmm", "Baddbmm", "Linear", "MkldnnLinear", "Convolution"]
) | frozenset(["NativeLayerNorm", "NativeGroupNorm", "Index", "Flip", "Roll", "Sort", "Topk", "Take", "Put"])
LAST = {"T": (-1, -2), "Mt": (-1, -2)}


def layout_after(operation: str, fn: Any, layout: Layout, out: tuple[int, ...]) -> Layout | None:
    """The layout of a source behind an operation on one tensor, or on each channel by itself.

    Args:
        operation: the name of the node without "Backward".
        fn: the node.
        layout: of the source in the operation's input.
        out: shape of the output.

    Returns:
        The layout in the output; None if the operation mixes channels, or puts them where no layout can say.
    """
    rank = len(layout.dims)
    # 1. Operations that move values without changing them.
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
    # 2. Operations that mix channels, unless the dimensions they reduce or normalise hold none.
    if operation in MIXING:
        return None
    if hasattr(fn, "_saved_keepdim"):
        dims = getattr(fn, "_saved_dim", ())
        dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
        return removed(layout, [signed(d) % rank for d in dims], fn._saved_keepdim)
    along_dim = getattr(fn, "_saved_dim", None)
    if isinstance(along_dim, int) and rank and signed(along_dim) % rank in layout.channel_dims:
        return None
    # 3. All others work on each element by itself.
    return broadcast(layout, out)


def range_of(operation: str, fn: Any, number: int, total: int) -> tuple[tuple[int, ...], int]:
    """The parts of a split along the channels and which of them this is; no parts for a slice with a step.

    Args:
        operation: "Slice", or the name of a split.
        fn: the node.
        number: of the output.
        total: size of the dimension before the split.
    """
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
