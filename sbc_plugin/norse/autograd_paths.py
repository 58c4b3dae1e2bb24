"""Follow a tensor back through autograd's graph to the module calls that it came from.

During discovery every weight and neuron returns a *tagged leaf* (:func:`tagged`), so the graph between two of them
holds exactly what lies between: normalisation, pooling, views, sums, a residual addition. :func:`origins` walks it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Operations that are linear and keep every neuron's current apart from the others'.
TRANSPARENT = frozenset(
    [
        "Add",
        "Sub",
        "Rsub",
        "Neg",
        "Sum",
        "Mean",
        "Clone",
        "ToCopy",
        "Copy",
        "Alias",
        "CopySlices",
        "Detach",
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "AsStrided",
        "Squeeze",
        "Unsqueeze",
        "Permute",
        "Transpose",
        "T",
        "Mt",
        "Expand",
        "Repeat",
        "Stack",
        "Cat",
        "Slice",
        "Select",
        "Index",
        "Unbind",
        "Split",
        "SplitWithSizes",
        "UnsafeSplit",
        "Narrow",
        "ConstantPadNd",
        "Flip",
        "Roll",
    ]
)
POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


class Origin(NamedTuple):
    """A module call: ``kind`` is "weight", "neuron" or "integrator", ``call`` counts the module's calls so far."""

    kind: str
    name: str
    call: int


@dataclass(frozen=True)
class Path:
    """What lies between an origin and the tensor that was followed.

    Attributes:
        gains: factors, BatchNorm's gamma / sigma among them, any shape.
        pools: spatial average pooling on (batch, channels, *space), the one next to the origin first.
        nonlinear: the operation that is not linear, "" if there is none.
        index: step chosen from a stacked sequence and not yet resolved.
        indexed: whether a step was chosen from a sequence.
        reduced: whether something was summed or averaged over a leading axis.
        stacked: whether tensors were put together along an axis.
    """

    gains: tuple[Tensor, ...] = ()
    pools: tuple[Callable[[Tensor], Tensor], ...] = ()
    nonlinear: str = ""
    index: int | None = None
    indexed: bool = False
    reduced: bool = False
    stacked: bool = False

    def before(self, later: "Path") -> "Path":
        """This path followed by a later one, up to the latter's end."""
        return replace(
            self,
            gains=self.gains + later.gains,
            pools=self.pools + later.pools,
            nonlinear=self.nonlinear or later.nonlinear,
            indexed=self.indexed or later.indexed,
            reduced=self.reduced or later.reduced,
        )


def tagged(output: Tensor, origin: Origin) -> Tensor:
    """The same values, cut from what came before, known to :func:`origins`; safe to change in place."""
    leaf = output.detach().requires_grad_()
    leaf.sbc_origin = origin  # type: ignore[attr-defined]
    return leaf.clone()


def origins(x: Tensor) -> list[tuple[Origin, Path]]:
    """Every tagged call that ``x`` depends on, and how; nearest first."""
    reached: list[tuple[Origin, Path]] = []
    queue: list[tuple[Any, int, Path]] = [(x.grad_fn, x.output_nr, Path())] if x.grad_fn is not None else []
    seen: set[tuple[Any, int | None]] = set()
    while queue:
        node, output, path = queue.pop(0)
        if hasattr(node, "variable"):
            origin = getattr(node.variable, "sbc_origin", None)
            if origin is not None:
                reached.append((origin, path))
            continue
        if (node, path.index) in seen:
            continue
        seen.add((node, path.index))
        queue.extend(_step(node, output, path))
    return reached


def _step(node: Any, output: int, path: Path) -> list[tuple[Any, int, Path]]:
    operation = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    inputs = [(function, number) for function, number in node.next_functions if function is not None]
    if operation == "Stack" and node._saved_dim == 0 and path.index is not None and path.index < len(inputs):
        inputs, path = [inputs[path.index]], replace(path, index=None)
    elif operation in ("Stack", "Cat", "CopySlices"):
        path = replace(path, stacked=True)
    elif operation in ("Select", "Unbind", "Slice", "Split", "UnsafeSplit"):
        path = _indexed(operation, node, output, path)
    elif operation in ("Sum", "Mean"):
        path = _reduced(operation, node, path)
    elif operation in ("Mul", "Div"):
        operands = [function is not None and _reaches_origin(function) for function, _ in node.next_functions]
        path = _scaled(operation, node, path, operands)
        inputs = [operand for operand, follows in zip(node.next_functions, operands, strict=True) if follows]
    elif operation in ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"):
        path = _normalised(node, path)
    elif operation.startswith(("AvgPool", "AdaptiveAvgPool")):
        path = replace(path, pools=(_pooling(operation, node), *path.pools))
    elif operation not in TRANSPARENT:
        path = replace(path, nonlinear=path.nonlinear or operation)
    return [(function, number, path) for function, number in inputs]


