"""The stages of a compression, all or none of them: rounds of pruning, alignment, tuning, quantisation."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from sbc_plugin.calibration.hessians import Statistics
from sbc_plugin.compression.bias_correction import Expected, align, expected, movable
from sbc_plugin.compression.layer import SECOND_ORDER, Recipe, stages
from sbc_plugin.compression.objective import Aims, mean_distance, targets
from sbc_plugin.compression.stage import Job
from sbc_plugin.compression.tuning import tune
from sbc_plugin.evaluation.report import LayerReport
from sbc_plugin.layers import Forward
from sbc_plugin.settings import Prune

ROUNDS = (1, 2)  # of pruning, that are tried where settings leave them open


@dataclass(frozen=True)
class _Tried:
    """Where a number of rounds led: how far the spikes are away, and all that it takes to go on from there."""

    distance: float
    rounds: int
    rows: list[LayerReport]
    weights: dict[str, Tensor]
    others: list[Tensor]
    heard: dict[str, Statistics]


@dataclass
class Pipeline:
    """One call of :func:`sbc_plugin.compress`, once layers are found.

    Attributes:
        job: solves a stage; its recipe is that of all stages together.
        skipped: by name, what is not done, and why; added to.
        rounds: how many rounds pruning took, if settings left it open.
    """

    job: Job
    skipped: dict[str, str]
    rounds: int | None = None
    _wanted: Expected | None = field(default=None, init=False)
    _others: list[Tensor] = field(default_factory=list, init=False)  # what alignment moves besides weights

    def run(self, dense: dict[str, Tensor]) -> list[LayerReport]:
        """Solve, write and tune all layers; if anything fails, put the dense weights back."""
        job, calibration = self.job, self.job.calibration
        second_order = job.recipe.method in SECOND_ORDER
        steps = (calibration.tuning or 0) if second_order else 0
        aligning = second_order and calibration.align
        todo = stages(job.recipe, steps > 0)
        again = len(todo) > 1 or (second_order and calibration.order == "sequential") or job.silent_first
        if isinstance(job.data, Iterator) and (again or steps or aligning):
            job.data = list(job.data)
        self._others = movable(job.model, job.layers) if aligning else []
        start = [each.clone() for each in self._others]
        try:
            found = job.gather() if steps else None  # first, for it tells of bad data by layer and batch
            classes = calibration.outputs == "classes"
            aims = targets(job.library, job.model, job.data, job.forward, classes) if steps else None
            self._wanted = expected(job.model, job.layers, job.data, self._forward) if aligning else None
            rows: list[LayerReport] = []
            weights = dense
            for recipe, tuned in todo:
                prune = recipe.prune
                if aims is not None and prune is not None and prune.rounds is None:
                    solved = self._in_rounds(recipe, prune, dense, found, aims)
                else:
                    solved = self._stage(recipe, weights, found)
                if tuned and aims is not None:
                    self._tune(aims, steps)
                found, weights = None, self._weights()
                rows = _after(rows, solved)
        except BaseException:
            self._put(dense, start)
            raise
        return rows

    def _stage(
        self, recipe: Recipe, weights: dict[str, Tensor], found: dict[str, Statistics] | None
    ) -> list[LayerReport]:
        self.job.recipe = recipe
        rows = self.job.solved(weights, self.skipped, found)
        if self._wanted is not None:
            align(self.job.model, self._wanted, self._forward)
        return rows

    def _in_rounds(
        self,
        recipe: Recipe,
        prune: Prune,
        dense: dict[str, Tensor],
        found: dict[str, Statistics] | None,
        aims: Aims,
    ) -> list[LayerReport]:
        """Prune in each number of ``ROUNDS``; stay with the one that leaves the spikes of the judged pieces closest."""
        job, start = self.job, [each.clone() for each in self._others]
        tried: list[_Tried] = []
        for rounds in ROUNDS:
            todo = stages(replace(recipe, prune=replace(prune, rounds=rounds)), True)
            if len(todo) < rounds:
                break
            rows: list[LayerReport] = []
            weights, first = dense, found
            for part, _ in todo:
                rows = _after(rows, self._stage(part, weights, first))
                weights, first = self._weights(), None
            distance = mean_distance(job.library, job.model, aims, self._forward)
            others = [each.clone() for each in self._others]
            tried.append(_Tried(distance, rounds, rows, weights, others, job.heard))
            self._put(dense, start)
            job.heard = {}
        best = min(tried, key=lambda each: each.distance)
        self._put(best.weights, best.others)
        job.heard, self.rounds = best.heard, best.rounds
        return best.rows

    def _tune(self, aims: Aims, steps: int) -> None:
        job = self.job
        before, after = tune(job.library, job.model, job.layers, job.grids, aims, steps, job.forward, job.progress)
        if before > 0 and not after < before:
            told = f"{steps} steps brought the spikes no closer ({before:.3f} before, {after:.3f} after)"
            self.skipped["tuning"] = "; ".join(filter(None, [self.skipped.get("tuning"), told]))

    @property
    def _forward(self) -> Forward:
        return self.job.forward or self.job.library.default_forward(self.job.model)

    def _weights(self) -> dict[str, Tensor]:
        return {layer.name: layer.weight() for layer in self.job.layers}

    def _put(self, weights: dict[str, Tensor], others: list[Tensor]) -> None:
        for layer in self.job.layers:
            layer.write(weights[layer.name])
        for tensor, value in zip(self._others, others, strict=True):
            tensor.copy_(value)


def _after(rows: list[LayerReport], later: list[LayerReport]) -> list[LayerReport]:
    """The rows of all stages so far."""
    return [new.after(old) for new, old in zip(later, rows, strict=True)] if rows else later
