"""Neuron states of a few bits, as chips hold them: v and i are rounded after every step, and what that costs shows.

Like everything that looks at a neuron's steps this goes through ``.activation``, so it is the same in step and in
sequence mode, is copied with the model, and can be taken back.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import check_batch, peek
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.core.quantization.fixed_point import FixedPoint, check_bits, fixed_point
from sbc_plugin.errors import CalibrationError, SettingsError, UnsupportedModelError
from sbc_plugin.evaluation.text import table
from sbc_plugin.layers import Forward
from sbc_plugin.norse.copying import copy_model
from sbc_plugin.norse.forward import default_forward
from sbc_plugin.norse.neurons import NEURONS, is_integrator, state_tensor
from sbc_plugin.norse.steps import Step, intercept_steps, seam_of

STATES = ("v", "i")
SCALES = ("mae", "absmax")
HALVINGS = 6  # of the step that holds everything: with more, nearly all values would saturate
STEPS = ("activation", "activation_sparse")


@dataclass(frozen=True)
class StateReport:
    """One state of one neuron module.

    Attributes:
        name: of the neuron, in the model.
        state: "v", the membrane after reset, or "i", the synaptic current after the step.
        low: smallest value that the calibration data caused before rounding, in the model's unit.
        high: largest value.
        step: of the grid, a power of two.
        saturated: fraction of the values, of all steps of the rounded model, that were beyond the grid.
    """

    name: str
    state: str
    low: float
    high: float
    step: float
    saturated: float


@dataclass(frozen=True)
class MembraneReport:
    """What was done to the neurons of a model.

    Attributes:
        bits: of each state, sign included.
        states: a row each.
        skipped: name -> reason, for states that stay in floating point.
    """

    bits: int
    states: list[StateReport]
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        """The table that people read."""
        rows = [
            [row.name, row.state, f"{row.low:.4g}", f"{row.high:.4g}", f"{row.step:g}", f"{row.saturated:.2%}"]
            for row in self.states
        ]
        lines = table(["neurons", "state", "from", "to", f"step, {self.bits} bits", "saturated"], rows)
        return "\n".join(lines + [f"note: {name}: {reason}" for name, reason in self.skipped.items()])


class RoundedStep:
    """A neuron's step after which v and i lie on their grids; an integrator sends the rounded v.

    Args:
        step: the neuron's own.
        grids: by the state's name.
        sends_membrane: the neuron's output is its v.
    """

    def __init__(self, step: Callable[..., Any], grids: dict[str, FixedPoint], sends_membrane: bool) -> None:
        self.step, self.grids, self.sends_membrane = step, grids, sends_membrane

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Tensor, Any]:
        """Step, then round."""
        output, state = self.step(*arguments, **named)
        return rounded(output, state, self.grids, self.sends_membrane)


def rounded(output: Tensor, state: Any, grids: dict[str, FixedPoint], sends_membrane: bool) -> tuple[Tensor, Any]:
    """Output and state of a step with v and i on their grids; states in states (LIFRefrac) too."""
    nested = hasattr(state, "lif")
    inner = state.lif if nested else state
    values = {name: grid.round(getattr(inner, name)) for name, grid in grids.items()}
    inner = inner._replace(**values)
    return values["v"] if sends_membrane else output, state._replace(lif=inner) if nested else inner


@autocast_off()
def quantize_membranes(
    model: nn.Module,
    bits: int,
    *,
    calibration_data: Iterable[Any],
    forward: Forward | None = None,
    scale: str = "mae",
    inplace: bool = False,
) -> tuple[nn.Module, MembraneReport]:
    """A model whose neurons keep v, and i where they have one, in signed fixed point of ``bits`` bits.

    Each state of each neuron module gets a power-of-two step of its own; what lies beyond the grid saturates. Rounding
    follows the neuron's whole step: the threshold is compared before it, and the reset has happened. Weights, inputs
    and time constants stay as they are. The rounding is simulated in floating point and is no part of ``state_dict``:
    apply it again after loading. No gradient passes it: train first.

    Args:
        model: a Norse model in step or sequence mode.
        bits: 2 to 24, sign included.
        calibration_data: iterable of batches, as for ``compress``; run three times ("absmax": twice).
        forward: ``forward(model, batch)`` runs one whole sequence; the default drives a step model over the first axis.
        scale: "absmax", the smallest step with which nothing saturates that the calibration data causes; or "mae", from
            there down to the least mean absolute error: inhibition reaches far below the threshold, seldom, and
            with few bits a step that holds all of it blurs what happens near the threshold.
        inplace: change ``model`` itself; otherwise it is not touched.

    Returns:
        The model, and ranges, steps and saturated fractions. :func:`sbc_plugin.compare` shows the spikes lost.

    Raises:
        SettingsError: bits or scale out of range, or states that are rounded already.
        CalibrationError: no data, or a state that became NaN or infinite: names neuron and state.
        UnsupportedModelError: no neuron with a membrane ran, or a model that cannot be copied.
    """
    check_bits(bits)
    if scale not in SCALES:
        raise SettingsError(f"scale={scale!r} is unknown; use one of {', '.join(map(repr, SCALES))}")
    neurons = _neurons(model)
    if not neurons:
        raise UnsupportedModelError(f"{type(model).__name__} holds no spiking neuron of Norse; nothing to round")
    for name, neuron in neurons:
        if isinstance(vars(neuron).get(seam_of(neuron)), RoundedStep):
            raise SettingsError(f"neuron {name!r} has rounded states already; call restore_membranes(model) first")
    first, data = peek(calibration_data)
    run = forward or default_forward(model, first)
    data = list(data) if isinstance(data, Iterator) else data
    ranges, skipped = _ranges(model, data, run)
    grids: dict[str, dict[str, FixedPoint]] = {}
    for (name, state), (low, high) in ranges.items():
        grids.setdefault(name, {})[state] = fixed_point(low, high, bits)
    if not grids:
        raise UnsupportedModelError(f"no neuron of {type(model).__name__} that ran has a membrane; nothing to round")
    if scale == "mae":
        grids = _least_error(model, data, run, grids)
    shares = _saturated(model, data, run, grids)
    target = model if inplace else copy_model(model)
    for name, neuron in _neurons(target):
        for attribute in _seams(neuron) if name in grids else ():
            step = getattr(neuron, attribute, None)
            if step is not None:
                setattr(neuron, attribute, RoundedStep(step, grids[name], is_integrator(neuron)))
    rows = [
        StateReport(name, state, low, high, grids[name][state].step, shares[name, state])
        for (name, state), (low, high) in ranges.items()
    ]
    return target, MembraneReport(bits, rows, skipped)


def restore_membranes(model: nn.Module) -> nn.Module:
    """The same model, changed in place, with floating-point states again; without rounded states nothing changes."""
    for _, neuron in _neurons(model):
        for attribute in _seams(neuron):
            step = getattr(neuron, attribute, None)
            if isinstance(step, RoundedStep):
                setattr(neuron, attribute, step.step)
    return model


def _seams(neuron: nn.Module) -> tuple[str, ...]:
    return STEPS if seam_of(neuron) == "activation" else ("forward",)


def _neurons(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, NEURONS)]


def _run(model: nn.Module, data: Iterable[Any], run: Forward, on_step: Callable[[Step], tuple[Tensor, Any]]) -> None:
    for number, batch in enumerate(data):
        check_batch(batch, number)
        with eval_mode(model), torch.no_grad(), intercept_steps(model, on_step):
            run(model, batch)


def _ranges(
    model: nn.Module, data: Iterable[Any], run: Forward
) -> tuple[dict[tuple[str, str], tuple[float, float]], dict[str, str]]:
    """Least and greatest value of each neuron's states, and what else its state holds."""
    ranges: dict[tuple[str, str], tuple[float, float]] = {}
    skipped = {name: "never ran on the calibration data" for name, _ in _neurons(model)}

    def on_step(step: Step) -> tuple[Tensor, Any]:
        output, state = step.run(step.x)
        skipped.pop(step.name, None)
        for kind in STATES:
            values = state_tensor(state, kind)
            if values is not None:
                least, most = (float(value) for value in values.aminmax())
                if not (math.isfinite(least) and math.isfinite(most)):
                    reached = f"its state {kind} reached {least:g} to {most:g}"
                    raise CalibrationError(f"neuron {step.name!r}: {reached}; repair the model or the calibration data")
                low, high = ranges.get((step.name, kind), (least, most))
                ranges[step.name, kind] = (min(low, least), max(high, most))
        for other in _fields(state) - {*STATES, "z"}:
            skipped[f"{step.name}.{other}"] = "stays in floating point: only v and i are rounded"
        return output, state

    _run(model, data, run, on_step)
    return ranges, skipped


