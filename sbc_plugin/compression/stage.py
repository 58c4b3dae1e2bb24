"""One stage of a compression: calibrate, share the budgets, solve every layer, and write."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Statistics, gather
from sbc_plugin.calibration.progress import progress_bar
from sbc_plugin.calibration.sequential import Prefix, gather_drift
from sbc_plugin.calibration.shares import first_of
from sbc_plugin.compression.budgets import share_bits, share_zeros
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.journal import NOT_KEPT, Journal
from sbc_plugin.compression.layer import (
    SECOND_ORDER,
    Recipe,
    check_active,
    saliency,
    sequential_target,
    solve,
    unfit_granularity,
    without_pruning,
)
from sbc_plugin.compression.plan import silent_first
from sbc_plugin.compression.silent import unread_neurons
from sbc_plugin.core.allocation.silent import give_silent
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import in_layer
from sbc_plugin.evaluation.report import LayerReport, joined
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration, Quantize

Weights = Mapping[str, Tensor]  # by layer name, each (rows, columns)


@dataclass(frozen=True)
class State:
    """What the stages so far have made of a model.

    Attributes:
        weights: that the model has now.
        rows: of the report.
        grids: by layer name, of those that are quantised.
        active: statistics by layer name, of the latest stage in which anything reached the layer.
        notes: name -> reason, for what was left out.
    """

    weights: Weights
    rows: tuple[LayerReport, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)
    active: Mapping[str, Statistics] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What one stage works with.

    Attributes:
        runner: of the model.
        layers: of the model.
        data: batches of this rank's share, iterable more than once where a plan says so.
        calibration: settings.
        progress: show progress bars; None = on a terminal.
        recipe: what to do to each layer.
        journal: keeps what is computed.
    """

    runner: Runner
    layers: list[SpikingLayer]
    data: Iterable[Any]
    calibration: Calibration
    progress: bool | None
    recipe: Recipe
    journal: Journal = NOT_KEPT

    def gather(self) -> dict[str, Statistics]:
        """The statistics of all layers, of the network as it is."""
        return self.journal.once(
            "statistics", gather,
            self.runner, self.layers, self.data, self.calibration, self.progress, self.silent_first,
        )  # fmt: skip

    def run(self, state: State, known: Mapping[str, Statistics] | None = None) -> State:
        """Solve all layers and write them into the model.

        Args:
            state: of the model now.
            known: statistics of the network as it is, if they are known already.

        Returns:
            The state after it; ``state`` itself stays.

        Raises:
            CalibrationError: data that does not fit, or a layer that nothing reaches.
            SettingsError: a pattern or a granularity that does not fit.
            SingularHessianError: a Hessian that damping does not make invertible.
        """
        sequential = self.second_order and self.calibration.order == "sequential"
        after = self._sequential(state, known) if sequential else self._one_shot(state, known)
        rows = after.rows
        if state.rows:
            rows = tuple(row.after(earlier) for row, earlier in zip(rows, state.rows, strict=True))
        return replace(after, weights=self.weights(), rows=rows)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that the model has now."""
        return {layer.name: layer.weight() for layer in self.layers}

    @property
    def second_order(self) -> bool:
        """Whether layers are solved by their Hessians."""
        return self.recipe.method in SECOND_ORDER

    @property
    def silent_first(self) -> bool:
        """Whether weights of silent neurons go before solvers choose."""
        return silent_first(self.recipe.prune, self.second_order)

    def _one_shot(self, state: State, known: Mapping[str, Statistics] | None) -> State:
        """All Hessians from one pass over the network as it is; all layers are solved before the first is written."""
        # 1. Calibrate. A layer that an earlier stage silenced is solved on what reached it before.
        statistics = known or self.gather()
        silent = _silent(statistics)
        reached = {name: each for name, each in statistics.items() if each.accumulator.sum_xx.any()}
        active = {**state.active, **reached}
        statistics = {**statistics, **active}
        for layer in self.layers if self.second_order else []:
            with in_layer(layer.name):  # before time goes into the layers in front of it
                check_active(statistics[layer.name].accumulator.sum_xx)
        # 2. Share the budgets.
        weights = self._without_silent(state.weights, statistics, silent)
        budget = self._agreed_budget(weights, statistics)

        # 3. Solve.
        def solved(layer: SpikingLayer) -> Solution:
            return self.journal.within("layer").own(
                layer.name, self._solve, layer, weights[layer.name], statistics[layer.name], budget
            )

        found = dealt(self.layers, solved, progress=self.progress)
        # 4. Write.
        solutions, rows = {}, []
        for layer in self.layers:
            solution, seconds = found[layer.name]
            layer.write(solution.weight)
            rows.append(_row(layer, solution, statistics[layer.name], seconds))
            solutions[layer.name] = solution
        return _after(state, solutions, rows, active, budget.notes)

    def _sequential(self, state: State, known: Mapping[str, Statistics] | None) -> State:
        """Layer by layer, each on what the compressed ones before it send."""
        prune, quantize = self.recipe.prune, self.recipe.quantize
        needs_losses = any(part is not None and part.allocation == "loss" for part in (prune, quantize))
        statistics = (known or self.gather()) if needs_losses or self.silent_first else {}
        start = self._without_silent(state.weights, statistics, _silent(statistics))
        budget = self._agreed_budget(start, statistics)
        prefix = Prefix(self.layers, dict(state.weights), {})
        solutions, rows = {}, []
        for layer in progress_bar(self.layers, "compressing", "layer", self.progress):
            solution, row = self.journal.within("layer").once(
                layer.name, self._solved_behind, layer, start[layer.name], prefix, budget
            )
            solutions[layer.name] = solution
            prefix = replace(prefix, compressed={**prefix.compressed, layer.name: solution.weight})
            layer.write(solution.weight)
            rows.append(row)
        return _after(state, solutions, rows, state.active, budget.notes)

    def _without_silent(
        self, weights: Weights, statistics: Mapping[str, Statistics], silent: Mapping[str, Tensor]
    ) -> Weights:
        """The weights, those of silent neurons 0 as far as the budget goes; such zeros stay and are counted."""
        if not self.silent_first:
            return weights
        assert self.recipe.prune is not None
        dead = {
            layer.name: LayerHessian(statistics[layer.name].accumulator.sum_xx, layer.groups).dead_weights(layer.rows)
            for layer in self.layers
        }
        unread = unread_neurons(self.runner, self.layers, dead, silent, first_of(self.data))
        zeros = round(self.recipe.prune.sparsity * sum(weight.numel() for weight in weights.values()))
        return give_silent(weights, dead, unread, zeros) or weights

    def _agreed_budget(self, weights: Weights, statistics: Mapping[str, Statistics]) -> "Budget":
        """That of the first rank, as it was when the run was here before."""
        return ranks.handed(self.journal.once("budget", self._budget, weights, statistics))

    def _budget(self, weights: Weights, statistics: Mapping[str, Statistics]) -> "Budget":
        """The zeros and the grid of each layer.

        Raises:
            SettingsError: the pattern fits no layer.
        """
        prune, quantize = self.recipe.prune, self.recipe.quantize

        def hessian_of(name: str) -> Tensor:
            return _hessian(name, statistics[name])

        def saliency_of(layer: SpikingLayer) -> Tensor:
            return saliency(layer, weights[layer.name], hessian_of(layer.name), self.calibration.damping)

        zeros, notes = ({}, {}) if prune is None else share_zeros(self.layers, weights, prune, saliency_of)
        if quantize is None:
            return Budget(zeros, {}, notes)
        reasons = {layer.name: unfit_granularity(layer, quantize) for layer in self.layers}
        notes = joined(notes, {name: f"not quantised: {reason}" for name, reason in reasons.items() if reason})
        fitting = [layer for layer in self.layers if not reasons[layer.name]]
        grids = {layer.name: quantize for layer in fitting}
        if quantize.allocation == "loss":
            grids = share_bits(fitting, weights, hessian_of, self.recipe, self.progress)
        return Budget(zeros, grids, notes)

    def _solved_behind(
        self, layer: SpikingLayer, target: Tensor, prefix: Prefix, budget: "Budget"
    ) -> tuple[Solution, LayerReport]:
        """The solution of one layer on what a compressed prefix sends, and its row."""
        started = time.perf_counter()
        seen, drift = gather_drift(self.runner, layer, self.data, self.calibration, prefix)
        moved = drift if prefix.compressed and self.second_order else None
        solution = dealt([layer], partial(self._solve_on_prefix, target, seen, moved, budget))[layer.name][0]
        return solution, _row(layer, solution, seen, time.perf_counter() - started)

    def _solve_on_prefix(
        self, target: Tensor, seen: Statistics, drift: Tensor | None, budget: "Budget", layer: SpikingLayer
    ) -> Solution:
        """One layer on what the compressed prefix sends; the drift is None where that is what the dense one sends."""
        if drift is not None:
            hessian = _hessian(layer.name, seen)
            with in_layer(layer.name):
                groups = layer.groups if hessian.dim() == 3 else None
                alpha, damping = self.calibration.alpha, self.calibration.damping
                target = sequential_target(target, hessian, drift, alpha, damping, groups)
        return self._solve(layer, target, seen, budget)

    def _solve(self, layer: SpikingLayer, weight: Tensor, statistics: Statistics, budget: "Budget") -> Solution:
        hessian = _hessian(layer.name, statistics)
        recipe = self.recipe if layer.name in budget.zeros else without_pruning(self.recipe)
        recipe = replace(recipe, quantize=budget.quantize.get(layer.name))
        with in_layer(layer.name):
            return solve(layer, weight, hessian, budget.zeros.get(layer.name), recipe)


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


def _silent(statistics: Mapping[str, Statistics]) -> dict[str, Tensor]:
    return {name: each.silent for name, each in statistics.items() if each.silent is not None}


def _hessian(name: str, statistics: Statistics) -> Tensor:
    """The Hessian of a layer; an error names the layer."""
    with in_layer(name):
        return statistics.accumulator.hessian()


def _after(
    state: State,
    solutions: Mapping[str, Solution],
    rows: list[LayerReport],
    active: Mapping[str, Statistics],
    notes: Mapping[str, str],
) -> State:
    grids = {name: solution.grid for name, solution in solutions.items() if solution.grid is not None}
    return replace(
        state, rows=tuple(rows), grids={**state.grids, **grids}, active=active, notes=joined(state.notes, notes)
    )


def _row(layer: SpikingLayer, solution: Solution, statistics: Statistics, seconds: float) -> LayerReport:
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        rows=layer.rows,
        columns=layer.columns,
        sequences=statistics.sequences,
        samples=statistics.accumulator.count,
        sparsity=float((solution.weight == 0).double().mean()),
        bits=solution.grid.bits if solution.grid else layer.parts[0].tensor.dtype.itemsize * 8,
        loss=solution.loss,
        seconds=seconds,
    )
