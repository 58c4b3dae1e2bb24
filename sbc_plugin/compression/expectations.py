"""Which stages a plan will have, and what each is expected to take, for those who watch."""

from collections.abc import Iterable

from sbc_plugin.calibration.counting import solving_seconds
from sbc_plugin.calibration.progress import stages_of
from sbc_plugin.compression.plan import Plan
from sbc_plugin.core.costs import solver_products
from sbc_plugin.layers import SpikingLayer


def expectations(plan: Plan, layers: Iterable[SpikingLayer]) -> tuple[list[str], dict[str, float]]:
    """The names of the stages in order; and seconds of a stage by its name, counted, but for those of calibration.

    Args:
        plan: that will be carried out.
        layers: that will be solved.
    """
    stages = stages_of([(len(phase.stages), phase.tune and plan.steps > 0) for phase in plan.phases])
    return stages, {
        "compressing": solving_seconds(layers, solver_products),
        "tuning": plan.steps * plan.trial.step.seconds,
    }
