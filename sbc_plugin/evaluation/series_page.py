"""Searches and sweeps as pages that need no network: the answer, accuracy over cost, and a table of all points."""

from sbc_plugin.evaluation.evaluate import Evaluation
from sbc_plugin.evaluation.page import advice_list, document, html_table, sections, verdict_box
from sbc_plugin.evaluation.points import HEADS, Point
from sbc_plugin.evaluation.search_report import SearchReport
from sbc_plugin.evaluation.sweep_table import SweepTable

LINE = "<p>The line joins networks that no other one beats: each that costs less is less accurate.</p>"
COSTS = ("packed_bytes", "operations")


def search_page(found: SearchReport, evaluation: Evaluation | None = None, title: str = "Search") -> str:
    """The page of a search, and below it that of the network that was chosen; figures need matplotlib.

    Args:
        found: of ``search``.
        evaluation: of the network that was chosen.
        title: plain text.
    """
    missed = found.best is None or (found.check is not None and found.check.interval[0] > found.max_drop)
    parts = [verdict_box(f"{found.answer}.", missed), *advice_list(_advice(found, missed)), LINE, _figures(found)]
    parts += ["<h2>Networks that were tried</h2>", _table(found.dense, found.points, found.marks("tried"), found.unit)]
    if found.report is not None:
        parts += ["<h2>The network that was chosen</h2>", *sections(found.report, evaluation)]
    return document(title, parts)


def sweep_page(found: SweepTable, title: str = "Sweep") -> str:
    """The page of a sweep; figures need matplotlib.

    Args:
        found: of ``sweep``.
        title: plain text.
    """
    best = found.pareto()
    marks = ["best" if point in best else "other" for point in found.points]
    parts = [verdict_box(found.answer, False), LINE, _figures(found)]
    parts += ["<h2>All networks</h2>", _table(found.dense, found.points, marks, found.unit)]
    parts.append("<p>Best: no smaller network is as accurate.</p>")
    return document(title, parts)


def _advice(found: SearchReport, missed: bool) -> list[str]:
    """What to do next."""
    advice = [f"{found.noise[:1].upper()}{found.noise[1:]}."] if found.noise else []
    if missed:
        advice.append("Search again with more test data, or with a larger calibration set.")
    elif found.chosen is not None and all(point.drop <= found.max_drop for point in found.points):
        advice.append(
            "All networks that were tried stay within the tolerance: a stricter one, or both sparsity and bits, are "
            "worth another search."
        )
    return advice


def _figures(found: SearchReport | SweepTable) -> str:
    from sbc_plugin.evaluation import plots  # needs matplotlib

    table = found if isinstance(found, SweepTable) else SweepTable(found.unit, found.dense, found.points)
    drawn = [plots.trade((table.dense, table.points, table.pareto(cost)), cost, table.unit) for cost in COSTS]
    return '<div class="figures">' + "".join(f"<figure>{svg}</figure>" for svg in drawn) + "</div>"


def _table(dense: Point, points: list[Point], marks: list[str], unit: str) -> str:
    rows = [[mark, *point.cells(unit)] for mark, point in zip(["dense", *marks], [dense, *points], strict=True)]
    return html_table(["network", *HEADS], rows)
