"""One layer's solution under the settings: which solver, which grid, in which order. Weights in, weights out."""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.patterns import check_pattern, parse_pattern
from sbc_plugin.core.pruning.prune import prune as prune_layer
from sbc_plugin.core.pruning.refit import refit, rescaled
from sbc_plugin.core.quantization.grids import Grid, make_grid, round_to_nearest
from sbc_plugin.core.quantization.scale_search import quantise
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import CalibrationError, SettingsError, in_layer
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import SECOND_ORDER, Prune, Quantize


@dataclass(frozen=True)
class LayerSettings:
    """The settings that a layer's solution depends on.

    Attributes:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: None keeps all weights.
        quantize: None keeps floating point.
        damping: fraction of mean diag H.
        zeros_of: which budget of zeros the layer takes part in; those of one number share one.
        bits_of: which budget of bits.
    """

    method: str
    prune: Prune | None
    quantize: Quantize | None
    damping: float
    zeros_of: int = 0
    bits_of: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done to the layer."""
        return self.prune is None and self.quantize is None

    @property
    def second_order(self) -> bool:
        """Whether layers are solved by their Hessians."""
        return self.method in SECOND_ORDER

    @property
    def silent_first(self) -> bool:
        """Whether weights of silent neurons go before solvers choose."""
        return self.second_order and self.prune is not None and bool(self.prune.silent_first)


def unfit_pattern(layer: SpikingLayer, pattern: str) -> str:
    """Why a layer cannot have the pattern, "" if it can."""
    try:
        check_pattern(parse_pattern(pattern), layer.columns, positions_of(layer))
    except SettingsError as error:
        return str(error)
    return ""


def unfit_granularity(layer: SpikingLayer, quantize: Quantize) -> str:
    """Why a layer cannot have the grid's groups of columns, "" if it can.

    Groups lie within one weight, so each part's columns have to be a multiple of the group's.
    """
    size = int(quantize.granularity.partition(":")[2] or 1)
    odd = [part for part in layer.parts if part.form.columns % size]
    if not odd:
        return ""
    whose = f"of {odd[0].name!r}" if len(layer.parts) > 1 else "of a row"
    return f"granularity {quantize.granularity!r}: {size} does not divide the {odd[0].form.columns} weights {whose}"


def positions_of(layer: SpikingLayer) -> int:
    """Kernel positions of a row's columns; 1 where several weights stand side by side."""
    return layer.parts[0].form.positions if len(layer.parts) == 1 else 1


def layer_hessian(layer: SpikingLayer, hessian: Tensor, damping: float) -> LayerHessian:
    """A layer's Hessian as the solvers take it: with the Hessian of each row, where there are several."""
    return LayerHessian(hessian, layer.groups if hessian.dim() == 3 else None, damping)


def solve(layer: SpikingLayer, weight: Tensor, hessian: Tensor, zeros: int | None, settings: LayerSettings) -> Solution:
    """Prune and quantise one layer.

    Weights that are zero already stay zero: they are the first to be counted as pruned, and no solver brings them back.

    Args:
        layer: for its groups and gains.
        weight: (rows, columns), the target: the dense weight, or the sequential target.
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        zeros: how many weights go; None prunes nothing.
        settings: of the layer.

    Raises:
        CalibrationError: nothing but silence reached the layer.
        SingularHessianError: the damped Hessian is not positive definite.
        SettingsError: pattern or granularity does not fit the layer.
    """
    second_order = settings.method in SECOND_ORDER
    if second_order:
        check_active(hessian)
    gain = layer.gain.to(hessian)
    gain = gain.where(gain > 0, gain[gain > 0].min() if (gain > 0).any() else 1.0)
    known = layer_hessian(layer, hessian, settings.damping)
    present = weight != 0
    new, mask, grid = weight, present, None
    if zeros is not None and settings.prune is not None:
        solver = settings.prune.solver if second_order else "magnitude"
        adapt = settings.prune.refit and second_order
        solution = prune_layer(
            weight, known, zeros, pattern=settings.prune.pattern, positions=positions_of(layer), solver=solver,
            refit=adapt, row_scale=gain,
        )  # fmt: skip
        new, mask = solution.weight, solution.mask & present
        if adapt and not torch.equal(mask, solution.mask):
            new = refit(weight, mask, known)
        new = new.where(mask, 0.0)
        if adapt and settings.prune.rescale:
            new = rescaled(weight, new, known)
    if settings.quantize is not None:
        new, grid = _quantised(layer, new, known, mask, settings, gain)
    scaled = gain[:, None].to(weight)
    return Solution(new, mask, known.loss(weight * scaled, new * scaled), grid)


