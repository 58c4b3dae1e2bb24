"""Searches and sweeps as pages that need no network: the answer, accuracy over cost, and a table of all points."""

from html import escape

from sbc_plugin.evaluation.evaluate import Evaluation
from sbc_plugin.evaluation.page import document, html_table, sections
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
    marks = ["chosen" if number == found.chosen else "" for number in range(len(found.points))]
    parts = [f"<p>{escape(text)}</p>" for text in (found.answer, found.noise) if text]
    parts += [LINE, _figures(found)]
    parts += ["<h2>Networks that were tried</h2>", _table(found.dense, found.points, marks, found.unit)]
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
    marks = ["*" if point in best else "" for point in found.points]
    parts = [LINE, _figures(found)]
    parts += ["<h2>All networks</h2>", _table(found.dense, found.points, marks, found.unit)]
    parts.append("<p>*: no smaller network is as accurate.</p>")
    return document(title, parts)


def _figures(found: SearchReport | SweepTable) -> str:
    from sbc_plugin.evaluation import plots  # needs matplotlib

    table = found if isinstance(found, SweepTable) else SweepTable(found.unit, found.dense, found.points)
    drawn = [plots.trade((table.dense, table.points, table.pareto(cost)), cost, table.unit) for cost in COSTS]
    return '<div class="figures">' + "".join(f"<figure>{svg}</figure>" for svg in drawn) + "</div>"


def _table(dense: Point, points: list[Point], marks: list[str], unit: str) -> str:
    rows = [[mark, *point.cells(unit)] for mark, point in zip(["dense", *marks], [dense, *points], strict=True)]
    return html_table(["network", *HEADS], rows)
