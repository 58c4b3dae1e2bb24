"""Figures of ``docs/results.md`` from the lines of a case, each stamped with the lines it was drawn from.

Colours are those of Okabe and Ito, which colour-blind people tell apart; each method has a marker and a dash of its own
as well.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.tables import NAMES, mean, standard_error

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
STYLES: dict[str, dict[str, Any]] = {
    "magnitude": {"color": "#E69F00", "marker": "s", "linestyle": ":"},
    "rtn": {"color": "#E69F00", "marker": "D", "linestyle": ":"},
    "obc": {"color": "#56B4E9", "marker": "^", "linestyle": "--"},
    "brevitas": {"color": "#CC79A7", "marker": "v", "linestyle": "-."},
    "published": {"color": "#009E73", "marker": "o", "linestyle": (0, (5, 1))},
    "sbc": {"color": "#D55E00", "marker": "*", "linestyle": "-", "markersize": 9},
    "tuned": {"color": "#000000", "marker": "P", "linestyle": "-"},
}
SERIES = tuple(STYLES.values())  # for plots of other things than methods, in this order
DENSE = {"color": "#000000", "linestyle": (0, (1, 3)), "linewidth": 1.0}
Place = Callable[[Line], float]


SHOWN = ("network", "ablation", "value", "seed", "budget", "method", "accuracy", "operations", "dense")


MEASURED = ("columns", "seconds", "loss")  # of solvers
GROWN = ("sweep_seconds", "sweep_bytes")  # of sweeps


def stamp(lines: list[Line]) -> str:
    """A digest of all that a figure shows of these lines."""
    shown = [
        [line.get(name) for name in SHOWN + MEASURED * ("columns" in line) + GROWN * ("sweep_seconds" in line)]
        for line in lines
        if "failed" not in line
    ]
    return hashlib.sha256(json.dumps(sorted(shown, key=str)).encode()).hexdigest()[:16]


def is_current(path: Path, lines: list[Line]) -> bool:
    """Whether the figure at ``path`` was drawn from these lines."""
    return path.exists() and f"<!-- lines {stamp(lines)} -->" in path.read_text()


def percent_of(budget: str) -> float | None:
    """Kept weights in per cent of an unstructured pruning budget; None for others.

    >>> percent_of("97 % sparse"), percent_of("2:4"), percent_of("90 % sparse, 4 bits")
    (3.0, None, None)
    """
    words = budget.split()
    return 100 - float(words[0]) if words[1:] == ["%", "sparse"] else None


def bits_of(budget: str) -> float | None:
    """Bits of a budget that gives each channel a scale and prunes nothing; None for others.

    >>> bits_of("3 bits"), bits_of("2 bits a tensor")
    (3.0, None)
    """
    words = budget.split()
    return float(words[0]) if words[1:] == ["bits"] else None


def draw(lines: list[Line], path: Path, title: str) -> Path:
    """Accuracy over sparsity, over bits, and over synaptic operations; bars are standard errors over seeds."""
    lines = [line for line in lines if "failed" not in line]
    figure, axes = _figure(3)
    dense = 100 * mean([line["accuracy"] for line in lines if line["method"] == "none"])
    for axis in axes:
        axis.axhline(dense, **DENSE)
    for method in STYLES:
        mine = [line for line in lines if line["method"] == method]
        for axis, place in zip(axes, (percent_of, bits_of), strict=False):
            chosen = [line for line in mine if place(line["budget"]) is not None]
            curve(axis, chosen, lambda line, place=place: place(line["budget"]), method)
        _points(axes[2], mine, method)
    axes[0].set(xscale="log", xlabel="weights kept, %")
    axes[0].invert_xaxis()
    _ticks(axes[0], sorted({kept for line in lines if (kept := percent_of(line["budget"])) is not None}))
    axes[1].set(xlabel="bits, one scale a channel")
    axes[1].invert_xaxis()
    _ticks(axes[1], sorted({bits for line in lines if (bits := bits_of(line["budget"])) is not None}))
    axes[2].set(xscale="log", xlabel="synaptic operations a sequence, all budgets")
    axes[0].set_ylabel("accuracy on held-out data, %")
    return save(figure, axes, path, title, lines)


def draw_ablation(lines: list[Line], path: Path, xlabel: str) -> Path:
    """Accuracy over what an ablation varies, a panel a network; bars are standard errors over seeds."""
    networks = list(dict.fromkeys(line["network"] for line in lines))
    figure, axes = _figure(len(networks))
    for axis, network in zip(axes, networks, strict=True):
        mine = [line for line in lines if line["network"] == network]
        values = list(dict.fromkeys(line["value"] for line in mine))
        for dense in {line["budget"]: line["dense"] for line in mine}.values():
            axis.axhline(100 * dense, **DENSE)
        named = isinstance(values[0], str)
        for number, series in enumerate(dict.fromkeys(line["method"] for line in mine)):
            chosen = [line for line in mine if line["method"] == series]
            style = SERIES[(-1 - number) % len(SERIES)]
            curve(axis, chosen, lambda line, at=values, named=named: _place(line, at, named), series, style)
        if named:
            axis.set_xticks(range(len(values)), values, rotation=30, ha="right")
        elif min(values) > 0 and max(values) >= 20 * min(values):
            axis.set(xscale="log")
            _ticks(axis, sorted(values))
        axis.set(xlabel=xlabel, title=f"{network}, {mine[0]['budget']}")
    axes[0].set_ylabel("accuracy on held-out data, %")
    return save(figure, axes, path, "", lines)


def draw_peers(lines: list[Line], path: Path) -> Path:
    """Seconds of each solver over columns at 80 and 97 % zeros and 2:4, and below them its relative loss."""
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(line["budget"] for line in lines))
    figure = Figure(figsize=(4.2 * len(budgets), 6.2), layout="constrained")
    axes = figure.subplots(2, len(budgets), squeeze=False)
    for column, budget in enumerate(budgets):
        for row, name in enumerate(("seconds", "loss")):
            axis = axes[row][column]
            for number, method in enumerate(dict.fromkeys(line["method"] for line in lines)):
                mine = [line for line in lines if (line["method"], line["budget"]) == (method, budget)]
                mine.sort(key=lambda line: float(line["columns"]))
                style = SERIES[(-1 - number) % len(SERIES)]
                axis.plot([line["columns"] for line in mine], [line[name] for line in mine], label=method, **style)
            axis.set(xscale="log", yscale="log", xlabel="columns", title=budget if row == 0 else None)
            _ticks(axis, sorted({line["columns"] for line in lines}))
    axes[0][0].set_ylabel("processor seconds")
    axes[1][0].set_ylabel("relative loss")
    return save(figure, [axis for row in axes for axis in row], path, "", lines)


def draw_sweeps(lines: list[Line], path: Path) -> Path:
    """Seconds, and below them the peak of memory, over what each sweep varies."""
    from matplotlib.figure import Figure

    sweeps = list(dict.fromkeys(line["ablation"] for line in lines))
    figure = Figure(figsize=(4.2 * len(sweeps), 6.2), layout="constrained")
    axes = figure.subplots(2, len(sweeps), squeeze=False, sharey="row")
    for column, sweep in enumerate(sweeps):
        mine = sorted((line for line in lines if line["ablation"] == sweep), key=lambda line: float(line["value"]))
        values = [line["value"] for line in mine]
        for row, (name, factor) in enumerate((("sweep_seconds", 1.0), ("sweep_bytes", 2.0**-20))):
            axis = axes[row][column]
            axis.plot(values, [factor * (line[name] or 0) for line in mine], **SERIES[-1])
            axis.set(xscale="log", yscale="log", xlabel=sweep)
            _ticks(axis, values)
    axes[0][0].set_ylabel("processor seconds")
    axes[1][0].set_ylabel("peak, MiB")
    return save(figure, [axis for row in axes for axis in row], path, "", lines)


def _place(line: Line, values: list[Any], named: bool) -> float:
    return float(values.index(line["value"])) if named else float(line["value"])


def curve(axis: Any, lines: list[Line], place: Place, method: str, style: dict[str, Any] | None = None) -> None:
    """Mean accuracy of the lines at each place, with standard errors."""
    places = sorted({place(line) for line in lines})
    if not places:
        return
    scores = [[100 * line["accuracy"] for line in lines if place(line) == x] for x in places]
    errors = [standard_error(values) if len(values) > 1 else 0.0 for values in scores]
    chosen = STYLES[method] if style is None else style
    means = [mean(values) for values in scores]
    axis.errorbar(places, means, errors, capsize=2, label=NAMES.get(method, method), **chosen)


def _points(axis: Any, lines: list[Line], method: str) -> None:
    budgets = dict.fromkeys(line["budget"] for line in lines)
    groups = [[line for line in lines if line["budget"] == budget] for budget in budgets]
    x = [mean([line["operations"] for line in group]) for group in groups]
    y = [100 * mean([line["accuracy"] for line in group]) for group in groups]
    axis.plot(x, y, **(STYLES[method] | {"linestyle": "none"}))


def _ticks(axis: Any, places: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(places, [f"{place:g}" for place in places])


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True)
    return figure, axes if panels > 1 else [axes]


def save(figure: Any, axes: Any, path: Path, title: str, lines: list[Line]) -> Path:
    """Write a figure with one legend below all of its axes, and with the stamp of its lines."""
    from matplotlib import rc_context

    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    shown: dict[str, Any] = {}
    for axis in axes:  # one legend for all panels
        shown |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title or None, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "sbc", "svg.fonttype": "none"}):  # the same lines give the same file
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    path.write_text(path.read_text().replace("</svg>", f"<!-- lines {stamp(lines)} -->\n</svg>"))
    return path
