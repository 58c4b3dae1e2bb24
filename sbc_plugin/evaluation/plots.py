"""Figures of a report as SVG text, drawn by matplotlib from the report's own numbers.

Before is drawn in one way and after in another: by colour (of Okabe and Ito's palette, which colour-blind people can
tell apart), and by form too, so that they differ in print and in grey. Axes and text take the page's own colour, light
or dark.
"""

import io
import re
import warnings
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any, ParamSpec

from sbc_plugin.errors import extra
from sbc_plugin.evaluation.evaluate import BINS, Activity
from sbc_plugin.evaluation.points import POINTS, Point
from sbc_plugin.evaluation.text import printable

with extra("plots"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

BEFORE, AFTER = "#0072B2", "#D55E00"
INK = "#010203"  # stands for the page's text colour until the SVG is text
WIDTH = 4.6  # inches: with this type, text is 12 pixels high or more on a telephone that is 390 wide
TYPE = 11.5  # points; the page takes smaller type where the figure is shown wider
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with $ is a name
    "svg.hashsalt": "sbc",  # the same figure gives the same text
    "font.family": "sans-serif",
    "font.size": TYPE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    "legend.frameon": False,
}


Arguments = ParamSpec("Arguments")


def _styled(draw: Callable[Arguments, str]) -> Callable[Arguments, str]:
    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> str:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # the browser draws the text, in a font that has the letters
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            return draw(*arguments, **named)

    return drawn


@_styled
def raster(activity: Activity) -> str:
    """The same neurons before and after, a row each: spikes that stayed (bars), are lost (rings), are new (crosses)."""
    figure, axes = _figure(0.9 + 0.13 * max(len(activity.shown), 6))
    kinds: dict[str, list[tuple[int, int]]] = {"kept": [], "lost": [], "new": []}
    for row, (before, after) in enumerate(zip(activity.spikes_dense, activity.spikes, strict=True)):
        for step in sorted({*before, *after}):
            kinds["new" if step not in before else "kept" if step in after else "lost"].append((step, row))
    looks: dict[str, Any] = {
        "kept": {"marker": "|", "color": INK, "markersize": 6, "markeredgewidth": 1.4},
        "lost": {"marker": "o", "color": BEFORE, "markersize": 4.2, "markerfacecolor": "none", "markeredgewidth": 1.3},
        "new": {"marker": "x", "color": AFTER, "markersize": 4, "markeredgewidth": 1.3},
    }
    for kind, at in kinds.items():
        steps, rows = [step for step, _ in at], [row for _, row in at]
        axes.plot(steps, rows, linestyle="none", label=f"{kind}: {len(at)}", **looks[kind])
    axes.set(xlim=(-0.7, activity.steps - 0.3), ylim=(-0.8, len(activity.shown) - 0.2))
    axes.set(xlabel="time step", ylabel="neuron", yticks=_few(len(activity.shown)))
    axes.set_yticklabels([str(activity.shown[row]) for row in _few(len(activity.shown))])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes)
    return _svg(figure, f"Spikes of {activity.name}: kept, lost and new")


@_styled
def membranes(activity: Activity) -> str:
    """Membranes of a few neurons before reset, with their threshold."""
    count = len(activity.traced)
    figure = Figure(figsize=(WIDTH, 0.75 + 0.95 * count), layout="constrained")
    for number, axes in enumerate(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]):
        axes.axhline(activity.v_th[number], color=INK, linewidth=0.7, linestyle=(0, (1, 2)), label="threshold")
        axes.plot(activity.v_dense[number], color=BEFORE, linewidth=1.6, label="before")
        axes.plot(activity.v[number], color=AFTER, linewidth=1.2, linestyle=(0, (4, 1.5)), label="after")
        axes.set_ylabel(f"v of {activity.traced[number]}")
        if number == 0:
            _legend(figure, axes)
    axes.set_xlabel("time step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, f"Membranes of {activity.name} before and after")


@_styled
def rates(activity: Activity) -> str:
    """How many neurons spike how often."""
    figure, axes = _figure(1.7)
    width = 0.4
    last = max(k for k in range(BINS + 1) if activity.rates_dense[k] or activity.rates[k] or k < 2)
    places = list(range(last + 1))
    axes.bar([k - width / 2 for k in places], activity.rates_dense[: last + 1], width, color=BEFORE, label="before")
    axes.bar(
        [k + width / 2 for k in places], activity.rates[: last + 1], width, facecolor="none", edgecolor=AFTER,
        hatch="//////", linewidth=1, label="after",
    )  # fmt: skip
    axes.set(xlabel="spikes a step", ylabel="neurons", xticks=_few(last + 1))
    axes.set_xticklabels(["none" if k == 0 else f"{k / BINS:g}" for k in _few(last + 1)])
    _legend(figure, axes)
    return _svg(figure, f"Firing rates of {activity.name} before and after")


@_styled
def trade(points: tuple[Point, list[Point], list[Point]], cost: str, unit: str) -> str:
    """Accuracy of networks over what they cost, on a logarithmic axis.

    Args:
        points: the dense network; all others; and those that are drawn as a line, the cheapest first.
        cost: "packed_bytes" or "operations".
        unit: of drops, see ``Point``.
    """
    dense, others, line = points
    figure, axes = _figure(2.8)
    scale = 100 if unit == POINTS else 1

    def draw(which: list[Point], **look: Any) -> None:
        shown = [each for each in which if getattr(each, cost) > 0]  # a logarithm has no place for 0
        axes.plot([getattr(p, cost) / 1000 for p in shown], [scale * p.accuracy for p in shown], **look)

    draw(line, color=AFTER, linewidth=1.2, label="best")
    draw(others, color=AFTER, marker="o", markersize=4.5, markerfacecolor="none", linestyle="none", label="compressed")
    draw([dense], color=BEFORE, marker="s", markersize=6, linestyle="none", label="dense")
    what = {"packed_bytes": "size, kB", "operations": "thousand synaptic operations a sequence"}[cost]
    axes.set(xscale="log", xlabel=what, ylabel="accuracy, %" if unit == POINTS else "score")
    # Of its own accord matplotlib writes powers as formulas, which a page without a typesetter shows as they are.
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high > 6 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(figure, axes)
    return _svg(figure, f"Accuracy over {what}")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2
    )


def _few(count: int) -> list[int]:
    """Places of at most five ticks."""
    return list(range(0, count, max(1, -(-count // 5))))


def _svg(figure: Figure, title: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": printable(title)})
    svg = text.getvalue()
    # only where it is a colour, not in the name of a layer
    coloured = re.sub(r'style="[^"<>]*"', lambda style: style[0].replace(INK, "currentColor"), svg)
    drawn = re.sub(r'<g id="[^"]*"', "<g", coloured[coloured.index("<svg") :])  # which are the same in each figure
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(printable(title))}" ', 1)
