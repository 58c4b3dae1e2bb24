"""All layers of a model, calibrated, solved and written: one stage of what ``compress`` does once it knows them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from sbc_plugin.calibration.hessians import Statistics, gather
from sbc_plugin.calibration.progress import progress_bar
from sbc_plugin.calibration.sequential import gather_drift
from sbc_plugin.compression.budgets import dealt
from sbc_plugin.compression.layer import (
    SECOND_ORDER,
    Recipe,
    check_heard,
    saliency,
    sequential_target,
    solve,
    unfit_pattern,
    without_pruning,
)
from sbc_plugin.compression.silent import unheard_neurons
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.allocation.silent import dead_columns, give_silent
from sbc_plugin.core.hessian import Solution
from sbc_plugin.core.pruning.patterns import parse_pattern, pattern_zeros
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import SettingsError, in_layer
from sbc_plugin.evaluation.report import LayerReport
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer
from sbc_plugin.settings import Calibration, Quantize


def zero_fraction(weight: Tensor) -> float:
    """The fraction of zeros."""
    return float((weight == 0).double().mean())


@dataclass
class Job:
    """One stage of a compression, once layers are found: what to solve, and how.

    Attributes:
        library: of the model.
        model: changed in place.
        layers: of the model.
        data: batches.
        calibration: settings.
        forward: runs one whole sequence; None for the library's default.
        progress: show progress bars; None = on a terminal.
        recipe: what to do to each layer.
        grids: by layer name, of those that were quantised.
        heard: by layer name, of the latest stage in which anything reached the layer.
    """

    library: SNNLibrary
    model: nn.Module
    layers: list[SpikingLayer]
    data: Iterable[Any]
    calibration: Calibration
    forward: Forward | None
    progress: bool | None
    recipe: Recipe
    grids: dict[str, Grid] = field(default_factory=dict)
    heard: dict[str, Statistics] = field(default_factory=dict)

    def solved(
        self, weights: dict[str, Tensor], skipped: dict[str, str], found: dict[str, Statistics] | None = None
    ) -> list[LayerReport]:
        """Solve all layers and write them.

        Args:
            weights: of all layers, that the model has now.
            skipped: reasons are added.
            found: statistics of the network as it is, if they are known already.
        """
        sequential = self.recipe.method in SECOND_ORDER and self.calibration.order == "sequential"
        return (self._sequential if sequential else self._one_shot)(weights, skipped, found)

    def gather(self) -> dict[str, Statistics]:
        """The statistics of all layers, of the network as it is."""
        data, calibration = self.data, self.calibration
        return gather(self.library, self.model, self.layers, data, calibration, self.forward, self.progress)

    def _one_shot(
        self, dense: dict[str, Tensor], skipped: dict[str, str], found: dict[str, Statistics] | None
    ) -> list[LayerReport]:
        """All Hessians from one pass over the dense network; all layers solved before the first is written."""
        found = found or self.gather()
        self.heard |= {name: told for name, told in found.items() if told.accumulator.sum_xx.any()}
        found |= self.heard  # what an earlier stage silenced is solved on what reached it before
        for layer in self.layers if self.recipe.method in SECOND_ORDER else []:
            with in_layer(layer.name):  # before time goes into the layers in front of it
                check_heard(found[layer.name].accumulator.sum_xx)
        dense = self._without_silent(dense, found)
        zeros, grids = self._budget(dense, skipped, found), self._dealt(dense, found)
        solved = []
        for layer in progress_bar(self.layers, "compressing", "layer", self.progress):
            started = time.perf_counter()
            solution = self._solve(layer, dense[layer.name], found[layer.name].accumulator.hessian(), zeros, grids)
            solved.append((layer, solution, self._row(layer, solution, found[layer.name], started)))
        for layer, solution, _ in solved:
            layer.write(solution.weight)
        return [row for _, _, row in solved]

    def _sequential(
        self, dense: dict[str, Tensor], skipped: dict[str, str], found: dict[str, Statistics] | None
    ) -> list[LayerReport]:
        """Layer by layer, each on what the already compressed ones before it send."""
        prune, quantize = self.recipe.prune, self.recipe.quantize
        needs_losses = any(part is not None and part.allocation == "loss" for part in (prune, quantize))
        found = (found or self.gather()) if needs_losses or self.silent_first else {}
        start = self._without_silent(dense, found)
        zeros, grids = self._budget(start, skipped, found), self._dealt(start, found)
        done: dict[str, Tensor] = {}
        rows = []
        for layer in progress_bar(self.layers, "compressing", "layer", self.progress):
            started = time.perf_counter()
            statistics, drift = gather_drift(
                self.library, self.model, layer, self.data, self.calibration, self.forward, self.layers, dense, done
            )
            hessian, target = statistics.accumulator.hessian(), start[layer.name]
            if done and self.recipe.method in SECOND_ORDER:
                with in_layer(layer.name):
                    groups = layer.groups if hessian.dim() == 3 else None
                    alpha, damping = self.calibration.alpha, self.calibration.damping
                    target = sequential_target(target, hessian, drift, alpha, damping, groups)
            solution = self._solve(layer, target, hessian, zeros, grids)
            done[layer.name] = solution.weight
            layer.write(solution.weight)
            rows.append(self._row(layer, solution, statistics, started))
        return rows

    @property
    def silent_first(self) -> bool:
        """Whether weights of silent neurons go before solvers choose."""
        prune = self.recipe.prune
        return prune is not None and bool(prune.silent_first) and self.recipe.method in SECOND_ORDER

    def _without_silent(self, dense: dict[str, Tensor], found: dict[str, Statistics]) -> dict[str, Tensor]:
        """The dense weights, those of silent neurons 0 as far as the budget goes; such zeros stay and are counted."""
        if not self.silent_first:
            return dense
        assert self.recipe.prune is not None
        dead = {
            layer.name: dead_columns(found[layer.name].accumulator.sum_xx, layer.rows, layer.groups)
            for layer in self.layers
        }
        unheard = unheard_neurons(self.library, self.model, self.layers, dead, self.data, self.forward)
        zeros = round(self.recipe.prune.sparsity * sum(weight.numel() for weight in dense.values()))
        return give_silent(dense, dead, unheard, zeros) or dense

    def _dealt(self, weights: dict[str, Tensor], found: dict[str, Statistics]) -> dict[str, Quantize]:
        """The grids of layers that share a budget of bits; {} where all have the same, or none."""
        quantize = self.recipe.quantize
        if quantize is None or quantize.allocation != "loss":
            return {}

        def hessian_of(name: str) -> Tensor:
            return found[name].accumulator.hessian()

        return dealt(self.layers, weights, hessian_of, self.recipe, self.progress)

    def _solve(
        self,
        layer: SpikingLayer,
        weight: Tensor,
        hessian: Tensor,
        zeros: dict[str, int],
        grids: dict[str, Quantize],
    ) -> Solution:
        recipe = self.recipe if layer.name in zeros else without_pruning(self.recipe)
        recipe = replace(recipe, quantize=grids.get(layer.name, recipe.quantize))
        with in_layer(layer.name):
            solution = solve(layer, weight, hessian, zeros.get(layer.name), recipe)
        if solution.grid is not None:
            self.grids[layer.name] = solution.grid
        return solution

    def _budget(
        self, dense: dict[str, Tensor], skipped: dict[str, str], found: dict[str, Statistics]
    ) -> dict[str, int]:
        """How many zeros each layer shall have; layers that the pattern does not fit are left out, and that is told.

        Raises:
            SettingsError: the pattern fits no layer.
        """
        prune = self.recipe.prune
        if prune is None:
            return {}
        pattern = parse_pattern(prune.pattern)
        fitting = []
        for layer in self.layers:
            if reason := unfit_pattern(layer, prune.pattern):
                skipped[layer.name] = "; ".join(filter(None, [layer.note, f"not pruned: {reason}"]))
            else:
                fitting.append(layer)
        if not fitting:
            raise SettingsError(f"pattern {prune.pattern!r} fits no layer of the model: {skipped[self.layers[0].name]}")
        if pattern.kind == "n:m":
            return {layer.name: pattern_zeros(pattern, layer.rows, layer.columns, 0) for layer in fitting}
        weights = {layer.name: dense[layer.name] for layer in fitting}
        saliencies = None
        if prune.allocation == "loss":
            saliencies = {
                layer.name: saliency(
                    layer, dense[layer.name], found[layer.name].accumulator.hessian(), self.calibration.damping
                )
                for layer in fitting
            }
        return allocate_zeros(weights, prune.sparsity, method=prune.allocation, saliencies=saliencies)

    def _row(self, layer: SpikingLayer, solution: Solution, statistics: Statistics, started: float) -> LayerReport:
        return LayerReport(
            name=layer.name,
            kind=layer.kind,
            rows=layer.rows,
            columns=layer.columns,
            sequences=statistics.sequences,
            samples=statistics.accumulator.count,
            sparsity=zero_fraction(solution.weight),
            bits=solution.grid.bits if solution.grid else layer.parts[0].tensor.dtype.itemsize * 8,
            loss=solution.loss,
            seconds=time.perf_counter() - started,
        )
