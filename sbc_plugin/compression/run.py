"""Carry out a plan on a model: all of it, or nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sbc_plugin.calibration.hessians import Statistics
from sbc_plugin.compression.bias_correction import Expected, align, expected, movable
from sbc_plugin.compression.objective import Targets, mean_distance, targets
from sbc_plugin.compression.plan import Phase, Plan, Schedule
from sbc_plugin.compression.stage import Stage, State
from sbc_plugin.compression.tuning import tune
from sbc_plugin.evaluation.report import joined
from sbc_plugin.layers import SpikingLayer


@dataclass(frozen=True)
class Outcome:
    """What a plan has led to.

    Attributes:
        state: of the model.
        rounds: of pruning.
    """

    state: State
    rounds: int


def run(plan: Plan, work: Stage) -> Outcome:
    """Solve, write and tune all layers as planned.

    Args:
        plan: what to do.
        work: a stage whose recipe is that of the whole plan.

    Raises:
        CompressionError: as :func:`sbc_plugin.compress`; the model is then changed half, see :func:`all_or_nothing`.
    """
    # First of all, because it names the layer and the batch that do not fit.
    known = work.gather() if plan.steps else None
    aims = targets(work.runner, work.data, work.calibration.outputs == "classes") if plan.steps else None
    moments = expected(work.runner, work.layers, work.data) if plan.aligns else None
    state, rounds = State(work.weights()), 1
    for phase in plan.phases:
        choice = _Choice(phase, work, aims, moments)
        state, length = choice.best(state, known)
        rounds, known = max(rounds, length), None
        if phase.tune and aims is not None:
            state = _tuned(state, work, aims, plan.steps)
    return Outcome(state, rounds)


@contextmanager
def all_or_nothing(model: nn.Module, layers: list[SpikingLayer]) -> Iterator[None]:
    """If the block fails, put back the weights, biases and running statistics that it began with."""
    snapshot = Snapshot.of(model, layers)
    try:
        yield
    except BaseException:
        snapshot.put_back()
        raise


@dataclass(frozen=True)
class Snapshot:
    """All that stages and alignment change in a model, and the values that it had.

    Attributes:
        layers: of the model.
        weights: name -> (rows, columns).
        others: running statistics and biases, each with its value.
    """

    layers: list[SpikingLayer]
    weights: Mapping[str, Tensor]
    others: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: nn.Module, layers: list[SpikingLayer]) -> "Snapshot":
        """What the model holds now."""
        weights = {layer.name: layer.weight() for layer in layers}
        return cls(layers, weights, [(tensor, tensor.clone()) for tensor in movable(model, layers)])

    def put_back(self) -> None:
        """Give the model these values again."""
        for layer in self.layers:
            layer.write(self.weights[layer.name])
        for tensor, value in self.others:
            tensor.copy_(value)


@dataclass(frozen=True)
class _Choice:
    """The schedules of a phase, of which one is to stay."""

    phase: Phase
    work: Stage
    aims: Targets | None
    moments: Expected | None

    def best(self, state: State, known: Mapping[str, Statistics] | None) -> tuple[State, int]:
        """The state after the best schedule, which the model is left in, and how many stages that has."""
        first, *others = self.phase.schedules
        if not others or self.aims is None:
            return self._through(first, state, known), len(first)
        model, layers = self.work.runner.model, self.work.layers
        start, tried = Snapshot.of(model, layers), []
        for schedule in self.phase.schedules:
            after = self._through(schedule, state, known)
            tried.append((mean_distance(self.work.runner, self.aims), after, schedule, Snapshot.of(model, layers)))
            start.put_back()
        _, after, schedule, made = min(tried, key=lambda each: each[0])
        made.put_back()
        return after, len(schedule)

    def _through(self, schedule: Schedule, state: State, known: Mapping[str, Statistics] | None) -> State:
        for recipe in schedule:
            state = replace(self.work, recipe=recipe).run(state, known)
            known = None
            if self.moments is not None:
                align(self.work.runner, self.moments)
        return state


def _tuned(state: State, work: Stage, aims: Targets, steps: int) -> State:
    tuned = tune(work.runner, work.layers, state.grids, aims, steps, work.progress)
    notes = state.notes
    if tuned.before > 0 and not tuned.after < tuned.before:
        terms = " + ".join(aims.terms)
        notes = joined(
            notes, {"tuning": f"{steps} steps lowered its objective no further: {terms} = {tuned.before:.3f}"}
        )
    return replace(state, weights=work.weights(), grids=tuned.grids, notes=notes)
