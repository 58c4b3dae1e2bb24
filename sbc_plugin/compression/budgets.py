"""How layers share a budget: zeros by the importance of their weights, bits by what each grid costs a layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from sbc_plugin.calibration.progress import Shown
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.layer import (
    LayerSettings,
    saliency,
    solve,
    unfit_granularity,
    unfit_pattern,
    without_pruning,
)
from sbc_plugin.core.allocation.knapsack import cheapest_options
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.packing import TRIT, TRITS
from sbc_plugin.core.pruning.patterns import parse_pattern, pattern_zeros
from sbc_plugin.errors import SettingsError, in_layer
from sbc_plugin.evaluation.report import joined
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Prune, Quantize

WIDTHS = range(2, 9)
Setting = TypeVar("Setting", Prune, Quantize)


def options(quantize: Quantize) -> list[tuple[Quantize, float]]:
    """The grids that a layer may get, each with the bits that a code of it takes when packed.

    The cheapest has the values -s, 0 and s, whose codes share a byte by fives; with a zero point, two bits hold a
    fourth value.

    >>> [(grid.bits, grid.symmetric, cost) for grid, cost in options(Quantize(3, symmetric=False))][:3]
    [(2, True, 1.6), (2, False, 2), (3, False, 3)]
    """
    three = (replace(quantize, bits=2, symmetric=True), TRIT)
    finer = [(replace(quantize, bits=bits), bits) for bits in WIDTHS if bits > 2 or not quantize.symmetric]
    return [three, *finer]


def share_zeros(
    layers: list[SpikingLayer],
    weights: Mapping[str, Tensor],
    prune: Prune,
    saliency_of: Callable[[SpikingLayer], Tensor],
) -> tuple[dict[str, int], dict[str, str]]:
    """How many zeros each layer shall have, and name -> reason for layers that the pattern does not fit.

    Args:
        layers: those that share the budget.
        weights: name -> (rows, columns).
        prune: sparsity, pattern and allocation.
        saliency_of: what each weight of a layer costs, (rows, columns); asked only where ``allocation`` is "loss".

    Raises:
        SettingsError: the pattern fits no layer.
    """
    pattern = parse_pattern(prune.pattern)
    reasons = {layer.name: unfit_pattern(layer, prune.pattern) for layer in layers}
    notes = {name: f"not pruned: {reason}" for name, reason in reasons.items() if reason}
    fitting = [layer for layer in layers if not reasons[layer.name]]
    if not fitting:
        first = layers[0].name
        raise SettingsError(f"pattern {prune.pattern!r} fits no layer of the model; {first!r}: {reasons[first]}")
    if pattern.kind == "n:m":
        return {layer.name: pattern_zeros(pattern, layer.rows, layer.columns, 0) for layer in fitting}, notes
    saliencies = None
    if prune.allocation == "loss":
        saliencies = {name: found for name, (found, _) in dealt(fitting, saliency_of, "sharing zeros").items()}
    chosen = {layer.name: weights[layer.name] for layer in fitting}
    return allocate_zeros(chosen, prune.sparsity, method=prune.allocation, saliencies=saliencies), notes


def share_bits(
    layers: list[SpikingLayer],
    weights: Mapping[str, Tensor],
    hessian_of: Callable[[str], Tensor],
    settings: LayerSettings,
    progress: Shown = False,
) -> dict[str, Quantize]:
    """The grid of each layer, so that their relative losses together are least, and codes take the budget at most.

    The budget is ``settings.quantize.bits`` for each weight that is not zero. A layer's loss is that of its solution on
    each grid, equation 4 of docs/theory.md relative to the layer's output; grids that it cannot have even with all
    others on the cheapest are not tried.

    Args:
        layers: those that the grid's groups of columns fit.
        weights: name -> (rows, columns), to be quantised; zeros stay and take no code.
        hessian_of: name -> Hessian of the layer, undamped; asked for one after the other.
        settings: how these layers are solved; nothing is pruned here.
        progress: show a progress bar; None = on a terminal.

    Raises:
        CalibrationError: nothing but silence reached a layer.
        SingularHessianError: a damped Hessian is not positive definite.
        SettingsError: granularity does not fit a layer.
    """
    assert settings.quantize is not None
    grids = [(grid, round(TRITS * bits)) for grid, bits in options(settings.quantize)]  # in fifths of a bit
    sizes = {layer.name: int(weights[layer.name].count_nonzero()) for layer in layers}
    budget = TRITS * settings.quantize.bits * sum(sizes.values())
    least = grids[0][1]
    spare = budget - least * sum(sizes.values())
    tried = {
        name: [(grid, size * fifths) for grid, fifths in grids if size * (fifths - least) <= spare]
        for name, size in sizes.items()
    }

    def losses_of(layer: SpikingLayer) -> list[float]:
        hessian = hessian_of(layer.name)
        ways = [replace(without_pruning(settings), quantize=grid) for grid, _ in tried[layer.name]]
        with in_layer(layer.name):
            return [solve(layer, weights[layer.name], hessian, None, each).loss for each in ways]

    losses = {name: found for name, (found, _) in dealt(layers, losses_of, "sharing bits", progress).items()}
    costs = {name: [cost for _, cost in options] for name, options in tried.items()}
    return {name: grids[option][0] for name, option in cheapest_options(losses, costs, budget).items()}


@dataclass(frozen=True)
class Budget:
    """What each layer gets.

    Attributes:
        zeros: by layer name; a layer that is not in it is not pruned.
        quantize: by layer name; a layer that is not in it is not quantised.
        notes: why layers are not pruned, or not quantised.
    """

    zeros: dict[str, int]
    quantize: dict[str, Quantize]
    notes: dict[str, str]


def shared(
    layers: list[SpikingLayer],
    weights: Mapping[str, Tensor],
    hessian_of: Callable[[str], Tensor],
    settings: Mapping[str, LayerSettings],
    progress: Shown,
) -> Budget:
    """The zeros and the grid of each layer.

    Args:
        layers: of the model.
        weights: by layer name, (rows, columns).
        hessian_of: the Hessian of a layer, by name; asked for in order, where layers share by loss.
        settings: of the stage, by layer name.
        progress: show progress bars; None = on a terminal.

    Raises:
        SettingsError: a pattern fits none of the layers that share a budget.
    """

    def saliency_of(layer: SpikingLayer) -> Tensor:
        return saliency(layer, weights[layer.name], hessian_of(layer.name), settings[layer.name].damping)

    zeros: dict[str, int] = {}
    grids: dict[str, Quantize] = {}
    notes: dict[str, str] = {}
    for prune, own in sharing_zeros(layers, settings):
        given, unfit = share_zeros(own, weights, prune, saliency_of)
        zeros, notes = zeros | given, joined(notes, unfit)
    for quantize, own in sharing_bits(layers, settings):
        reasons = {layer.name: unfit_granularity(layer, quantize) for layer in own}
        notes = joined(notes, {name: f"not quantised: {reason}" for name, reason in reasons.items() if reason})
        fitting = [layer for layer in own if not reasons[layer.name]]
        if quantize.allocation == "loss" and fitting:
            grids |= share_bits(fitting, weights, hessian_of, settings[fitting[0].name], progress)
        else:
            grids |= {layer.name: quantize for layer in fitting}
    return Budget(zeros, grids, notes)


def sharing_zeros(
    layers: list[SpikingLayer], settings: Mapping[str, LayerSettings]
) -> list[tuple[Prune, list[SpikingLayer]]]:
    """The layers that share each budget of zeros; those that are not pruned are in none."""
    return _sharing(layers, {name: (own.zeros_of, own.prune) for name, own in settings.items()})


def sharing_bits(
    layers: list[SpikingLayer], settings: Mapping[str, LayerSettings]
) -> list[tuple[Quantize, list[SpikingLayer]]]:
    """The layers that share each budget of bits; those that are not quantised are in none."""
    return _sharing(layers, {name: (own.bits_of, own.quantize) for name, own in settings.items()})


def _sharing(
    layers: list[SpikingLayer], parts: Mapping[str, tuple[int, Setting | None]]
) -> list[tuple[Setting, list[SpikingLayer]]]:
    """The layers of each budget, in order; ``parts`` holds the number of a layer's budget and what it shares."""
    groups: dict[int, tuple[Setting, list[SpikingLayer]]] = {}
    for layer in layers:
        number, setting = parts[layer.name]
        if setting is not None:
            groups.setdefault(number, (setting, []))[1].append(layer)
    return list(groups.values())


def check_fit(layers: list[SpikingLayer], settings: Mapping[str, LayerSettings]) -> None:
    """Refuse a pattern, or groups of columns, that none of the layers can have that share a budget.

    Raises:
        SettingsError: there is none.
    """
    for prune, own in sharing_zeros(layers, settings):
        if all(reasons := [unfit_pattern(layer, prune.pattern) for layer in own]):
            whose = _whose(own, layers)
            raise SettingsError(f"pattern {prune.pattern!r} fits no layer of {whose}; {own[0].name!r}: {reasons[0]}")
    for quantize, own in sharing_bits(layers, settings):
        if all(reasons := [unfit_granularity(layer, quantize) for layer in own]):
            whose = _whose(own, layers)
            raise SettingsError(f"no layer of {whose} can be quantised: {reasons[0]}; use a divisor, or 'channel'")


def _whose(own: list[SpikingLayer], layers: list[SpikingLayer]) -> str:
    return "the model" if len(own) == len(layers) else f"those that share {own[0].name!r}'s budget"
