"""Carry out a plan on a model: all of it, or nothing."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch import Tensor, nn

from sbc_plugin.calibration.blocks import in_one_pass, overview_of
from sbc_plugin.calibration.counting import Cost, affordable, one_shot_seconds
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Statistics
from sbc_plugin.calibration.layer_by_layer import layer_by_layer
from sbc_plugin.calibration.memory import spool_limit
from sbc_plugin.calibration.progress import progress_bar
from sbc_plugin.calibration.seen_data import SeenData
from sbc_plugin.compression.bias_correction import Expected, align, expected, movable
from sbc_plugin.compression.choosing import chosen
from sbc_plugin.compression.journal import Steps
from sbc_plugin.compression.measures import measure_of
from sbc_plugin.compression.objective import Targets, expected_losses, targets, upper_bound
from sbc_plugin.compression.plan import Plan
from sbc_plugin.compression.spending import Spending
from sbc_plugin.compression.stage import Stage
from sbc_plugin.compression.state import State, Weights
from sbc_plugin.compression.suspicions import Look, suspicions
from sbc_plugin.compression.tuning import Tuned, tune
from sbc_plugin.core.adam import Adam
from sbc_plugin.core.costs import solver_products
from sbc_plugin.evaluation.report import joined
from sbc_plugin.layers import SpikingLayer

HOPELESS = "not tuned: its steps"  # so a note begins where no result would be tuned
NEGLIGIBLE = 0.015  # of accuracy: where no more can be lost, tuning brings nothing


@dataclass(frozen=True)
class Outcome:
    """What a plan has led to.

    Attributes:
        state: of the model.
        taken: steps of tuning, of each phase that could be tuned; () where there was none.
    """

    state: State
    taken: tuple[int, ...]

    def steps(self, planned: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        """How many steps each phase took; ``planned`` where none could be tuned, None where they took others."""
        if not self.taken:
            return planned
        return self.taken[0] if min(self.taken) == max(self.taken) else None


def run(plan: Plan, work: Stage, first: Any, known: Mapping[str, Statistics] | None = None) -> Outcome:
    """Solve, write and tune all layers as planned.

    Args:
        plan: what to do.
        work: a stage with the settings of the whole plan; its journal keeps what is computed.
        first: the first batch.
        known: statistics of the dense network, if they are known already.

    Raises:
        CompressionError: as :func:`sbc_plugin.compress`; the model is then changed half, see :func:`all_or_nothing`.
    """
    state, taken, others = work.journal.once("result", _carried_out, plan, work, first, known)
    work.journal.finish("result")
    _put(work, state.weights, others)
    return Outcome(state, tuple(taken))


def _carried_out(
    plan: Plan, work: Stage, first: Any, known: Mapping[str, Statistics] | None
) -> tuple[State, list[int], list[Tensor]]:
    """The state in the end, the steps of tuning of each phase, and what alignment has moved."""
    read, look = known is None, Look.at(work.runner, first)
    data = SeenData(work.data, work.runner.run)
    work = replace(work, data=data)
    # First of all, because it names the layer and the batch that do not fit.
    known = work.gather() if (plan.steps or plan.budget) and known is None else known
    state, pace = State(work.weights()), Pace(plan.trial.step)
    if plan.steps and plan.as_needed and known is not None:
        sequences = work.runner.sequences(first)
        pace = replace(
            pace,
            one_shot=one_shot_seconds(plan.trial.forward, work.layers, overview_of(known), sequences, solver_products),
        )
        state = state if pace.steps(plan.steps) else _too_long(state, plan.steps)
    steps = pace.steps(plan.steps)
    with work.clock("tuning"):
        aims = _aims(plan, work) if steps or plan.budget else None
    with work.clock("alignment") if plan.aligns else nullcontext():
        moments = expected(work.runner, work.layers, work.data) if plan.aligns else None
    spending = None
    if plan.budget is not None and aims is not None:
        measure = measure_of(plan.budget, work.runner, work.layers, work.data, plan.uncounted)
        spending = Spending(plan.budget, measure, aims, steps > 0, chosen)
    judge = None if aims is None or not plan.as_needed else _Judge(work.runner, aims, None)
    taken: list[int] = []
    for number, phase in enumerate(plan.phases, 1):
        here = replace(work, journal=work.journal.within(f"phase {number}"))
        for stage, settings in enumerate(phase.stages, 1):
            journal = here.journal.within(f"stage {stage}")
            if state.active and not in_one_pass(work.layers, plan.calibration):
                state = replace(state, active={})  # so that there is room for those of this stage
            part = replace(work, settings=settings, journal=journal)
            if spending is None:
                state, known = part.run(state, known), None
            else:
                spending, state = spending.run(part, state, known)
            if moments is not None:
                with work.clock("alignment"):
                    _put(work, state.weights, journal.once("alignment", _aligned, work, moments))
        asked = plan.steps_of(number - 1)
        if phase.tune and asked and aims is not None:
            with work.clock("judging"):
                lost = None if judge is None else here.journal.once("lost", judge.lost)
            taken.append(pace.steps(asked, lost, phase.moves_weights))
            with work.clock("tuning"):
                if taken[-1]:
                    state, known = _tuned(state, here, aims, taken[-1]), None
                else:
                    state = _left(state, lost) if _negligible(lost) else _too_long(state, asked, lost)
        elif phase.spared or phase.tune:
            taken.append(0)
        if judge is not None and phase is not plan.phases[-1] and plan.phases[-1].tune:
            with work.clock("judging"):
                judge = replace(judge, before=here.journal.once("losses", judge.now))
    state = state if spending is None else spending.closed(work, state)
    with work.clock("data"):
        fitted = plan.second_order  # else nothing follows from the data
        warnings = suspicions(look, data.notes() if read and fitted else None, state.rows if fitted else ())
    return replace(state, active={}, warnings=warnings), taken, _aligned_tensors(work)


def _put(work: Stage, weights: Weights, others: list[Tensor]) -> None:
    """Put weights, and what alignment moves, into the model."""
    for layer in work.layers:
        layer.write(weights[layer.name])
    for tensor, value in zip(movable(work.runner.model, work.layers), others, strict=True):
        tensor.copy_(value)


def _aligned(work: Stage, moments: Expected) -> list[Tensor]:
    align(work.runner, moments)
    return _aligned_tensors(work)


def _aligned_tensors(work: Stage) -> list[Tensor]:
    return [tensor.clone() for tensor in movable(work.runner.model, work.layers)]


@contextmanager
def all_or_nothing(model: nn.Module, layers: list[SpikingLayer]) -> Iterator[None]:
    """If the block fails, put back the weights, biases and running statistics that it began with."""
    weights = [layer.weight() for layer in layers]
    others = [(tensor, tensor.clone()) for tensor in movable(model, layers)]
    try:
        yield
    except BaseException:
        for layer, weight in zip(layers, weights, strict=True):
            layer.write(weight)
        for tensor, value in others:
            tensor.copy_(value)
        raise


@dataclass(frozen=True)
class _Judge:
    """How much accuracy a phase has lost, as far as the dense network's own probabilities tell.

    Attributes:
        runner: of the model.
        aims: what the dense model did.
        before: (n,), the expected loss of each calibration sequence when the phase began; None: the model was dense.
    """

    runner: Runner
    aims: Targets
    before: Tensor | None

    def now(self) -> Tensor | None:
        """(n,), the expected loss of each sequence; None where nothing is compared as classes."""
        with layer_by_layer(self.runner, self.aims.example) as source:
            return expected_losses(source, self.aims)

    def lost(self) -> Tensor | None:
        """(n,), the expected loss since the phase began."""
        now = self.now()
        return now if now is None or self.before is None else now - self.before


def _aims(plan: Plan, work: Stage) -> Targets:
    """What tuning aims at, of the model while it is dense."""
    limit = spool_limit(plan.calibration.memory_bytes)
    return targets(work.runner, work.data, work.calibration.outputs == "classes", plan.trial.pieces, limit)


@dataclass(frozen=True)
class Pace:
    """How many steps tuning takes.

    Attributes:
        step: what one costs.
        one_shot: what the solvers and calibration cost; None where the user has asked for the steps.
    """

    step: Cost
    one_shot: float | None = None

    def steps(self, steps: int, lost: Tensor | None = None, weights: bool = True) -> int:
        """Those of ``steps`` that a phase takes.

        Args:
            steps: that bring most.
            lost: (n,), the expected loss of each sequence; None where that is not known.
            weights: whether weights move, and not scales alone, for which fewer steps bring less.
        """
        if _negligible(lost):
            return 0
        if self.one_shot is None:
            return steps
        return affordable(steps, self.step, self.one_shot, float(lost.mean()) if weights and lost is not None else None)


def _negligible(lost: Tensor | None) -> TypeGuard[Tensor]:
    return lost is not None and upper_bound(lost) < NEGLIGIBLE


def _too_long(state: State, steps: int, lost: Tensor | None = None) -> State:
    points = 0.0 if lost is None else 100 * max(float(lost.mean()), 0.0)
    little = f"not tuned: for the {points:.1f} points that are expected to be lost, its steps"
    reason = (
        f"{HOPELESS if lost is None else little} would take much longer than all else; "
        f"Calibration(tuning={steps}) takes them, and Calibration(tuning={steps // 8}) some"
    )
    return replace(state, notes=joined(state.notes, {"tuning": reason}))


def _left(state: State, lost: Tensor) -> State:
    reason = f"not needed: of the accuracy, {100 * max(float(lost.mean()), 0.0):.1f} points are expected to be lost"
    return replace(state, notes=joined(state.notes, {"tuning": reason}))


def _tuned(state: State, work: Stage, aims: Targets, steps: int) -> State:
    tuned, weights = work.journal.once("tuned", _tuned_weights, state, work, aims, steps)
    work.journal.forget(Steps.NAME)
    for layer in work.layers:
        layer.write(weights[layer.name])
    notes = state.notes
    if tuned.before > 0 and not tuned.after < tuned.before:
        terms = " + ".join(aims.terms)
        notes = joined(
            notes, {"tuning": f"{steps} steps lowered its objective no further: {terms} = {tuned.before:.3f}"}
        )
    return replace(state, weights=weights, grids=tuned.grids, notes=notes)


def _tuned_weights(state: State, work: Stage, aims: Targets, steps: int) -> tuple[Tuned, dict[str, Tensor]]:
    def steps_of(adam: Adam) -> Iterable[int]:
        return progress_bar(Steps(adam, work.journal), "tuning", "step", work.progress)

    tuned = tune(work.runner, work.layers, state.grids, aims, steps, steps_of)
    return tuned, work.weights()
