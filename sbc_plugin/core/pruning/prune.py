"""Prune one layer: choose a mask with a solver, then refit the weights that are left.

The solvers: ``magnitude`` (the plain baseline), ``obs`` (greedy, :mod:`sbc_plugin.core.pruning.obs`), ``admm``
(:mod:`sbc_plugin.core.pruning.admm`) and ``hybrid`` (:mod:`sbc_plugin.core.pruning.hybrid`). Budgets are met exactly,
with ties too.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.admm import admm_mask
from sbc_plugin.core.pruning.hybrid import hybrid_mask
from sbc_plugin.core.pruning.obs import obs_mask
from sbc_plugin.core.pruning.patterns import (
    check_pattern,
    keep_largest,
    parse_pattern,
    pattern_order,
    pattern_zeros,
)
from sbc_plugin.core.pruning.problem import check_shapes, check_zeros
from sbc_plugin.core.pruning.refit import refit as refit_rows  # because `refit` is a keyword of prune
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import SettingsError

SEARCHES: Mapping[str, Callable[..., Tensor]] = {
    "obs": partial(obs_mask, step=1),
    "admm": admm_mask,
    "hybrid": hybrid_mask,
}
SMALL = 2**33  # rows * columns^3, up to which "auto" takes exact OBS


def is_small(rows: int, columns: int) -> bool:
    """Whether a layer is small enough for exact OBS.

    >>> is_small(1, 2048), is_small(2, 2048)
    (True, False)
    """
    return rows * columns**3 <= SMALL


def prune(
    weight: Tensor,
    hessian: LayerHessian,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    solver: str = "auto",
    refit: bool = True,
    row_scale: Tensor | None = None,
) -> Solution:
    """Remove exactly ``zeros`` weights of a layer and move the others to the least-squares optimum on the mask.

    Weights on dead columns (``H_jj = 0``) go first, the smallest first. The ``loss`` of the result is that on the
    undamped Hessian with rows scaled by ``row_scale``.

    Args:
        weight: (rows, columns).
        hessian: of the layer. Solvers compute in its dtype; above 512 columns masks are searched in float32, and only
            the refit is in its dtype.
        zeros: zeros the layer shall have; blocks round it down, and N:M takes only the number it implies
            (:func:`sbc_plugin.core.pruning.patterns.pattern_zeros`).
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        solver: "magnitude" (looks at the weight only), "obs", "admm", "hybrid", or "auto", which is exact "obs" for
            small layers and "hybrid" for large ones and for N:M, where the hybrid is ADMM alone.
        refit: False leaves the kept weights as they were.
        row_scale: (rows,), gain between a row and its neuron (BatchNorm's gamma / sigma); decides which rows lose more.

    >>> hessian = LayerHessian(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), damping=0.0)
    >>> solution = prune(torch.tensor([[1.0, 2.0]]), hessian, 1)
    >>> solution.weight.tolist(), solution.mask.tolist()
    ([[0.0, 2.5]], [[False, True]])

    Raises:
        SettingsError: a setting is unknown, out of range, or does not fit the layer.
        CalibrationError: weight and Hessian do not belong together, or the weight is not finite.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    check_shapes(weight, hessian)
    rows, columns = weight.shape
    if solver not in (known := ("auto", "magnitude", *SEARCHES)):
        raise SettingsError(f"solver {solver!r} is not known; expected one of {', '.join(known)}")
    if row_scale is not None and (row_scale.shape != (rows,) or not row_scale.isfinite().all()):
        raise SettingsError(f"row_scale of shape {tuple(row_scale.shape)}, expected {rows} finite gains, one a row")
    matrix = hessian.matrix
    gain = matrix.new_ones(rows, 1) if row_scale is None else row_scale.to(matrix)[:, None]
    scaled = weight.to(matrix) * gain
    if solver == "auto":
        greedy = is_small(rows, columns) and parse_pattern(pattern).kind != "n:m"  # ADMM finds better N:M masks
        solver = "obs" if greedy else "hybrid"
    if solver == "magnitude":
        mask = magnitude_mask(weight, zeros, pattern=pattern, positions=positions).to(matrix.device)
    else:
        mask = SEARCHES[solver](scaled, hessian, zeros, pattern=pattern, positions=positions)
    new = refit_rows(weight, mask, hessian) if refit else weight.where(mask.to(weight.device), 0.0)
    loss = hessian.loss(scaled, new.to(matrix) * gain)
    return Solution(new, mask.to(weight.device), loss)


def magnitude_mask(weight: Tensor, zeros: int, *, pattern: str = "unstructured", positions: int = 1) -> Tensor:
    """The mask (rows, columns), True = kept, that removes exactly the ``zeros`` smallest weights; blocks by their norm.

    Args:
        weight: (rows, columns).
        zeros: zeros the layer shall have; blocks round it down, and N:M takes only the number it implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.

    >>> magnitude_mask(torch.tensor([[1.0, -3.0], [1.0, 2.0]]), 1).tolist()
    [[False, True], [True, True]]

    Raises:
        SettingsError: zeros or pattern do not fit the layer.
    """
    parsed = parse_pattern(pattern)
    rows, columns = weight.shape
    check_pattern(parsed, columns, positions)
    check_zeros(zeros, rows, columns, parsed)
    order = pattern_order(parsed, columns, positions, weight.device)
    score = weight.to(torch.float64)[:, order].square()  # float32 squares of small weights would be ties at 0
    mask = torch.empty_like(weight, dtype=torch.bool)
    mask[:, order] = keep_largest(score, pattern_zeros(parsed, rows, columns, zeros), parsed)
    return mask