def _signed(dim: int) -> int:
    return dim - 2**64 if dim >= 2**63 else dim


def _indexed(operation: str, node: Any, output: int, path: Path) -> Path:
    if _signed(node._saved_dim) != 0:
        return path
    if operation == "Select":
        index = _signed(node._saved_index)
        return replace(path, indexed=True, index=index if index >= 0 else node._saved_self_sym_sizes[0] + index)
    if operation == "Slice":
        one = node._saved_end - node._saved_start == 1
        return replace(path, indexed=True, index=node._saved_start) if one else path
    return replace(path, indexed=True, index=output)


def _reduced(operation: str, node: Any, path: Path) -> Path:
    sizes = getattr(node, "_saved_self_sym_sizes", ())
    rank = len(sizes)
    dims = sorted(_signed(dim) % rank - rank for dim in getattr(node, "_saved_dim", ()) or range(rank)) if rank else []
    spatial = rank >= 3 and dims and dims == list(range(dims[0], 0)) and rank + dims[0] >= 2
    if not spatial:
        return replace(path, reduced=True)
    axes, total = len(dims), operation == "Sum"

    def pool(x: Tensor) -> Tensor:
        last = tuple(range(-axes, 0))
        return x.sum(last, keepdim=True) if total else x.mean(last, keepdim=True)

    return replace(path, pools=(pool, *path.pools))


def _scaled(operation: str, node: Any, path: Path, operands: list[bool]) -> Path:
    """The path through a product or a quotient, given which operands come from a tagged call.

    The factor is the other operand, which autograd keeps since the first one needs it; learnable or not makes no
    difference. Where both come from tagged calls, or the divisor does, there is no factor.
    """
    if all(operands) and len(operands) > 1:
        return replace(path, nonlinear=path.nonlinear or operation)
    follows_first = operands[0]
    if operation == "Div" and not follows_first:
        return replace(path, nonlinear=path.nonlinear or operation)
    saved = getattr(node, "_saved_other" if follows_first else "_saved_self", None)
    factor = saved.detach() if isinstance(saved, Tensor) else None
    if factor is None:
        return path
    return replace(path, gains=(*path.gains, factor.abs() if operation == "Mul" else 1 / factor.abs()))


def _normalised(node: Any, path: Path) -> Path:
    variance = node._saved_running_var
    epsilon = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
    if variance is None:
        return replace(path, nonlinear=path.nonlinear or "BatchNorm without running statistics")
    gain = (variance.detach() + epsilon).rsqrt()
    if node._saved_weight is not None:
        gain = gain * node._saved_weight.detach().abs()
    return replace(path, gains=(*path.gains, gain))


def _pooling(operation: str, node: Any) -> Callable[[Tensor], Tensor]:
    if operation.startswith("Adaptive"):
        size = tuple(node._input_metadata[0].shape)

        def adaptive(x: Tensor) -> Tensor:
            axes = x.dim() - 2
            return ADAPTIVE[axes](x, size[-axes:])

        return adaptive
    kernel, stride, padding = node._saved_kernel_size, node._saved_stride, node._saved_padding
    ceil_mode, count_pad = node._saved_ceil_mode, node._saved_count_include_pad
    divisor = getattr(node, "_saved_divisor_override", None)

    def average(x: Tensor) -> Tensor:
        axes = x.dim() - 2
        steps = (stride or kernel)[-axes:]
        extra = {} if axes == 1 else {"divisor_override": divisor}
        return POOLS[axes](x, kernel[-axes:], steps, padding[-axes:], ceil_mode, count_pad, **extra)

    return average


def _reaches_origin(function: Any) -> bool:
    queue, seen = [function], set()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(getattr(node, "variable", None), "sbc_origin"):
            return True
        queue.extend(function for function, _ in node.next_functions if function is not None)
    return False


def constant_gain(gains: tuple[Tensor, ...], rows: int) -> tuple[Tensor, bool]:
    """The product of the gains for each row, (rows,) float64, and whether every gain could be dealt to rows."""
    product, exact = torch.ones(rows, dtype=torch.float64, device="cpu"), True
    for gain in gains:
        values = gain.detach().double().cpu()
        if values.numel() == 1:
            product = product * values.reshape(())
        elif values.numel() == rows:
            product = product * values.reshape(rows)
        else:
            exact = False
    return product, exact