def check_active(hessian: Tensor) -> None:
    """Refuse the Hessian of a layer that never received anything.

    Raises:
        CalibrationError: it is zero.
    """
    check_reached(hessian.diagonal(dim1=-2, dim2=-1))


def check_reached(diagonal: Tensor) -> None:
    """The same, told from the diagonal, (columns,) or (groups, columns).

    Raises:
        CalibrationError: it is zero.
    """
    if not diagonal.any():
        raise CalibrationError(
            "its input stayed silent on all calibration data, so nothing is known about it; give data that drives it "
            "(in sequential order the compressed layers before it may have silenced it)"
        )


def _quantised(
    layer: SpikingLayer, weight: Tensor, hessian: LayerHessian, mask: Tensor, settings: LayerSettings, gain: Tensor
) -> tuple[Tensor, Grid | None]:
    assert settings.quantize is not None
    grid_settings = asdict(settings.quantize) | {"mask": mask, "parts": [part.form.columns for part in layer.parts]}
    del grid_settings["allocation"]
    if settings.method not in SECOND_ORDER:
        grid = make_grid(weight, **grid_settings)
        return round_to_nearest(weight, grid, mask), grid
    solution = quantise(weight, hessian, **grid_settings, row_scale=gain)
    return solution.weight, solution.grid


def saliency(layer: SpikingLayer, weight: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """OBS loss of each weight alone, (rows, columns), relative to the layer: ``w^2 / [H^-1]_jj / tr(W H W^T)``.

    Args:
        layer: for its groups and gains.
        weight: (rows, columns).
        hessian: (columns, columns) or (groups, columns, columns), undamped.
        damping: fraction of mean diag H.

    Raises:
        CalibrationError: nothing but silence reached the layer.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    known = layer_hessian(layer, hessian, damping)
    with in_layer(layer.name):
        check_active(hessian)
        curvature = 1 / known.inverse().diagonal(dim1=-2, dim2=-1)
    if hessian.dim() == 3:
        curvature = curvature[known.owner(len(weight))]
    scaled = weight.to(hessian) * layer.gain.to(hessian)[:, None]
    total = 2 * known.quadratic(scaled).sum()
    return scaled.square() * curvature / total.clamp_min(torch.finfo(total.dtype).tiny)


def sequential_target(
    weight: Tensor, hessian: Tensor, drift: Tensor, alpha: float, damping: float, groups: Tensor | None
) -> Tensor:
    """The weight that gives, on the compressed prefix, a mix of the dense network's membrane and the layer's own.

    Minimises ``|| X' w' - (alpha X + (1 - alpha) X') w ||^2`` over w', X' being the input from the compressed prefix
    and X the dense one, both filtered: ``w' = w + alpha H^-1 D w`` with ``D = 2 X'^T (X - X') / count`` ("drift").
    Source: docs/theory.md, equation 7.

    Args:
        weight: (rows, columns).
        hessian: of X', (columns, columns) or (groups, columns, columns), undamped.
        drift: D, shape of ``hessian``.
        alpha: 0 to 1.
        damping: fraction of mean diag H.
        groups: (rows,), the Hessian of each row.

    Raises:
        CalibrationError: nothing but silence reached the layer.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    check_active(hessian)
    known = LayerHessian(hessian, groups, damping)
    correction = alpha * known.inverse() @ drift
    correction = correction if correction.dim() == 3 else correction[None]
    owner = known.owner(len(weight))
    new = weight.clone()
    for group, matrix in enumerate(correction):
        rows = (owner == group).to(weight.device)
        new[rows] += (weight[rows].to(matrix) @ matrix.mT).to(weight)
    return new.where(weight != 0, 0.0)  # a weight that is zero already stays so


def without_pruning(settings: LayerSettings) -> LayerSettings:
    """The same settings for a layer that is only quantised."""
    return replace(settings, prune=None)
