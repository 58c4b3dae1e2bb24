"""One stage of a compression: calibrate, share the budgets, solve every layer, and write."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.blocks import InBlocks, in_one_pass, overview_of
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Overview, Statistics, gather
from sbc_plugin.calibration.progress import Shown, progress_bar
from sbc_plugin.calibration.sequential import Prefix, gather_drift
from sbc_plugin.calibration.shares import first_of
from sbc_plugin.compression.budgets import Budget, shared, sharing_zeros
from sbc_plugin.compression.clock import Clock
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.journal import NOT_KEPT, Journal
from sbc_plugin.compression.layer import LayerSettings, check_reached, sequential_target, solve, without_pruning
from sbc_plugin.compression.silent import budgets_for, unread_neurons
from sbc_plugin.compression.state import State, Weights, after_stage, row_of, silent_in
from sbc_plugin.core.allocation.silent import give_silent
from sbc_plugin.core.pruning.prune import is_small
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import in_layer
from sbc_plugin.evaluation.report import LayerReport
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration

MOST_LARGE = 16  # layers for which "auto" is the hybrid, which takes some ten seconds of each


@dataclass(frozen=True)
class Stage:
    """What one stage works with.

    Attributes:
        runner: of the model.
        layers: of the model.
        data: batches of this rank's share, iterable more than once where a plan says so.
        calibration: settings.
        progress: show progress bars; None = on a terminal.
        settings: what to do to each layer, by its name.
        journal: keeps what is computed.
        clock: adds up what each kind of work takes.
    """

    runner: Runner
    layers: list[SpikingLayer]
    data: Iterable[Any]
    calibration: Calibration
    progress: Shown
    settings: Mapping[str, LayerSettings]
    journal: Journal = NOT_KEPT
    clock: Clock = field(default_factory=Clock)

    def gather(self) -> Mapping[str, Statistics]:
        """The statistics of all layers, of the network as it is; a block of layers at a time where memory asks so."""
        given = self.runner, self.layers, self.data, self.calibration, self.progress, self._silent_first
        with self.clock("calibration"):
            if in_one_pass(self.layers, self.calibration):
                return self.journal.once("statistics", gather, *given)
            return InBlocks(*given)

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
        sequential = self._second_order and self.calibration.order == "sequential"
        after = self._sequential(state, known) if sequential else self._one_shot(state, known)
        found, earlier = ({row.name: row for row in rows} for rows in (after.rows, state.rows))
        rows = [
            found[name].after(earlier[name])
            if name in found and name in earlier
            else found.get(name, earlier.get(name))
            for name in (layer.name for layer in self.layers)
        ]
        return replace(after, weights=self.weights(), rows=tuple(row for row in rows if row is not None))

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that the model has now."""
        return {layer.name: layer.weight() for layer in self.layers}

    @property
    def _second_order(self) -> bool:
        return any(own.second_order for own in self.settings.values())

    @property
    def _silent_first(self) -> bool:
        return any(own.silent_first for own in self.settings.values())

    @property
    def _solved(self) -> list[SpikingLayer]:
        """The layers that something is done to."""
        return [layer for layer in self.layers if not self.settings[layer.name].idle]

    @property
    def _many_large(self) -> bool:
        """Whether so many layers are large that "auto" does without the exact elimination at their end."""
        return sum(not is_small(layer.rows, layer.columns) for layer in self.layers) > MOST_LARGE

    def _one_shot(self, state: State, known: Mapping[str, Statistics] | None) -> State:
        """All Hessians from one pass over the network as it is; all layers are solved before the first is written."""
        # 1. Calibrate. A layer that an earlier stage silenced is solved on what reached it before.
        statistics = known or self.gather()
        blocks = statistics if isinstance(statistics, InBlocks) else None
        active: Mapping[str, Statistics] = {}  # of blocks no statistics are kept for later stages
        with self.clock("calibration"):  # of all blocks together an overview takes a pass of its own
            overview = overview_of(statistics) if blocks is None or self._silent_first else {}
        silent = silent_in(overview)
        if blocks is None:
            reached = {name: each for name, each in statistics.items() if overview[name].diagonal.any()}
            active = {**state.active, **reached}
            statistics = {**statistics, **active}
            overview = overview_of(statistics)
            for layer in self.layers if self._second_order and not state.rows else []:
                with in_layer(layer.name):  # before time goes into the layers in front of it
                    check_reached(overview[layer.name].diagonal)
        # 2. Share the budgets.
        weights = self.without_silent(state.weights, overview, silent)
        budget = self._agreed_budget(weights, statistics)

        # 3. Solve.
        waited: dict[str, float] = {}

        def solution_of(layer: SpikingLayer) -> Solution:
            started = time.perf_counter()
            with self.clock("calibration"):
                seen = statistics[layer.name]
            waited[layer.name] = time.perf_counter() - started  # for the layer's block
            own = self.settings[layer.name]
            if own.second_order and not seen.overview.diagonal.any():
                with in_layer(layer.name):
                    if not state.rows:
                        check_reached(seen.overview.diagonal)
                own = replace(own, method="magnitude")  # an earlier stage silenced it, and nothing is kept of it
            return self._solve(layer, weights[layer.name], seen, budget, own)

        def solved(layer: SpikingLayer) -> Solution:
            # Of a block whose layers are all solved already the statistics are not gathered.
            return self.journal.within("layer").own(layer.name, lambda: solution_of(layer))

        with self.clock("solving"):
            found = dealt(self._solved, solved, progress=self.progress)
        if blocks is not None:
            overview = {layer.name: blocks.overview_of(layer.name) for layer in self._solved}
        # 4. Write.
        solutions, rows = {}, []
        for layer in self._solved:
            solution, seconds = found[layer.name]
            layer.write(solution.weight)
            rows.append(row_of(layer, solution, overview[layer.name], seconds - waited.get(layer.name, 0.0)))
            solutions[layer.name] = solution
        return after_stage(state, solutions, rows, active, budget.notes)

    def _sequential(self, state: State, known: Mapping[str, Statistics] | None) -> State:
        """Layer by layer, each on what the compressed ones before it send."""
        parts = [part for own in self.settings.values() for part in (own.prune, own.quantize) if part is not None]
        needs_losses = any(part.allocation == "loss" for part in parts)
        statistics = (known or self.gather()) if needs_losses or self._silent_first else {}
        overview = overview_of(statistics)
        start = self.without_silent(state.weights, overview, silent_in(overview))
        budget = self._agreed_budget(start, statistics)
        prefix = Prefix(self.layers, dict(state.weights), {})
        solutions, rows = {}, []
        for layer in progress_bar(self._solved, "compressing", "layer", self.progress):
            with self.clock("calibration"):
                solution, row = self.journal.within("layer").once(
                    layer.name, self._solved_behind, layer, start[layer.name], prefix, budget
                )
            solutions[layer.name] = solution
            prefix = replace(prefix, compressed={**prefix.compressed, layer.name: solution.weight})
            layer.write(solution.weight)
            rows.append(row)
        return after_stage(state, solutions, rows, state.active, budget.notes)

    def without_silent(
        self, weights: Weights, overview: Mapping[str, Overview], silent: Mapping[str, Tensor]
    ) -> Weights:
        """The weights, those of silent neurons 0 as far as the budget goes; such zeros stay and are counted.

        Args:
            weights: by layer name.
            overview: of each layer.
            silent: by layer name, (rows,), True where the neuron never spiked.
        """
        if not self._silent_first:
            return weights
        dead = {layer.name: overview[layer.name].dead_weights(layer) for layer in self.layers}
        groups = [each for each in sharing_zeros(self.layers, self.settings) if each[0].silent_first]
        budgets = budgets_for(groups, weights, dead)
        if not budgets:
            return weights
        gone = {name for names, _ in budgets for name in names}
        dead = {name: mask if name in gone else torch.zeros_like(mask) for name, mask in dead.items()}
        unread = unread_neurons(self.runner, self.layers, dead, silent, first_of(self.data))
        new = dict(weights)
        for names, zeros in budgets:
            new |= give_silent({name: weights[name] for name in names}, dead, unread, zeros) or {}
        return new

    def _agreed_budget(self, weights: Weights, statistics: Mapping[str, Statistics]) -> Budget:
        """That of the first rank, as it was when the run was here before."""

        def hessian_of(name: str) -> Tensor:
            return _hessian(name, statistics[name])

        with self.clock("budgets"):
            budget = self.journal.once("budget", shared, self.layers, weights, hessian_of, self.settings, self.progress)
        return ranks.handed(budget)

    def _solved_behind(
        self, layer: SpikingLayer, target: Tensor, prefix: Prefix, budget: Budget
    ) -> tuple[Solution, LayerReport]:
        """The solution of one layer on what a compressed prefix sends, and its row."""
        started = time.perf_counter()
        seen, drift = gather_drift(self.runner, layer, self.data, self.calibration, prefix)
        moved = drift if prefix.compressed and self._second_order else None
        with self.clock("solving"):
            solution = dealt([layer], partial(self._solve_on_prefix, target, seen, moved, budget))[layer.name][0]
        return solution, row_of(layer, solution, seen.overview, time.perf_counter() - started)

    def _solve_on_prefix(
        self, target: Tensor, seen: Statistics, drift: Tensor | None, budget: Budget, layer: SpikingLayer
    ) -> Solution:
        """One layer on what the compressed prefix sends; the drift is None where that is what the dense one sends."""
        if drift is not None:
            hessian = _hessian(layer.name, seen)
            with in_layer(layer.name):
                groups = layer.groups if hessian.dim() == 3 else None
                alpha, damping = self.calibration.alpha, self.calibration.damping
                target = sequential_target(target, hessian, drift, alpha, damping, groups)
        return self._solve(layer, target, seen, budget, self.settings[layer.name])

    def _solve(
        self, layer: SpikingLayer, weight: Tensor, statistics: Statistics, budget: Budget, settings: LayerSettings
    ) -> Solution:
        hessian = _hessian(layer.name, statistics)
        settings = settings if layer.name in budget.zeros else without_pruning(settings)
        settings = replace(settings, quantize=budget.quantize.get(layer.name))
        large = self._many_large and not is_small(layer.rows, layer.columns)
        if large and settings.prune is not None and settings.prune.solver == "auto":
            settings = replace(settings, prune=replace(settings.prune, solver="admm"))
        with in_layer(layer.name):
            return solve(layer, weight, hessian, budget.zeros.get(layer.name), settings)


def _hessian(name: str, statistics: Statistics) -> Tensor:
    """The Hessian of a layer; an error names the layer."""
    with in_layer(name):
        return statistics.accumulator.hessian()
