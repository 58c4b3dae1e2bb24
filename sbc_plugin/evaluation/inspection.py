"""What ``compress`` would do to a model, before it does: layers and kernels, what is left out, memory and time."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.counting import affordable, one_shot_seconds
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import DEFAULT, gather
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.core.costs import solver_memory, solver_products
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.evaluation.estimates import products_per_second, solver_seconds, tuning_step
from sbc_plugin.evaluation.text import printable, table
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import TUNING_STEPS

# What compress does by default when it prunes and quantises: it gathers Hessians before each, and runs about as often
# to see spikes and outputs.
GATHERED = 4
STEP_SECONDS = 5e-4  # of a step beside run and gradients: the optimiser, for each layer


@dataclass(frozen=True)
class LayerPlan:
    """One layer that would be compressed.

    Attributes:
        name: in the model.
        kind: of weight and neuron.
        rows: outputs.
        columns: inputs of one row.
        kernel: impulse response, and the time constants of its stages in time steps.
        hessians: how many the layer needs.
        memory: bytes of its Hessians while calibrating.
        seconds: to prune and quantise it once, estimated.
        solver: bytes that its solvers take beside the Hessians, estimated.
    """

    name: str
    kind: str
    rows: int
    columns: int
    kernel: str
    hessians: int
    memory: int
    seconds: float
    solver: int = 0


@dataclass(frozen=True)
class Inspection:
    """What ``compress`` would do.

    Attributes:
        layers: a row each, in the order in which they run.
        skipped: name -> reason, for what would be left alone or approximated.
        memory: bytes that all Hessians and the largest layer's solver take, or a step of tuning if that takes more,
            estimated.
        seconds: of the whole call, estimated; None where nothing says how much data there is.
        tuning: seconds of these that are tuning, which ``Calibration(tuning=0)`` leaves out; None where no gradient can
            be taken, so that there is no tuning, or ``seconds`` is None.
    """

    layers: list[LayerPlan]
    skipped: dict[str, str]
    memory: int
    seconds: float | None
    tuning: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        """The table that people read."""
        heads = ["layer", "kind", "weight", "kernel", "Hessians", "memory, MB", "seconds"]
        rows = [
            [
                layer.name,
                layer.kind,
                f"{layer.rows} x {layer.columns}",
                layer.kernel,
                str(layer.hessians),
                f"{layer.memory / 1e6:.1f}",
                f"{layer.seconds:.1f}",
            ]
            for layer in self.layers
        ]
        lines = table(heads, rows)
        weights = sum(layer.rows * layer.columns for layer in self.layers)
        lines.append(f"{len(self.layers)} layers, {weights:,} weights; about {self.memory / 1e6:,.0f} MB")
        if self.seconds is not None:
            lines[-1] += f" and {self.seconds:,.0f} s on this machine"
            if self.tuning is not None:
                lines[-1] += f", of which {self.tuning:,.0f} s are tuning (0 with tuning=0)"
        lines += [f"note: {printable(name)}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


@autocast_off()
def inspect(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    forward: Forward | None = None,
    whole: bool = True,
    batch_first: bool | None = None,
) -> Inspection:
    """Find what ``compress`` would find, and estimate what it would cost. Nothing is changed.

    Time is measured where it can be: one batch is calibrated, one step of tuning is tried, and the time of a matrix
    product shows the machine's speed. The figures are estimates for pruning and quantising with the default settings,
    good to a factor of about two; without tuning, or with N:M on a wide layer, they are others.

    Args:
        model: a trained spiking network of a known library.
        calibration_data: as for ``compress``; only the first batch runs, the others are counted.
        forward: ``forward(model, batch)`` runs one whole sequence.
        whole: the data is what ``compress`` would be given; False for a batch made up to look at the model.
        batch_first: as for ``compress``.

    Raises:
        CalibrationError: no data, or data that does not fit.
        UnsupportedModelError: a model, neuron or weight without a rule.
    """
    first, data = peek(calibration_data)
    runner = Runner.of(model, first, forward, batch_first)
    layers, skipped = runner.find_layers(first)
    skipped |= {layer.name: layer.note for layer in layers if layer.note}
    speed = products_per_second(layers[0].parts[0].tensor.device)
    plans = [_plan(layer, speed) for layer in layers]
    step = tuning_step(runner, layers, first)
    memory = sum(plan.memory for plan in plans) + max((plan.solver for plan in plans), default=0)
    memory = max(memory, 0 if step is None else step.memory)
    if not whole:
        return Inspection(plans, skipped, memory, None)
    started = time.perf_counter()
    seen = gather(runner, layers, [first], DEFAULT)
    batch, batches = time.perf_counter() - started, _batches_like(runner, first, data)
    tuning = None
    if step is not None:
        overview = {
            name: replace(
                each.overview,
                samples=round(batches * each.accumulator.count),
                sequences=round(batches * each.sequences),
            )
            for name, each in seen.items()
        }
        one_shot = one_shot_seconds(step.forward, layers, overview, step.sequences, solver_products)
        steps = affordable(TUNING_STEPS, step.cost, one_shot)
        tuning = steps * (step.seconds + STEP_SECONDS * len(layers))
    solving = sum(plan.seconds for plan in plans)
    passes = GATHERED if step is not None else 1
    seconds = passes * batch * batches + solving + (tuning or 0)
    return Inspection(plans, skipped, memory, seconds, tuning)


def _batches_like(runner: Runner, first: Any, data: Iterable[Any]) -> float:
    """How many batches as large as the first the data holds; where only the user's forward can tell, how many."""
    size = runner.sequences(first)
    return sum((runner.sequences(batch) / size if size else 1 for batch in data), 0.0)


def _plan(layer: SpikingLayer, speed: float) -> LayerPlan:
    hessians = layer.hessians or 1
    return LayerPlan(
        name=layer.name,
        kind=layer.kind,
        rows=layer.rows,
        columns=layer.columns,
        kernel=described(layer.kernel),
        hessians=hessians,
        memory=8 * hessians * layer.columns**2,
        seconds=solver_seconds(layer, speed),
        solver=solver_memory(layer.rows, layer.columns),
    )


def described(kernel: Kernel) -> str:
    """A kernel in words: its name, and for each decaying stage the time constant in steps, ``1 / (1 - decay)``.

    >>> from sbc_plugin.core.kernels import delta, lif_box
    >>> described(lif_box(0.25)), described(delta())
    ('lif_box, tau 4 steps', 'delta, M = I')
    """
    if kernel.is_identity:
        return f"{kernel.name}, M = I"
    stages = []
    for decay in kernel.decays:
        leak = 1 - decay.reshape(-1)
        if (leak > 0).all():
            low, high = (f"{1 / float(value):.3g}" for value in (leak.max(), leak.min()))
            stages.append(low if low == high else f"{low} to {high}")
    return kernel.name + (f", tau {' and '.join(stages)} steps" if stages else "")
