"""What ``compress`` would do to a model, before it does: layers and kernels, what is left out, memory and time."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import DEFAULT, gather
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.core.pruning.prune import SMALL
from sbc_plugin.evaluation.report import table
from sbc_plugin.evaluation.text import printable
from sbc_plugin.layers import Forward, SpikingLayer

COPIES = 4  # of one Hessian that a solver holds: undamped, damped, inverse, factor
# What pruning to 90 % and quantising together took on layers of 50 to 2,312 inputs: seconds a column, of Python around
# small tensors; then multiplications and additions, at the speed of a product of matrices
LOOPS = 6e-4
ELIMINATING = 3  # times rows * columns^3: exact OBS, which "auto" takes up to SMALL
SHARING, ROWS = 18, 5  # times columns^3 and rows * columns^2: ADMM and what follows, above
ROUNDING = 7  # times columns^3: GPTQ with the search of scales, and descent
PROBE = 512  # columns of the matrices with which this machine's speed is measured


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
        seconds: to prune and quantise it, estimated.
    """

    name: str
    kind: str
    rows: int
    columns: int
    kernel: str
    hessians: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Inspection:
    """What ``compress`` would do.

    Attributes:
        layers: a row each, in the order in which they run.
        skipped: name -> reason, for what would be left alone or approximated.
        memory: bytes that all Hessians and the largest layer's solver take, estimated.
        seconds: of calibration and of all solvers, estimated; None where nothing says how much data there is.
    """

    layers: list[LayerPlan]
    skipped: dict[str, str]
    memory: int
    seconds: float | None

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

    Time is measured where it can be: one batch is calibrated, and the time of a matrix product shows the machine's
    speed. The figures are estimates for pruning and quantising with the default settings, good to a factor of about
    three: one of both is cheaper, N:M on a wide layer takes longer.

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
    speed = _products_per_second(layers[0].parts[0].tensor.device)
    plans = [_plan(layer, speed) for layer in layers]
    memory = sum(plan.memory for plan in plans) + max((COPIES * p.memory // p.hessians for p in plans), default=0)
    seconds = None
    if whole:
        started = time.perf_counter()
        gather(runner, layers, [first], DEFAULT)
        batch = (time.perf_counter() - started) / max(runner.sequences(first), 1)
        sequences = sum(runner.sequences(batch) for batch in data)
        seconds = batch * sequences + sum(plan.seconds for plan in plans)
    return Inspection(plans, skipped, memory, seconds)


def _plan(layer: SpikingLayer, speed: float) -> LayerPlan:
    hessians = layer.hessians or 1
    cube = layer.columns**3
    if layer.rows * cube <= SMALL:
        work = ELIMINATING * layer.rows * cube
    else:
        work = SHARING * hessians * cube + ROWS * layer.rows * layer.columns**2
    work += ROUNDING * hessians * cube
    return LayerPlan(
        name=layer.name,
        kind=layer.kind,
        rows=layer.rows,
        columns=layer.columns,
        kernel=described(layer.kernel),
        hessians=hessians,
        memory=8 * hessians * layer.columns**2,
        seconds=LOOPS * layer.columns + work / speed,
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


def _products_per_second(device: torch.device) -> float:
    """Multiplications and additions of a matrix product in float64, of which solvers are made."""
    matrix = torch.ones(PROBE, PROBE, dtype=torch.float64, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits until the product is there
        best = min(best, time.perf_counter() - started)
    return PROBE**3 / best
