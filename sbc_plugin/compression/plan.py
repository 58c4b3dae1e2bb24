"""What a compression is going to do, as data: everything that settings leave open (``None``) is filled in here, once.

What is filled in is the combination that kept most accuracy in docs/results.md: weights of silent neurons go first, and
label-free tuning follows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sbc_plugin.compression.layer import SECOND_ORDER, Recipe, without_pruning
from sbc_plugin.compression.trial import Trial
from sbc_plugin.core.pruning.patterns import parse_pattern
from sbc_plugin.settings import TUNING_STEPS, Calibration, Prune, Quantize

SCALE_STEPS = 100  # of tuning, where only scales can move
FINE = 4  # bits from which on tuned scales bring nothing


@dataclass(frozen=True)
class Phase:
    """A part of a compression.

    Attributes:
        recipes: of its stages, one after the other.
        tune: whether weights or scales are tuned after the last stage.
        spared: whether scales could be tuned, which is left out because it brings nothing.
    """

    recipes: tuple[Recipe, ...]
    tune: bool = False
    spared: bool = False

    @property
    def moves_weights(self) -> bool:
        """Whether tuning moves weights; of a phase that quantises it moves scales."""
        return self.recipes[-1].quantize is None


@dataclass(frozen=True)
class Plan:
    """All that is to be done to a model.

    Attributes:
        phases: one after the other.
        prune: settings with everything filled in.
        calibration: settings with everything filled in.
        notes: name -> reason, for what is left out.
        as_needed: whether tuning is left out where hardly any accuracy is expected to be lost, or it takes too long.
        trial: of a step of tuning.
    """

    phases: tuple[Phase, ...]
    prune: Prune | None
    calibration: Calibration
    notes: dict[str, str] = field(default_factory=dict)
    as_needed: bool = False
    trial: Trial = field(default_factory=Trial)

    @property
    def steps(self) -> int:
        """Of tuning, each time."""
        return (self.calibration.tuning or 0) if self.second_order else 0

    @property
    def aligns(self) -> bool:
        """Whether biases and BatchNorms follow each stage."""
        return self.second_order and self.calibration.align

    @property
    def second_order(self) -> bool:
        """Whether solvers use Hessians."""
        return self.phases[0].recipes[0].second_order

    @property
    def _silent_first(self) -> bool:
        return any(recipe.silent_first for phase in self.phases for recipe in phase.recipes)

    @property
    def reads_data_again(self) -> bool:
        """Whether calibration data is run through more than once."""
        stages = sum(len(phase.recipes) for phase in self.phases)
        sequential = self.second_order and self.calibration.order == "sequential"
        return stages > 1 or sequential or self.steps > 0 or self.aligns or self._silent_first


def plan(
    method: str,
    prune: Prune | None,
    quantize: Quantize | None,
    calibration: Calibration,
    try_step: Callable[[], Trial],
) -> Plan:
    """The plan for these settings.

    Args:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: as given.
        quantize: as given.
        calibration: as given.
        try_step: tries a step of tuning; what stands in its way counts only where tuning would be the default.
    """
    notes = ignored(method, prune, calibration)
    steps, as_needed = calibration.tuning, calibration.tuning is None
    if steps is None:
        steps = steps_for(method, prune, quantize)
        trial = try_step() if steps else Trial()
        if trial.reason:
            steps, notes["tuning"] = 0, f"not tuned: {trial.reason}"
        calibration = replace(calibration, tuning=steps)
    else:
        trial = try_step() if steps and method in SECOND_ORDER else Trial()
    steps = steps if method in SECOND_ORDER else 0
    if prune is not None:
        prune = filled(prune, steps)
    recipe = Recipe(method, prune, quantize, calibration.damping)
    return Plan(phases(recipe, steps > 0, as_needed), prune, calibration, notes, as_needed, trial)


def ignored(method: str, prune: Prune | None, calibration: Calibration) -> dict[str, str]:
    """A note on settings that were given and are not used; {} if there are none.

    Args:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: as given.
        calibration: as given.

    >>> ignored("magnitude", Prune(0.5, rounds=2), Calibration(tuning=5))
    {'settings': 'method="magnitude" does not use rounds=2, tuning=5'}
    """
    reasons = []
    if method not in SECOND_ORDER:
        unused = _given(prune, Prune(0.0), ("solver", "rescale", "silent_first", "rounds"))
        unused += _given(calibration, Calibration(), ("order", "align", "tuning"))
        reasons += [f'method="{method}" does not use {", ".join(unused)}'] if unused else []
    if prune is not None and parse_pattern(prune.pattern).kind == "n:m" and prune.allocation != "lamp":
        reasons.append(f"pattern={prune.pattern!r} gives every layer its zeros and does not use allocation")
    if calibration.order == "one-shot" and (unused := _given(calibration, Calibration(), ("alpha",))):
        reasons.append(f'order="one-shot" does not use {unused[0]}')
    return {"settings": "; ".join(reasons)} if reasons else {}


def given_statistics(todo: Plan) -> dict[str, str]:
    """A note that statistics were given to a compression, and what it does with them."""
    sequential = todo.second_order and todo.calibration.order == "sequential"
    use = ', and serve budgets alone: order="sequential" gathers those of each layer anew' if sequential else ""
    return {"statistics": f"were given{use}"}


def _given(settings: Any, default: Any, names: tuple[str, ...]) -> list[str]:
    """Those of the settings that are not as they are by default, as they were written."""
    chosen = [] if settings is None else [(name, getattr(settings, name)) for name in names]
    return [f"{name}={value!r}" for name, value in chosen if value and value != getattr(default, name)]


def steps_for(method: str, prune: Prune | None, quantize: Quantize | None) -> int:
    """How many steps of tuning a compression takes that does not say; 0 for baselines and where nothing gains.

    Args:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: as given.
        quantize: as given.
    """
    if method != "sbc" or (prune is not None and not prune.refit):
        return 0
    if prune is not None and prune.sparsity > 0:
        return TUNING_STEPS
    return SCALE_STEPS if quantize is not None and quantize.bits < FINE and scales_move(quantize) else 0


def filled(prune: Prune, steps: int) -> Prune:
    """``prune`` with what it leaves open, given the steps of tuning that follow."""
    single = steps > 0 and prune.pattern == "unstructured"
    return replace(
        prune,
        rounds=prune.rounds or 1,
        silent_first=single if prune.silent_first is None else prune.silent_first,
    )


def phases(recipe: Recipe, tuning: bool, as_needed: bool = False) -> tuple[Phase, ...]:
    """What to do one after the other.

    With tuning, pruned weights are tuned before they are quantised, in a phase of its own. Layers that share bits are
    quantised in a phase of its own as well, because what a grid costs a layer is known once the layer is pruned.

    Args:
        recipe: of the whole plan.
        tuning: whether anything is tuned.
        as_needed: leave out what brings nothing: scales of fine grids.
    """
    prune, quantize = recipe.prune, recipe.quantize
    if prune is None:
        return (Phase((recipe,), tuning),)
    apart = quantize is not None and (tuning or quantize.allocation == "loss")
    pruned = replace(recipe, quantize=None) if apart else recipe
    first = Phase(rounds(pruned, prune.rounds or 1), tuning)
    if quantize is None or not apart:
        return (first,)
    movable = tuning and scales_move(quantize)
    spared = movable and as_needed and quantize.bits >= FINE
    return first, Phase((without_pruning(recipe),), movable and not spared, spared)


def rounds(recipe: Recipe, count: int) -> tuple[Recipe, ...]:
    """Rounds of pruning: each leaves half of the weights that the one before it left; the last one is the recipe.

    Rounds that would keep all weights are left out, and baselines take one round.
    """
    prune = recipe.prune
    assert prune is not None
    earlier: list[Recipe] = []
    kept = 2 * (1 - prune.sparsity)
    while kept < 1 and len(earlier) < count - 1 and recipe.method in SECOND_ORDER:
        earlier.insert(0, replace(recipe, prune=replace(prune, sparsity=1 - kept), quantize=None))
        kept *= 2
    return (*earlier, recipe)


def scales_move(quantize: Quantize) -> bool:
    """Whether tuning can move the grid's scales; powers of two have to stay."""
    return quantize.scale != "power_of_two"
