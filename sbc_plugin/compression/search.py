"""``search``: the most compressed network that loses no more than is allowed."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sbc_plugin.compression.compress import compress
from sbc_plugin.compression.narrowing import CLOSE, Narrowing, Tried
from sbc_plugin.compression.run import HOPELESS
from sbc_plugin.compression.series import Evaluate, Series, number_of
from sbc_plugin.compression.sharing import sharing
from sbc_plugin.core.paired import halves
from sbc_plugin.errors import BudgetError, CalibrationError, SettingsError, ToleranceError
from sbc_plugin.evaluation.answers import Check
from sbc_plugin.evaluation.judging import Judge, Judged
from sbc_plugin.evaluation.points import POINTS, SCORE, Point, compared, point
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.search_report import SearchReport

# Rungs of equal factors in the weights that stay, from 0.96 down to 0.0082 of them; halving them seven times is exact.
SPARSITIES = tuple(round(1 - 2 ** (-7 * rung / 128), 4) for rung in range(1, 128))
BITS = (8, 7, 6, 5, 4, 3, 2)
FACTORS = tuple(round(2 ** (1 + 7 * rung / 64), 2) for rung in range(63))  # in size, from 2 to 220
LADDERS = {"sparsity": SPARSITIES, "bits": BITS, "size": FACTORS}
# Where the solvers alone end, tuning led a quarter further in weights: the median of the networks of the benchmark's
# development half, at 2 points lost (docs/results.md).
STRETCH = {"sparsity": 8, "bits": 1, "size": 4}


def search(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    test_data: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 1.0,
    over: str = "sparsity",
    **compress_arguments: Any,
) -> tuple[nn.Module, SearchReport]:
    """The most compressed network that loses no more than ``max_drop``, from one calibration.

    A network is accepted where the drop that was measured is at most ``max_drop``. Networks that the solvers alone make
    narrow the choice; then two or three are tuned as ``compress`` does by default, the first of them beyond where the
    solvers alone end; more only where none is accepted. With test data, one half of it, with every class in it, decides
    this, and the other half, which decides nothing, checks the network that was chosen. So the interval of the check is
    not biased by the choice: in about 95 of 100 searches it holds the drop on all data of the kind. What was measured
    in the search is biased, since networks that look good by chance are chosen.

    Args:
        model: a trained spiking network; it stays as it is.
        calibration_data: as for ``compress``.
        test_data: batches with labels that nothing was fitted to, the same and in the same order at each pass; an
            iterator is kept in memory.
        evaluate: in the place of ``test_data``: ``evaluate(model)`` returns a number of which more is better. It tells
            nothing about single sequences, so there are no intervals and there is no check.
        max_drop: the tolerance, in points of accuracy (1.0 is a hundredth of the sequences); in the unit of
            ``evaluate`` where that is given.
        over: what is searched: "sparsity", from 0.037 to 0.992 (0.4 points apart at 0.9); "bits", from 8 down to 2; or
            "size", from 2 to 220 times smaller (8 % apart): zeros and bits of each layer as ``Budget(factor=...)``.
        **compress_arguments: of ``compress``, for every network; the sparsity of ``prune``, or the bits of
            ``quantize``, are replaced by those of the search. With "size", ``budget`` may say what a chip allows; its
            total is replaced. ``Calibration(tuning=0)`` tunes no network, and a number of steps tunes the one that is
            delivered.

    Returns:
        The network that was chosen, and the report of all that were tried.

    Raises:
        ToleranceError: no network that was tried stays within the tolerance; its ``report`` has them.
        SettingsError: arguments that contradict each other, or that ``compress`` does not take.
        CalibrationError: test data without labels, or that changes; and as ``compress``.
        CompressionError: as ``compress``.
    """
    started = time.perf_counter()
    max_drop = number_of("max_drop", max_drop)
    if over not in LADDERS:
        raise SettingsError(f"over={over!r} cannot be searched; use {', '.join(map(repr, LADDERS))}")
    series = Series.of(model, calibration_data, compress_arguments, compress, sized=over == "size")
    make = {
        "sparsity": lambda value: series.budgets(value, None),
        "bits": lambda value: series.budgets(None, int(value)),
        "size": series.sized,
    }[over]
    ladder = [make(value) for value in LADDERS[over]]
    run = (compress_arguments.get("forward"), compress_arguments.get("batch_first"))
    judge = Judge(series.first, test_data, evaluate, *run)
    dense = judge(series.model)
    seen, held_back = (None, None) if judge.labels is None else halves(judge.labels)
    if held_back is not None and not held_back.any():
        raise CalibrationError("test_data holds one sequence; give at least two, of which one half is for the check")
    statistics = series.statistics()
    points: list[Point] = []
    best = _Best()

    def trial(rung: int, tuned: bool) -> Tried:
        try:
            small, report = series.made(ladder[rung], statistics, tuned)
        except BudgetError:  # no network is as small as that
            return Tried(math.inf)
        judged = judge(small)
        points.append(point(ladder[rung], dense, judged, report, seen))
        found = Tried(points[-1].drop, points[-1].steps, HOPELESS in report.skipped.get("tuning", ""))
        if found.drop <= max_drop + CLOSE and rung >= best.rung and (tuned or series.tuned != "always"):
            best.rung, best.point, best.made = rung, len(points) - 1, (small, report, judged)
        return found

    with sharing():
        Narrowing(len(ladder), max_drop, trial, STRETCH[over], series.tuned).run()
    found = SearchReport(
        over,
        max_drop,
        SCORE if seen is None else POINTS,
        point({}, dense, dense, None, seen),
        points,
        0 if seen is None else int(seen.sum()),
    )
    if best.made is None:
        error = ToleranceError(f"{found.answer}; allow more, give more calibration data, or search over something else")
        error.report = replace(found, seconds=time.perf_counter() - started)
        raise error
    small, report, judged = best.made
    check = None
    if held_back is not None:
        assert dense.right is not None and judged.right is not None  # of test data
        drop = compared(dense, judged, held_back)
        before, after = (float(each.right[held_back].double().mean()) for each in (dense, judged))  # type: ignore[index]
        check = Check(before, after, drop.sequences, drop.lost, drop.won)
    seconds = time.perf_counter() - started
    return small, replace(found, chosen=best.point, check=check, report=report, seconds=seconds)


@dataclass
class _Best:
    """The most compressed network that was accepted so far; of all others none is kept."""

    rung: int = -1
    point: int = -1
    made: tuple[nn.Module, Report, Judged] | None = None
