"""What a compression is going to do, as data: everything that settings leave open (``None``) is filled in here, once.

What is filled in is the combination that kept most accuracy in docs/results.md: weights of silent neurons go first, and
label-free tuning follows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sbc_plugin.compression.layer import LayerSettings
from sbc_plugin.compression.trial import Trial
from sbc_plugin.core.pruning.patterns import parse_pattern
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.report import joined
from sbc_plugin.settings import SECOND_ORDER, TUNING_STEPS, Budget, Calibration, Prune, Quantize

SCALE_STEPS = 100  # of tuning, where only scales can move
FINE = 4  # bits from which on tuned scales bring nothing


@dataclass(frozen=True)
class Phase:
    """A part of a compression.

    Attributes:
        stages: one after the other: the settings of each layer, by name.
        tune: whether weights or scales are tuned after the last stage.
        spared: whether scales could be tuned, which is left out because it brings nothing.
    """

    stages: tuple[Mapping[str, LayerSettings], ...]
    tune: bool = False
    spared: bool = False

    @property
    def moves_weights(self) -> bool:
        """Whether tuning moves weights; of layers that a phase quantises it moves scales."""
        return any(own.quantize is None for own in self.stages[-1].values())


@dataclass(frozen=True)
class Plan:
    """All that is to be done to a model.

    Attributes:
        phases: one after the other.
        layers: by name, the settings of each layer over all phases, with everything filled in.
        calibration: settings with everything filled in.
        notes: name -> reason, for what is left out.
        as_needed: whether tuning is left out where hardly any accuracy is expected to be lost, or it takes too long.
        trial: of a step of tuning.
        budget: that zeros and bits are chosen under; None where they are given.
        uncounted: names of weights that no budget counts.
    """

    phases: tuple[Phase, ...]
    layers: Mapping[str, LayerSettings]
    calibration: Calibration
    notes: dict[str, str] = field(default_factory=dict)
    as_needed: bool = False
    trial: Trial = field(default_factory=Trial)
    budget: Budget | None = None
    uncounted: frozenset[str] = frozenset()

    @property
    def steps(self) -> int:
        """Of tuning, the most that a phase takes."""
        return max(map(self.steps_of, range(len(self.phases))))

    def steps_of(self, phase: int) -> int:
        """Of tuning in the phase of this number, counted from 0."""
        steps = self.calibration.tuning if self.second_order else 0
        return steps[phase] if isinstance(steps, tuple) else steps or 0

    def filled(self, prune: Prune | None) -> Prune | None:
        """``prune`` with what it leaves open as this plan fills it in."""
        return None if prune is None else filled(prune, self.steps)

    def reproducing(self, taken: tuple[int, ...]) -> int | tuple[int, int] | None:
        """``Calibration.tuning`` of a call with the same phases and steps as this one, whose phases took so many."""
        if not taken:
            return self.calibration.tuning
        if self.budget is not None and self.as_needed:
            return None  # what a budget chooses also depends on whether tuning may follow
        return taken[0] if len(self.phases) == 1 else (taken[0], sum(taken[1:]))

    @property
    def aligns(self) -> bool:
        """Whether biases and BatchNorms follow each stage."""
        return self.second_order and self.calibration.align

    @property
    def second_order(self) -> bool:
        """Whether solvers use Hessians."""
        return any(own.second_order for own in self.layers.values())

    @property
    def _silent_first(self) -> bool:
        return any(own.silent_first for own in self.layers.values())

    @property
    def reads_data_again(self) -> bool:
        """Whether calibration data is run through more than once."""
        stages = sum(len(phase.stages) for phase in self.phases)
        sequential = self.second_order and self.calibration.order == "sequential"
        return stages > 1 or sequential or self.steps > 0 or self.aligns or self._silent_first or bool(self.budget)


def plan(
    method: str,
    layers: Mapping[str, LayerSettings],
    calibration: Calibration,
    try_step: Callable[[], Trial],
    budget: Budget | None = None,
) -> Plan:
    """The plan for these settings.

    Args:
        method: "sbc", "obc", "magnitude" or "rtn".
        layers: the settings of each layer, by name, as given.
        calibration: as given.
        try_step: tries a step of tuning; what stands in its way counts only where tuning would be the default.
        budget: under which zeros and bits are chosen, up to those of ``layers``.

    Raises:
        SettingsError: steps of tuning for two phases, and there is one.
    """
    notes: dict[str, str] = {}
    for prune in dict.fromkeys(own.prune for own in layers.values()):
        notes = joined(notes, ignored(method, prune, calibration))
    steps, as_needed = calibration.tuning, calibration.tuning is None
    if steps is None:
        steps = max(steps_for(method, own.prune, own.quantize) for own in layers.values())
        trial = try_step() if steps else Trial()
        if trial.reason:
            steps, notes["tuning"] = 0, f"not tuned: {trial.reason}"
        calibration = replace(calibration, tuning=steps)
    else:
        trial = try_step() if _any(steps) and method in SECOND_ORDER else Trial()
    apart = isinstance(steps, tuple)
    if method not in SECOND_ORDER:
        steps, apart = 0, False
    layers = {
        name: own if own.prune is None else replace(own, prune=filled(own.prune, _any(steps)))
        for name, own in layers.items()
    }
    tuning = apart or _any(steps) > 0
    found = phases(layers, tuning, as_needed) if budget is None else phases_within(layers, tuning)
    if apart and len(found) == 1:
        raise SettingsError(
            f"tuning={steps!r} are the steps after pruning and those after quantisation, and this call has one phase; "
            "give one number"
        )
    return Plan(found, layers, calibration, notes, as_needed, trial, budget)


def _any(steps: int | tuple[int, int]) -> int:
    """The most steps of a phase."""
    return max(steps) if isinstance(steps, tuple) else steps


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
    use = (
        'serve budgets alone: order="sequential" gathers those of each layer anew'
        if sequential
        else "hold for all layers"
    )
    return {"statistics": f"were given, and {use}"}


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


def phases(layers: Mapping[str, LayerSettings], tuning: bool, as_needed: bool = False) -> tuple[Phase, ...]:
    """What to do one after the other.

    With tuning, pruned weights are tuned before they are quantised, in a phase of its own. Layers that share bits are
    quantised in a phase of its own as well, because what a grid costs a layer is known once the layer is pruned.

    Args:
        layers: the settings of each layer, by name.
        tuning: whether anything is tuned.
        as_needed: leave out what brings nothing: scales of fine grids.
    """
    grids = [own.quantize for own in layers.values() if own.quantize is not None]
    apart = {name for name, own in layers.items() if own.prune and own.quantize and _is_apart(own.quantize, tuning)}
    if not apart and not (tuning and grids and any(own.prune for own in layers.values())):
        return (Phase(_in_rounds(layers), tuning),)
    later = {name for name, own in layers.items() if tuning or not own.prune} | apart
    first = {name: replace(own, quantize=None) if name in later else own for name, own in layers.items()}
    second = {
        name: replace(own, prune=None, quantize=own.quantize if name in later else None) for name, own in layers.items()
    }
    movable = [grid for grid in grids if tuning and scales_move(grid)]
    tune = any(grid.bits < FINE for grid in movable) if as_needed else bool(movable)
    return Phase(_in_rounds(first), tuning), Phase((second,), tune, bool(movable) and not tune)


def phases_within(layers: Mapping[str, LayerSettings], tuning: bool) -> tuple[Phase, ...]:
    """What to do under a budget: weights go and are tuned; then all layers are quantised, and coarse scales tuned.

    Args:
        layers: the settings of each layer, by name, with the fewest bits that the budget allows.
        tuning: whether anything is tuned.
    """
    first = {name: replace(own, quantize=None) for name, own in layers.items()}
    second = {name: replace(own, prune=None) for name, own in layers.items()}
    grids = [own.quantize for own in layers.values() if own.quantize is not None]
    movable = tuning and any(scales_move(grid) and grid.bits < FINE for grid in grids)
    return Phase((first,), tuning), Phase((second,), movable)


def _is_apart(quantize: Quantize, tuning: bool) -> bool:
    """Whether a layer that is pruned is quantised in a phase of its own."""
    return tuning or quantize.allocation == "loss"


def _in_rounds(layers: Mapping[str, LayerSettings]) -> tuple[Mapping[str, LayerSettings], ...]:
    """The stages of all layers, whose last ones are one stage; a layer of fewer rounds is idle in those before."""
    each = {
        name: rounds(own, own.prune.rounds or 1) if own.prune is not None else (own,) for name, own in layers.items()
    }
    count = max(map(len, each.values()))
    idle = {name: (replace(own, prune=None, quantize=None),) for name, own in layers.items()}
    each = {name: idle[name] * (count - len(own)) + own for name, own in each.items()}
    return tuple({name: own[stage] for name, own in each.items()} for stage in range(count))


def rounds(settings: LayerSettings, count: int) -> tuple[LayerSettings, ...]:
    """Rounds of pruning: each leaves half of the weights that the one before it left; the last one is as given.

    Rounds that would keep all weights are left out, and baselines take one round.
    """
    prune = settings.prune
    assert prune is not None
    earlier: list[LayerSettings] = []
    kept = 2 * (1 - prune.sparsity)
    while kept < 1 and len(earlier) < count - 1 and settings.method in SECOND_ORDER:
        earlier.insert(0, replace(settings, prune=replace(prune, sparsity=1 - kept), quantize=None))
        kept *= 2
    return (*earlier, settings)


def scales_move(quantize: Quantize) -> bool:
    """Whether tuning can move the grid's scales; powers of two have to stay."""
    return quantize.scale != "power_of_two"
