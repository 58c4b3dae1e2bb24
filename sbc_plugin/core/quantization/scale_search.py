"""The scale of each row, chosen by what rounding costs the layer's output and not by how far it moves the weights."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.coordinate_descent import descend
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid, make_grid
from sbc_plugin.core.solution import Solution

# From half to double the scale of least weight error, in steps of 6 %: the best scale may lie on either side.
FACTORS = tuple(2 ** (step / 12) for step in range(-12, 13))
WORK = 2**34  # multiplications: fewer factors are tried where rows * columns^2 is large
CHUNK = 2**23  # elements of the stacked copies of the weight


def quantise(
    weight: Tensor,
    hessian: LayerHessian,
    bits: int,
    *,
    granularity: str = "channel",
    scale: str = "mse",
    symmetric: bool = True,
    mask: Tensor | None = None,
    parts: Sequence[int] | None = None,
    row_scale: Tensor | None = None,
) -> Solution:
    """Grid, codes and weight of one layer: scales by the layer's loss, GPTQ, then coordinate descent on the codes.

    ``scale="mse"`` starts from the scale of least weight error, tries it times each of ``FACTORS``, and takes for each
    row (for the tensor, if it has one scale) the one whose GPTQ codes have the least damped loss. Other scales are
    those of :func:`~sbc_plugin.core.quantization.grids.make_grid`.
    :func:`~sbc_plugin.core.quantization.coordinate_descent.descend` follows. Source: docs/theory.md, equation 8.

    Args:
        weight: (rows, columns); zero where masked, refitted on the mask.
        hessian: of the layer.
        bits: 2 to 8.
        granularity: as for ``make_grid``; the groups of a row, and its parts, share the factor.
        scale: "mse", "absmax" or "power_of_two".
        symmetric: see :class:`~sbc_plugin.core.quantization.grids.Grid`.
        mask: (rows, columns), True = kept; the others become exactly 0.
        parts: columns of each weight, where several stand side by side: they share no scale.
        row_scale: (rows,), gain between a row and its neuron; counts where rows share a scale.

    Returns:
        The weight on its grid, in the dtype of ``weight``; its mask; its loss on the undamped Hessian.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: a setting out of range, or a granularity that does not fit.
        SingularHessianError: the damped Hessian is not positive definite.

    >>> hessian = LayerHessian(torch.diag(torch.tensor([1.0, 0.1, 1.0])))
    >>> quantise(torch.tensor([[1.0, 0.4, -0.9]]), hessian, bits=2).weight.tolist()
    [[0.949999988079071, 0.0, -0.949999988079071]]
    """
    grid = make_grid(weight, bits, granularity=granularity, scale=scale, symmetric=symmetric, mask=mask, parts=parts)
    if scale == "mse":
        grid = least_loss_grid(weight, hessian, grid, mask, row_scale=row_scale)
    return descend(weight, gptq(weight, hessian, grid, mask), hessian, grid, mask)


def least_loss_grid(
    weight: Tensor,
    hessian: LayerHessian,
    grid: Grid,
    mask: Tensor | None = None,
    *,
    row_scale: Tensor | None = None,
    factors: Sequence[float] = FACTORS,
) -> Grid:
    """``grid`` with the scales of each row multiplied by the factor after which GPTQ's damped loss is least.

    The copies of the rows for all factors are stacked and solved as one weight. Scales that have to stay powers of two
    do not belong here.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        grid: where to start from.
        mask: (rows, columns), True = kept.
        row_scale: (rows,), gain between a row and its neuron; counts where rows share a scale.
        factors: to try besides 1; thinned out where the layer is large.

    Returns:
        The grid with the scales of least loss; its own where no factor does better.

    Raises:
        CalibrationError: the Hessian is of another width than the weight.
        SettingsError: the grid does not fit the weight.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    rows, columns = weight.shape
    owner, damped = hessian.owner(rows), hessian.damped()
    chosen = _affordable(factors, rows * columns**2)
    at_once = max(1, CHUNK // weight.numel())
    losses = []
    for first in range(0, len(chosen), at_once):
        some = chosen[first : first + at_once]
        stacked = _stacked(grid, some, rows)
        repeated = weight.detach().to(damped).repeat(len(some), 1)
        owners = owner.repeat(len(some))
        kept = None if mask is None else mask.repeat(len(some), 1)
        new = gptq(repeated, replace(hessian, row_groups=owners), stacked, kept)
        losses.append(LayerHessian(damped, owners).quadratic(repeated - new).view(len(some), rows))
    loss = torch.cat(losses)
    if len(grid.scale) == 1:
        gain = torch.ones_like(loss[0]) if row_scale is None else row_scale.to(loss)
        loss = (loss * gain.square()).sum(1, keepdim=True)
    best = torch.tensor(chosen, dtype=grid.scale.dtype, device=grid.scale.device)[loss.argmin(0).to(grid.scale.device)]
    return replace(grid, scale=grid.scale * best[:, None])


def _stacked(grid: Grid, factors: Sequence[float], rows: int) -> Grid:
    """One grid for ``len(factors)`` copies of the rows, one below the other."""
    scale, zero_point = (part.expand(rows, -1) for part in (grid.scale, grid.zero_point))
    multiples = torch.tensor(factors, dtype=scale.dtype, device=scale.device).repeat_interleave(rows)
    return replace(
        grid, scale=scale.repeat(len(factors), 1) * multiples[:, None], zero_point=zero_point.repeat(len(factors), 1)
    )


def _affordable(factors: Sequence[float], work: int) -> list[float]:
    """1 and, of the others, as many as ``WORK`` allows, evenly thinned out; 1 comes first, so it wins ties."""
    others = [factor for factor in factors if factor != 1]
    step = max(1, -(-len(others) * work // max(WORK - work, 1)))
    return [1.0, *others[step // 2 :: step]]
