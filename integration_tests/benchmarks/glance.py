"""All networks together: the five lines at the top of ``docs/results.md``, and its picture and the README's."""

from pathlib import Path
from typing import Any

from integration_tests.benchmarks import plots, tables
from integration_tests.benchmarks.records import Line

BUDGET, MILD, FEW = "90 % sparse, 4 bits", "4 bits", "2 bits on average"
SHOWN = ("magnitude", "obc", "sbc", "tuned")


def times_smaller(lines: list[Line], budget: str, method: str) -> float:
    """Bytes of the dense weights over those of the packed ones, as means over seeds."""
    dense = tables.mean([line["packed_bytes"] for line in lines if line["method"] == "none"])
    return dense / tables.mean([line["packed_bytes"] for line in _of(lines, budget, method)])


def _of(lines: list[Line], budget: str, method: str) -> list[Line]:
    return [line for line in lines if (line["budget"], line["method"]) == (budget, method) and "failed" not in line]


def _with(cases: dict[str, list[Line]], budget: str) -> dict[str, list[Line]]:
    """The cases that have lines of SBC at a budget."""
    return {name: lines for name, lines in cases.items() if _of(lines, budget, "sbc") and _of(lines, budget, "tuned")}


def _lost(cases: dict[str, list[Line]], budget: str, method: str) -> list[float]:
    found = (tables.lost(lines, budget, method) for lines in cases.values())
    return [tables.mean(points) for points in found if points]


def _range(values: list[float], digits: int = 0) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def five_lines(cases: dict[str, list[Line]]) -> str:
    """Five sentences over all networks; each number is a mean over the seeds of a network."""
    mild, joint, few = (_with(cases, budget) for budget in (MILD, BUDGET, FEW))
    one, tuned = _lost(joint, BUDGET, "sbc"), _lost(joint, BUDGET, "tuned")
    slower = [
        tables.mean([line["processor_seconds"] for line in _of(lines, BUDGET, "tuned")])
        / tables.mean([line["processor_seconds"] for line in _of(lines, BUDGET, "sbc")])
        for lines in joint.values()
    ]
    bits, rounded = _lost(mild, MILD, "sbc"), _lost(mild, MILD, "rtn")
    small = [times_smaller(lines, MILD, "sbc") for lines in mild.values()]
    smallest = [times_smaller(lines, BUDGET, "tuned") for lines in joint.values()]
    average = [times_smaller(lines, FEW, "tuned") for lines in few.values()]
    others = {name: _lost(joint, BUDGET, name) for name in ("magnitude", "obc")}
    share = _lost(few, FEW, "tuned")
    level = sum(first < second + 1 for first, second in zip(others["obc"], one, strict=True))
    return f"""\
1. **4 bits cost next to nothing.** {len(mild)} networks become {_range(small)} times smaller, and one shot loses at
   most {max(bits):.1f} points. Plain rounding loses at most one point on {sum(lost <= 1 for lost in rounded)} of them,
   and up to {max(rounded):.1f} on the others.
2. **90 % zeros and 4 bits cost {tables.mean(tuned):.1f} points on average** (at most {max(tuned):.1f}) with tuning,
   which is on by default. {len(joint)} networks become {_range(smallest)} times smaller.
3. **One shot costs more at this budget:** {tables.mean(one):.1f} points on average. M = I costs
   {tables.mean(others["obc"]):.1f}, less than one point more than one shot on {level} of {len(one)} networks, and
   magnitude costs {tables.mean(others["magnitude"]):.1f}.
4. **2 bits on average cost {tables.mean(share):.1f} points** (at most {max(share):.1f}) where layers share the bits.
   {len(few)} networks become {_range(average)} times smaller.
5. **Tuning takes time:** at the budget of line 2 it takes {_range(slower)} times as long as one shot, on these small
   networks. It needs gradients, but no labels."""


def draw(lines: list[Line], path: Path) -> Path:
    """Each network's accuracy: dense, and at ``BUDGET`` by each method; bars are standard errors over seeds."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(line["case"] for line in lines))
    figure = Figure(figsize=(7.6, 0.5 + 0.42 * len(cases)), layout="constrained")
    axis: Any = figure.subplots()
    for place, case in enumerate(reversed(cases)):
        mine = [line for line in lines if line["case"] == case]
        dense = 100 * tables.mean([line["accuracy"] for line in mine if line["method"] == "none"])
        axis.plot([dense, dense], [place - 0.35, place + 0.35], color="#767676", linewidth=2, label="dense")
        for method in SHOWN:
            found = [100 * line["accuracy"] for line in _of(mine, BUDGET, method)]
            error = tables.standard_error(found) if len(found) > 1 else 0.0
            style = plots.STYLES[method] | {"linestyle": "none"}
            axis.errorbar(tables.mean(found), place, xerr=error, capsize=2, label=tables.NAMES[method], **style)
    smaller = {case: times_smaller([x for x in lines if x["case"] == case], BUDGET, "tuned") for case in cases}
    names = [f"{case}, {smaller[case]:.0f}x smaller" for case in reversed(cases)]
    axis.set_yticks(range(len(cases)), names)
    axis.set_xlabel("accuracy on held-out data, %, at 90 % zeros and 4 bits")
    return plots.save(figure, [axis], path, "", lines)


def shown(cases: dict[str, list[Line]]) -> list[Line]:
    """The lines that the picture is drawn from."""
    return [
        {"case": name} | line
        for name, lines in _with(cases, BUDGET).items()
        for line in lines
        if line["method"] == "none" or (line["budget"] == BUDGET and line["method"] in SHOWN)
    ]
