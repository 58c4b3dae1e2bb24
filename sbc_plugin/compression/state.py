"""What the stages of a compression have made of a model so far: its weights, their grids, and rows of the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from sbc_plugin.calibration.hessians import Overview, Statistics
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.evaluation.report import LayerReport, joined
from sbc_plugin.layers import SpikingLayer

Weights = Mapping[str, Tensor]  # by layer name, each (rows, columns)


@dataclass(frozen=True)
class State:
    """What the stages so far have made of a model.

    Attributes:
        weights: that the model has now.
        rows: of the report.
        grids: by layer name, of those that are quantised.
        active: statistics by layer name, of the latest stage in which anything reached the layer; none where memory
            is short.
        notes: name -> reason, for what was left out.
        warnings: name -> what the user should know of it.
    """

    weights: Weights
    rows: tuple[LayerReport, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)
    active: Mapping[str, Statistics] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)


def silent_in(overview: Mapping[str, Overview]) -> dict[str, Tensor]:
    """By layer name, (rows,), True where a neuron never spiked; of layers of which that is known."""
    return {name: each.silent for name, each in overview.items() if each.silent is not None}


def after_stage(
    state: State,
    solutions: Mapping[str, Solution],
    rows: list[LayerReport],
    active: Mapping[str, Statistics],
    notes: Mapping[str, str],
) -> State:
    """The state after a stage.

    Args:
        state: before it.
        solutions: by layer name, of the layers that it solved.
        rows: of the report, of these layers.
        active: statistics by layer name, that later stages may need.
        notes: name -> reason, for what was left out.
    """
    grids = {name: solution.grid for name, solution in solutions.items() if solution.grid is not None}
    return replace(
        state, rows=tuple(rows), grids={**state.grids, **grids}, active=active, notes=joined(state.notes, notes)
    )


def row_of(layer: SpikingLayer, solution: Solution, seen: Overview, seconds: float) -> LayerReport:
    """The row of a layer in the report.

    Args:
        layer: that was solved.
        solution: of it.
        seen: what reached it.
        seconds: to solve.
    """
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        rows=layer.rows,
        columns=layer.columns,
        sequences=seen.sequences,
        samples=seen.samples,
        sparsity=float((solution.weight == 0).double().mean()),
        bits=solution.grid.bits if solution.grid else layer.parts[0].tensor.dtype.itemsize * 8,
        loss=solution.loss,
        seconds=seconds,
        neurons=list(dict.fromkeys(site.neuron for site in layer.sites if site.neuron is not None)),
    )
