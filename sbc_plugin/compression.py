"""``compress``: find the layers, calibrate, deal out the budget, solve, write back, report."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from sbc_plugin.aims import Aims, targets
from sbc_plugin.calibration import DEFAULT, Statistics, gather, peek
from sbc_plugin.core.allocation import allocate_zeros
from sbc_plugin.core.grids import Grid
from sbc_plugin.core.hessian import Solution
from sbc_plugin.core.patterns import parse_pattern, pattern_zeros
from sbc_plugin.core.silence import dead_columns, give_silent
from sbc_plugin.errors import CalibrationError, SettingsError, in_layer
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer, backend_called, library_of
from sbc_plugin.report import LayerReport, Report
from sbc_plugin.sequential import gather_drift
from sbc_plugin.settings import METHODS, Calibration, Prune, Quantize
from sbc_plugin.solving import (
    SECOND_ORDER,
    Recipe,
    check_heard,
    saliency,
    sequential_target,
    solve,
    stages,
    unfit_pattern,
    without_pruning,
)
from sbc_plugin.tuning import tune
from sbc_plugin.unheard import unheard_neurons


def compress(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    method: str = "sbc",
    prune: Prune | None = None,
    quantize: Quantize | None = None,
    calibration: Calibration = DEFAULT,
    forward: Forward | None = None,
    inplace: bool = False,
    progress: bool | None = None,
    backend: str | None = None,
) -> tuple[nn.Module, Report]:
    """Prune and quantise a trained spiking network in one call, without retraining, keeping its spike trains.

    Minimises, layer by layer, the squared Van Rossum distance between dense and compressed spike trains through its
    surrogate Hessian ``H = 2 (MX)^T (MX) / count``. Source: docs/theory.md, equations 1 and 2 (arXiv 2506.03996).

    Args:
        model: a trained spiking network of a known library (Norse).
        calibration_data: iterable of batches. A batch is the input (T, B, ...), or a tuple, list or dict whose first
            item (or "x", "input", "data") is it, so a labelled DataLoader works as it is.
        method: "sbc"; or a baseline under the same budget: "obc" (M = I), "magnitude" or "rtn" (both: smallest weights
            to zero, then round to nearest).
        prune: how many weights go; None keeps all.
        quantize: the grid; None keeps floating point. With both, one pass does both.
        calibration: how Hessians are gathered.
        forward: ``forward(model, batch)`` runs one whole sequence. The default calls a sequence model once and drives a
            step model over the first axis.
        inplace: change ``model`` itself, all layers or none; otherwise it is not touched.
        progress: show a progress bar; None = on a terminal.
        backend: "brevitas" returns a model of Brevitas layers with the same integers and scales; None plain layers.

    Returns:
        The compressed model and a report with a row a layer.

    Raises:
        SettingsError: nothing to do, an unknown method, or settings that do not fit the model.
        UnsupportedModelError: a model, neuron or weight without a rule.
        CalibrationError: no data, data that does not fit, or a layer that stays silent.
        SingularHessianError: a Hessian that damping does not make invertible.
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise SettingsError(f"method={method!r} is unknown; use one of {', '.join(map(repr, METHODS))}")
    if prune is None and quantize is None:
        raise SettingsError("nothing to do: give prune=Prune(sparsity), quantize=Quantize(bits), or both")
    _check_kind("prune", prune, Prune, "Prune(0.9)")
    _check_kind("quantize", quantize, Quantize, "Quantize(bits=4)")
    _check_kind("calibration", calibration, Calibration, "Calibration()")
    if method == "obc":
        calibration = replace(calibration, temporal=False)
    adapter = None if backend is None else backend_called(backend)
    if adapter is not None and quantize is None:
        raise SettingsError(f"backend={backend!r} holds quantised weights; give quantize=Quantize(bits)")
    library = library_of(model)
    first, data = peek(calibration_data)
    target = model if inplace else library.copy_model(model)
    layers, skipped = library.find_layers(target, first, forward, calibration.temporal)
    skipped |= {layer.name: layer.note for layer in layers if layer.note}
    dense = {layer.name: layer.weight() for layer in layers}
    for name, weight in dense.items():
        if not weight.isfinite().all():
            raise CalibrationError(f"layer {name!r}: the weight holds NaN or infinity; repair the model first")
    if adapter is not None and quantize is not None:
        adapter.check_backend(layers, quantize)
    job = _Job(
        library,
        target,
        layers,
        data,
        calibration,
        forward,
        progress,
        Recipe(method, prune, quantize, calibration.damping),
    )
    rows = job.run(dense, skipped)
    if adapter is not None and quantize is not None:
        target, left = adapter.into_backend(target, layers, quantize, job.grids)
        skipped |= {name: "; ".join(filter(None, [skipped.get(name), reason])) for name, reason in left.items()}
    settings = {"method": method, "prune": prune, "quantize": quantize, "calibration": calibration}
    return target, Report(rows, skipped, settings, time.perf_counter() - started)


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind) and not (value is None and kind is not Calibration):
        raise SettingsError(f"{name}={value!r} is no {kind.__name__}; use {name}={example}")


def zero_fraction(weight: Tensor) -> float:
    """The fraction of zeros."""
    return float((weight == 0).double().mean())


