"""Every layer as ``Y = W X``: the weight as (groups, rows, columns), the input as (groups, samples, columns).

A sample is one output position of one sequence at one step; columns are ordered (input channel, kernel position), as in
the flattened weight. Average pooling between weight and neuron is linear and acts on positions only, so it is applied
to the columns. Source: docs/theory.md, section "Matrix form".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.errors import CalibrationError, UnsupportedModelError

Pooling = Callable[[Tensor], Tensor]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
WEIGHTED = nn.Linear | Convolution | Transposed


@dataclass(frozen=True)
class MatrixForm:
    """How one layer's weight and input become matrices.

    Attributes:
        groups: of a grouped convolution; 1 otherwise.
        rows: outputs of all groups together.
        columns: inputs of one row, channels / groups * kernel positions.
        positions: kernel positions; 1 for Linear.
        convolution: the module whose stride, padding and dilation count; None for Linear.
    """

    groups: int
    rows: int
    columns: int
    positions: int = 1
    convolution: Convolution | None = None

    @property
    def channels(self) -> int:
        """Channels of the input, or features of Linear's."""
        return self.groups * self.columns // self.positions

    @property
    def axes(self) -> int:
        """How many spatial axes input and output have behind their channels; 0 for Linear."""
        return 0 if self.convolution is None else len(self.convolution.kernel_size)

    def channels_of(self, x: Tensor) -> int:
        """Channels, or features, of an input of this layer; -1 for one of another rank."""
        if not self.axes:
            return x.shape[-1] if x.dim() else -1
        return x.shape[-self.axes - 1] if x.dim() in (self.axes + 1, self.axes + 2) else -1

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A weight in the module's shape as (rows, columns), a view where possible; as large as it is now."""
        return weight.flatten(1)

    def as_weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(rows, columns) back in the module's ``shape``: the inverse of :meth:`as_matrix`."""
        return matrix.reshape(tuple(shape))

    def samples(self, x: Tensor, pooling: Pooling | None = None) -> Tensor:
        """(groups, samples, columns) of an input: (batch, channels, *space), or (..., columns) for Linear.

        Args:
            x: the (filtered) input.
            pooling: average pooling between weight and neuron, on (batch, channels, *space).

        Returns:
            The samples, one a row.

        Raises:
            CalibrationError: the input does not fit the layer.
        """
        if self.convolution is None:
            if x.shape[-1] != self.columns:
                raise CalibrationError(f"input has {x.shape[-1]} features, the layer takes {self.columns}")
            return x.reshape(1, -1, self.columns)
        patches = unfold(x, self.convolution)
        batch, space = patches.shape[0], patches.shape[3:]
        if pooling is not None:
            patches = pooling(patches.reshape(batch, -1, *space))
            space = patches.shape[2:]
        patches = patches.reshape(batch, self.groups, self.columns, -1)
        return patches.permute(1, 0, 3, 2).reshape(self.groups, -1, self.columns)


