"""``sweep``: all combinations of sparsities and bits, measured alike, in a table that an interruption does not end."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from torch import nn

from sbc_plugin.calibration.fingerprint import digest, of_model
from sbc_plugin.checkpoint.atomic import check_target
from sbc_plugin.compression.compress import compress
from sbc_plugin.compression.series import Evaluate, Series
from sbc_plugin.compression.sharing import sharing
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.judging import Judge
from sbc_plugin.evaluation.points import POINTS, SCORE, Point, point
from sbc_plugin.evaluation.sweep_table import SweepFile, SweepTable

LEFT_OUT = ("progress", "forward", "statistics")  # of what decides the numbers: functions are told by their names


def sweep(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    sparsities: Sequence[float] = (),
    bits: Sequence[int] = (),
    test_data: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    path: str | PathLike[str] | None = None,
    **compress_arguments: Any,
) -> SweepTable:
    """Compress to every combination of sparsities and bits from one calibration, and measure each.

    Args:
        model: a trained spiking network; it stays as it is.
        calibration_data: as for ``compress``.
        sparsities: of pruning; none leaves it to ``prune``.
        bits: of quantisation; none leaves it to ``quantize``.
        test_data: batches with labels that nothing was fitted to, the same and in the same order at each pass.
        evaluate: in the place of ``test_data``: ``evaluate(model)`` returns a number of which more is better.
        path: of a file of JSON lines, to which each row is added when it is there. What it holds of the same model,
            data and settings is not computed again; a function counts by its name. ``pandas.read_json(path,
            lines=True)`` reads it.
        **compress_arguments: of ``compress``, for every network.

    Returns:
        The dense network and all others, as a table.

    Raises:
        SettingsError: no sparsities and no bits, values out of range, or arguments that ``compress`` does not take.
        CheckpointError: the file holds something else, or cannot be written.
        CalibrationError: test data without labels, or that changes; and as ``compress``.
        CompressionError: as ``compress``.
    """
    try:
        sparsities, bits = tuple(sparsities), tuple(bits)
    except TypeError as error:
        raise SettingsError(f"sparsities={sparsities!r} and bits={bits!r} have to be lists of numbers") from error
    if not sparsities and not bits:
        raise SettingsError("nothing to sweep: give sparsities=(0.5, 0.9), bits=(2, 4, 8), or both")
    series = Series.of(model, calibration_data, compress_arguments, compress)
    pairs = dict.fromkeys((zeros, width) for zeros in (sparsities or (None,)) for width in (bits or (None,)))
    todo = [series.budgets(zeros, width) for zeros, width in pairs]
    judge = Judge(
        series.first, test_data, evaluate, compress_arguments.get("forward"), compress_arguments.get("batch_first")
    )
    table = None
    if path is not None:
        table = SweepFile(check_target(path), _checksum(series, next(iter(judge.data)), evaluate))
    dense, statistics = judge(series.model), None
    rows = [_kept(table, point({}, dense, dense))]
    with sharing():
        for budgets in todo:
            key = point(budgets, dense, dense)
            if table is not None and (key.sparsity, key.bits) in table.known:
                rows.append(table.known[key.sparsity, key.bits])
                continue
            statistics = series.statistics() if statistics is None else statistics
            small, report = series.made(budgets, statistics)
            rows.append(_kept(table, point(budgets, dense, judge(small), report)))
    return SweepTable(SCORE if judge.labels is None else POINTS, rows[0], rows[1:])


def _kept(table: SweepFile | None, row: Point) -> Point:
    """The row, which is in the file from now on."""
    if table is not None and (row.sparsity, row.bits) not in table.known:
        table.add(row)
    return row


def _checksum(series: Series, example: Any, evaluate: Evaluate | None) -> str:
    """Tells one sweep from another: the model, the first batches, and all settings but for sparsity and bits."""
    functions = [evaluate, series.arguments.get("forward")]
    names = [f"{each.__module__}.{getattr(each, '__qualname__', '')}" for each in functions if each is not None]
    settings = {name: repr(value) for name, value in series.arguments.items() if name not in LEFT_OUT}
    return digest([of_model(series.model), digest(series.first), digest(example), settings, names])
