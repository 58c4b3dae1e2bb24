"""``search``: the most compressed network that loses no more than is allowed."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from sbc_plugin.compression.compress import compress
from sbc_plugin.compression.series import Evaluate, Series, number_of
from sbc_plugin.core.paired import halves
from sbc_plugin.errors import CalibrationError, SettingsError, ToleranceError
from sbc_plugin.evaluation.answers import Check
from sbc_plugin.evaluation.judging import Judge, Judged
from sbc_plugin.evaluation.points import POINTS, SCORE, Point, compared, point
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.search_report import SearchReport

OVER = ("sparsity", "bits")
# Rungs of equal factors in the weights that stay, from 0.96 down to 0.0082 of them; halving them seven times is exact.
SPARSITIES = tuple(round(1 - 2 ** (-7 * rung / 128), 4) for rung in range(1, 128))
BITS = (8, 7, 6, 5, 4, 3, 2)


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
    """The most compressed network that loses no more than ``max_drop``, found by bisection from one calibration.

    A point is accepted where the drop that was measured is at most ``max_drop``. With test data, one half of it, with
    every class in it, decides this, and the other half, which decides nothing, checks the point that was chosen. So the
    interval of the check is not biased by the choice: in about 95 of 100 searches it holds the drop on all data of the
    kind. What was measured in the search is biased, since points that look good by chance are chosen.

    Args:
        model: a trained spiking network; it stays as it is.
        calibration_data: as for ``compress``.
        test_data: batches with labels that nothing was fitted to, the same and in the same order at each pass; an
            iterator is kept in memory.
        evaluate: in the place of ``test_data``: ``evaluate(model)`` returns a number of which more is better. It tells
            nothing about single sequences, so there are no intervals and there is no check.
        max_drop: the tolerance, in points of accuracy (1.0 is a hundredth of the sequences); in the unit of
            ``evaluate`` where that is given.
        over: what is searched: "sparsity", at most 7 networks from 0.037 to 0.992 (0.4 points apart at 0.9); or "bits",
            at most 3 networks from 8 bits down to 2.
        **compress_arguments: of ``compress``, for every network; the sparsity of ``prune``, or the bits of
            ``quantize``, are replaced by those of the search.

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
    if over not in OVER:
        raise SettingsError(f"over={over!r} cannot be searched; use 'sparsity' or 'bits'")
    series = Series.of(model, calibration_data, compress_arguments, compress)
    ladder: list[dict[str, Any]] = [
        series.budgets(value if over == "sparsity" else None, int(value) if over == "bits" else None)
        for value in (SPARSITIES if over == "sparsity" else BITS)
    ]
    run = (compress_arguments.get("forward"), compress_arguments.get("batch_first"))
    judge = Judge(series.first, test_data, evaluate, *run)
    dense = judge(series.model)
    seen, held_back = (None, None) if judge.labels is None else halves(judge.labels)
    if held_back is not None and not held_back.any():
        raise CalibrationError("test_data holds one sequence; give at least two, of which one half is for the check")
    statistics = series.statistics()
    points: list[Point] = []
    best: tuple[int, nn.Module, Report, Judged] | None = None

    def accepted(rung: int) -> bool:
        nonlocal best
        small, report = series.made(ladder[rung], statistics)
        judged = judge(small)
        points.append(point(ladder[rung], dense, judged, report.seconds, seen))
        within = points[-1].drop <= max_drop + 1e-9
        if within:  # each that is accepted is more compressed than those before; only the last one is kept
            best = len(points) - 1, small, report, judged
        return within

    bisect(len(ladder), accepted)
    found = SearchReport(
        over,
        max_drop,
        SCORE if seen is None else POINTS,
        point({}, dense, dense, 0.0, seen),
        points,
        0 if seen is None else int(seen.sum()),
    )
    if best is None:
        error = ToleranceError(f"{found.answer}; allow more, give more calibration data, or search over something else")
        error.report = replace(found, seconds=time.perf_counter() - started)
        raise error
    chosen, small, report, judged = best
    check = None
    if held_back is not None:
        assert dense.right is not None and judged.right is not None  # of test data
        drop = compared(dense, judged, held_back)
        before, after = (float(each.right[held_back].double().mean()) for each in (dense, judged))  # type: ignore[index]
        check = Check(before, after, drop.sequences, drop.lost, drop.won)
    seconds = time.perf_counter() - started
    return small, replace(found, chosen=chosen, check=check, report=report, seconds=seconds)


def bisect(count: int, accepted: Callable[[int], bool]) -> int:
    """The last rung of a ladder that is accepted, where all before it are and none behind it is; -1 if none is.

    Args:
        count: of rungs.
        accepted: of a rung, from 0; asked at most once for each, and ``log2(count + 1)`` times at most.

    >>> bisect(7, lambda rung: rung <= 4)
    4
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if accepted(middle):
            low = middle
        else:
            high = middle
    return low
