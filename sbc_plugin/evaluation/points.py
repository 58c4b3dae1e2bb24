"""A compressed network as a point of a search or a sweep: what was asked for, how good it is, what it costs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbc_plugin.core.paired import PairedDrop
from sbc_plugin.evaluation.judging import Judged
from sbc_plugin.evaluation.report import Report
from sbc_plugin.settings import Budget, Prune, Quantize

POINTS, SCORE = "points", "score"  # units of a drop
HEADS = ["sparsity", "bits", "accuracy", "drop", "95 % interval", "kB", "operations", "steps", "seconds"]


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        sparsity: that was asked for; None without pruning.
        bits: that were asked for; None in floating point.
        accuracy: fraction of right answers; or what ``evaluate`` returned.
        drop: how much was lost, in points of accuracy (hundredths of all sequences); or in the unit of ``evaluate``.
        low: lower end of the drop's 95 % interval; None with ``evaluate``, which tells nothing about single sequences.
        high: upper end.
        packed_bytes: of all weights.
        operations: synaptic operations a sequence, of the test data, or of the first calibration batch without.
        seconds: to compress; the calibration that points share is not in it.
        steps: of tuning that were taken.
        factor: by which the dense network's size was to be divided; None without such a budget.
    """

    sparsity: float | None
    bits: int | None
    accuracy: float
    drop: float
    low: float | None
    high: float | None
    packed_bytes: int
    operations: int
    seconds: float
    steps: int = 0
    factor: float | None = None

    def cells(self, unit: str) -> list[str]:
        """A row of the table whose heads are ``HEADS``."""
        sparsity = "-" if self.sparsity is None else f"{self.sparsity:.2%}"
        bits = "-" if self.bits is None else str(self.bits)
        percent = unit == POINTS
        accuracy, drop = (f"{self.accuracy:.2%}", f"{self.drop:.2f}") if percent else (
            f"{self.accuracy:.4g}", f"{self.drop:.4g}"
        )  # fmt: skip
        interval = "-" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"
        size = f"{self.packed_bytes / 1000:,.1f}"
        cost = [size, f"{self.operations:,}", str(self.steps), f"{self.seconds:.1f}"]
        return [sparsity, bits, accuracy, drop, interval, *cost]


def point(
    given: dict[str, Any], dense: Judged, judged: Judged, report: Report | None = None, chosen: Tensor | None = None
) -> Point:
    """The point of a network.

    Args:
        given: arguments of ``compress``, of which ``prune``, ``quantize`` and ``budget`` count; {} for the dense
            network.
        dense: the dense network.
        judged: the compressed one.
        report: of the call of ``compress``; None for the dense network.
        chosen: (N,) the sequences that count; None for all.
    """
    prune, quantize, budget = given.get("prune"), given.get("quantize"), given.get("budget")
    sparsity = float(prune.sparsity) if isinstance(prune, Prune) else None
    bits = int(quantize.bits) if isinstance(quantize, Quantize) else None
    factor = float(budget.factor or 0) if isinstance(budget, Budget) else None
    operations = judged.cost.operations.acs + judged.cost.operations.macs
    seconds, steps = (0.0, 0) if report is None else (report.seconds, sum(report.steps))
    cost = judged.cost.packed_bytes, operations, seconds, steps, factor
    if dense.right is None or judged.right is None:
        return Point(sparsity, bits, judged.score, dense.score - judged.score, None, None, *cost)
    found = compared(dense, judged, chosen)
    accuracy = judged.right if chosen is None else judged.right[chosen]
    return Point(
        sparsity, bits, float(accuracy.double().mean()), 100 * found.drop, 100 * found.low, 100 * found.high, *cost
    )


def compared(dense: Judged, judged: Judged, chosen: Tensor | None = None) -> PairedDrop:
    """The drop between two networks on some sequences (N,), or on all."""
    assert dense.right is not None and judged.right is not None  # of test data
    if chosen is None:
        return PairedDrop.of(dense.right, judged.right)
    return PairedDrop.of(dense.right[chosen], judged.right[chosen])