def _fields(state: Any) -> set[str]:
    names = set(getattr(state, "_fields", ()))
    return names - {"lif"} | _fields(state.lif) if "lif" in names else names


def _values(state: Any, kind: str) -> Tensor:
    """The state that a grid was made for."""
    values = state_tensor(state, kind)
    assert values is not None
    return values


def _least_error(
    model: nn.Module, data: Iterable[Any], run: Forward, grids: dict[str, dict[str, FixedPoint]]
) -> dict[str, dict[str, FixedPoint]]:
    """The grids with steps halved until the mean absolute error of the exact run's states is least."""
    errors: dict[tuple[str, str], list[float]] = {}

    def candidates(grid: FixedPoint) -> list[FixedPoint]:
        return [replace(grid, step=grid.step / 2**halvings) for halvings in range(HALVINGS + 1)]

    def on_step(step: Step) -> tuple[Tensor, Any]:
        output, state = step.run(step.x)
        for kind, grid in grids.get(step.name, {}).items():
            values = _values(state, kind)
            sums = errors.setdefault((step.name, kind), [0.0] * (HALVINGS + 1))
            for index, finer in enumerate(candidates(grid)):
                sums[index] += float((finer.round(values) - values).abs().sum(dtype=torch.float64))
        return output, state

    _run(model, data, run, on_step)
    chosen: dict[str, dict[str, FixedPoint]] = {}
    for (name, kind), sums in errors.items():
        chosen.setdefault(name, {})[kind] = candidates(grids[name][kind])[sums.index(min(sums))]
    return chosen


def _saturated(
    model: nn.Module, data: Iterable[Any], run: Forward, grids: dict[str, dict[str, FixedPoint]]
) -> dict[tuple[str, str], float]:
    """The fraction of each state's values that rounding cuts off, in a run in which all states are rounded."""
    counts: dict[tuple[str, str], list[int]] = {}

    def on_step(step: Step) -> tuple[Tensor, Any]:
        output, state = step.run(step.x)
        mine = grids.get(step.name, {})
        for kind, grid in mine.items():
            values = _values(state, kind)
            count = counts.setdefault((step.name, kind), [0, 0])
            count[0] += int(grid.saturated(values).sum())
            count[1] += values.numel()
        return rounded(output, state, mine, is_integrator(step.neuron)) if mine else (output, state)

    _run(model, data, run, on_step)
    return {key: beyond / seen for key, (beyond, seen) in counts.items()}