@dataclass(frozen=True)
class TransposedForm(MatrixForm):
    """The matrix form of a transposed convolution, with columns (input channel, kernel position) as in a convolution.

    Attributes:
        transposed: the module; ``convolution`` stays None.
    """

    transposed: Any = None

    @property
    def axes(self) -> int:
        """How many spatial axes input and output have behind their channels."""
        dimensions: int = self.transposed.weight.dim()
        return dimensions - 2

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A weight (inputs, outputs / groups, *kernel) as (rows, columns); as large as it is now.

        >>> form = matrix_form(layer := nn.ConvTranspose1d(4, 6, 3, groups=2))
        >>> bool((form.as_weight(form.as_matrix(layer.weight), layer.weight.shape) == layer.weight).all())
        True
        """
        groups: int = self.transposed.groups
        grouped: Tensor = weight.unflatten(0, (groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1).flatten(1)

    def as_weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(rows, columns) back in the module's ``shape``: the inverse of :meth:`as_matrix`."""
        inputs, outputs, *kernel = shape
        groups = self.transposed.groups
        return matrix.reshape(groups, outputs, inputs // groups, *kernel).transpose(1, 2).flatten(0, 1)

    def samples(self, x: Tensor, pooling: Pooling | None = None) -> Tensor:
        """(groups, samples, columns): which input, if any, each kernel position brings to an output position.

        Args:
            x: (batch, channels, *space).
            pooling: average pooling behind it.

        Returns:
            The samples, one a row.

        Raises:
            CalibrationError: the input does not fit the layer.
        """
        module = self.transposed
        axes, inputs = self.axes, len(module.weight)
        x = x[None] if x.dim() == axes + 1 else x
        if x.dim() != axes + 2 or x.shape[1] != inputs:
            raise CalibrationError(
                f"input has shape {tuple(x.shape)}, the layer takes (batch, {inputs}, {axes} spatial axes)"
            )
        batch, channels = x.shape[:2]
        # Each channel passes alone through kernels that are 1 at one position: this is what the position contributes.
        kernel = torch.eye(self.positions, dtype=x.dtype, device=x.device)
        kernel = kernel.reshape(1, self.positions, *module.weight.shape[2:])
        transpose = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
        patches = transpose(
            x.reshape(-1, 1, *x.shape[2:]), kernel, None, module.stride, module.padding, module.output_padding, 1,
            module.dilation,
        )  # fmt: skip
        space = patches.shape[2:]
        patches = patches.reshape(batch, channels * self.positions, *space)
        if pooling is not None:
            patches = pooling(patches)
        patches = patches.reshape(batch, self.groups, self.columns, -1)
        return patches.permute(1, 0, 3, 2).reshape(self.groups, -1, self.columns)


def matrix_form(module: nn.Module) -> MatrixForm:
    """The matrix form of a Linear or a convolution, by its weight: attributes may say something else.

    Raises:
        UnsupportedModelError: any other module.

    >>> matrix_form(nn.Conv2d(4, 6, 3, groups=2))  # doctest: +ELLIPSIS
    MatrixForm(groups=2, rows=6, columns=18, positions=9, ...)
    """
    if isinstance(module, nn.Linear):
        return MatrixForm(1, *module.weight.shape)
    if isinstance(module, Convolution):
        positions = module.weight[0, 0].numel()
        return MatrixForm(module.groups, len(module.weight), module.weight[0].numel(), positions, module)
    if isinstance(module, Transposed):
        positions = module.weight[0, 0].numel()
        inputs, outputs = module.weight.shape[:2]
        columns = inputs // module.groups * positions
        return TransposedForm(module.groups, outputs * module.groups, columns, positions, None, module)
    raise UnsupportedModelError(f"{type(module).__name__} has no matrix form; only Linear and convolutions have one")


def unfold(x: Tensor, convolution: Convolution) -> Tensor:
    """The patches that a convolution sees: im2col for one, two or three spatial axes.

    Args:
        x: (batch, channels, *space), or (channels, *space).
        convolution: gives kernel size, stride, padding (all modes) and dilation.

    Returns:
        (batch, channels, kernel positions, *output space).

    Raises:
        CalibrationError: wrong rank or number of channels, or an input smaller than the kernel.

    >>> import torch
    >>> unfold(torch.arange(4.0).reshape(1, 1, 4), nn.Conv1d(1, 1, 2, stride=2)).flatten(0, 2).tolist()
    [[0.0, 2.0], [1.0, 3.0]]
    """
    kernel = convolution.weight.shape[2:]
    axes, channels = len(kernel), convolution.weight.shape[1] * convolution.groups
    if x.dim() == axes + 1:
        x = x[None]
    if x.dim() != axes + 2 or x.shape[1] != channels:
        raise CalibrationError(
            f"input has shape {tuple(x.shape)}, the layer takes (batch, {channels}, {axes} spatial axes)"
        )
    x = _pad(x, convolution)
    for axis, (size, stride, dilation) in enumerate(zip(kernel, convolution.stride, convolution.dilation, strict=True)):
        extent = dilation * (size - 1) + 1
        if x.shape[2 + axis] < extent:
            raise CalibrationError(f"input of {x.shape[2 + axis]} positions is smaller than a kernel of {extent}")
        x = x.unfold(2 + axis, extent, stride)[..., ::dilation]
    kernel_axes = tuple(range(2 + axes, 2 + 2 * axes))
    x = x.permute(0, 1, *kernel_axes, *range(2, 2 + axes))
    return x.flatten(2, 1 + axes)


def _pad(x: Tensor, convolution: Convolution) -> Tensor:
    if convolution.padding == "valid":
        return x
    pairs: list[int] = []
    kernel = convolution.weight.shape[2:]
    for axis in reversed(range(len(kernel))):
        if convolution.padding == "same":
            total = convolution.dilation[axis] * (kernel[axis] - 1)
            pairs += [total // 2, total - total // 2]
        else:
            pairs += [int(convolution.padding[axis])] * 2
    if not any(pairs):
        return x
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    return functional.pad(x, pairs, mode=mode)