@dataclass
class _Job:
    library: SNNLibrary
    model: nn.Module
    layers: list[SpikingLayer]
    data: Iterable[Any]
    calibration: Calibration
    forward: Forward | None
    progress: bool | None
    recipe: Recipe
    grids: dict[str, Grid] = field(default_factory=dict)

    def run(self, dense: dict[str, Tensor], skipped: dict[str, str]) -> list[LayerReport]:
        """Solve, write and tune all layers; if anything fails, put the dense weights back."""
        second_order = self.recipe.method in SECOND_ORDER
        sequential = second_order and self.calibration.order == "sequential"
        tuning = second_order and self.calibration.tuning > 0
        if isinstance(self.data, Iterator) and (sequential or tuning or self.silent_first):
            self.data = list(self.data)
        try:
            classes = self.calibration.outputs == "classes"
            aims = targets(self.library, self.model, self.data, self.forward, classes) if tuning else None
            rows: list[LayerReport] = []
            for recipe in stages(self.recipe, tuning):
                self.recipe = recipe
                weights = {layer.name: layer.weight() for layer in self.layers}
                solved = self.sequential(weights, skipped) if sequential else self.one_shot(weights, skipped)
                if aims is not None:
                    self.tune(aims, skipped)
                rows = [
                    replace(row, sparsity=zero_fraction(layer.weight()), loss=row.loss + (rows[at].loss if rows else 0))
                    for at, (row, layer) in enumerate(zip(solved, self.layers, strict=True))
                ]
        except BaseException:
            for layer in self.layers:
                layer.write(dense[layer.name])
            raise
        return rows

    def tune(self, aims: Aims, skipped: dict[str, str]) -> None:
        steps = self.calibration.tuning
        before, after = tune(
            self.library, self.model, self.layers, self.grids, aims, steps, self.forward, self.progress
        )
        if not after < before:
            told = f"{steps} steps brought the spikes no closer ({before:.3f} before, {after:.3f} after)"
            skipped["tuning"] = "; ".join(filter(None, [skipped.get("tuning"), told]))

    def one_shot(self, dense: dict[str, Tensor], skipped: dict[str, str]) -> list[LayerReport]:
        """All Hessians from one pass over the dense network; all layers solved before the first is written."""
        found = self.gather(self.layers)
        for layer in self.layers if self.recipe.method in SECOND_ORDER else []:
            with in_layer(layer.name):  # before time goes into the layers in front of it
                check_heard(found[layer.name].accumulator.sum_xx)
        dense = self.without_silent(dense, found)
        zeros = self.budget(dense, skipped, found)
        solved = []
        for layer in self.bar(self.layers):
            started = time.perf_counter()
            solution = self.solve(layer, dense[layer.name], found[layer.name].accumulator.hessian(), zeros)
            solved.append((layer, solution, self.row(layer, solution, found[layer.name], started)))
        for layer, solution, _ in solved:
            layer.write(solution.weight)
        return [row for _, _, row in solved]

    def sequential(self, dense: dict[str, Tensor], skipped: dict[str, str]) -> list[LayerReport]:
        """Layer by layer, each on what the already compressed ones before it send."""
        needs_losses = self.recipe.prune is not None and self.recipe.prune.allocation == "loss"
        found = self.gather(self.layers) if needs_losses or self.silent_first else {}
        start = self.without_silent(dense, found)
        zeros = self.budget(start, skipped, found)
        done: dict[str, Tensor] = {}
        rows = []
        for layer in self.bar(self.layers):
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
            solution = self.solve(layer, target, hessian, zeros)
            done[layer.name] = solution.weight
            layer.write(solution.weight)
            rows.append(self.row(layer, solution, statistics, started))
        return rows

    @property
    def silent_first(self) -> bool:
        prune = self.recipe.prune
        return prune is not None and prune.silent_first and self.recipe.method in SECOND_ORDER

    def without_silent(self, dense: dict[str, Tensor], found: dict[str, Statistics]) -> dict[str, Tensor]:
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

    def gather(self, layers: list[SpikingLayer]) -> dict[str, Statistics]:
        return gather(self.library, self.model, layers, self.data, self.calibration, self.forward, self.progress)

    def solve(self, layer: SpikingLayer, weight: Tensor, hessian: Tensor, zeros: dict[str, int]) -> Solution:
        recipe = self.recipe if layer.name in zeros else without_pruning(self.recipe)
        with in_layer(layer.name):
            solution = solve(layer, weight, hessian, zeros.get(layer.name), recipe)
        if solution.grid is not None:
            self.grids[layer.name] = solution.grid
        return solution

    def budget(self, dense: dict[str, Tensor], skipped: dict[str, str], found: dict[str, Statistics]) -> dict[str, int]:
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

    def row(self, layer: SpikingLayer, solution: Solution, statistics: Statistics, started: float) -> LayerReport:
        return LayerReport(
            name=layer.name,
            kind=layer.kind,
            rows=layer.rows,
            columns=layer.columns,
            sequences=statistics.sequences,
            samples=statistics.accumulator.count,
            sparsity=zero_fraction(solution.weight),
            bits=self.recipe.quantize.bits if self.recipe.quantize else layer.parts[0].tensor.dtype.itemsize * 8,
            loss=solution.loss,
            seconds=time.perf_counter() - started,
        )

    def bar(self, layers: list[SpikingLayer]) -> Iterable[SpikingLayer]:
        disable = None if self.progress is None else not self.progress
        return tqdm(layers, desc="compressing", unit="layer", leave=False, disable=disable)
