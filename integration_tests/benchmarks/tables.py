"""Tables of ``docs/results.md`` from the lines of a case: means over seeds with standard errors, paired differences."""

import math
from collections.abc import Callable, Sequence

from integration_tests.benchmarks.methods import METHODS
from integration_tests.benchmarks.records import Line

NAMES = {"none": "dense"} | {name: method.title for name, method in METHODS.items()}


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def standard_error(values: list[float]) -> float:
    """Of the mean, from the sample's spread; NaN of a single value.

    >>> round(standard_error([1.0, 2.0, 3.0]), 3)
    0.577
    """
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard error; of a single value, that it is one.

    >>> spread([1.0, 2.0, 3.0], 2), spread([1.0])
    ('2.00 ± 0.58', '1.0 (n = 1)')
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (n = 1)"
    return f"{mean(values):.{digits}f} ± {standard_error(values):.{digits}f}"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table: first two columns to the left, the others to the right."""
    marks = ["---" if column < 2 else "---:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, marks, *rows])


def _each(name: str, factor: float = 1.0, digits: int = 1) -> Callable[[list[Line]], str]:
    return lambda lines: spread([factor * line[name] for line in lines], digits)


def _average(name: str, factor: float = 1.0, form: str = ",.1f") -> Callable[[list[Line]], str]:
    return lambda lines: format(mean([factor * line[name] for line in lines]), form)


def _peak(lines: list[Line]) -> str:
    peaks = [line["peak_bytes"] for line in lines]
    return "" if None in peaks else f"{max(peaks) / 1e6:,.0f}"


COLUMNS: dict[str, Callable[[list[Line]], str]] = {
    "spike distance": _each("distance", digits=3),
    "rate distance": _each("rate_distance", digits=3),
    "dead neurons, %": _average("dead", 100),
    "zeros, %": _average("sparsity", 100),
    "synaptic operations": _average("operations", form=",.0f"),
    "energy, nJ": _average("energy", 1e9),
    "size, kB": _average("packed_bytes", 1e-3),
    "processor s": _average("processor_seconds"),
    "memory, MB": _peak,
}


OURS = ("sbc", "tuned")


def by_method(lines: list[Line], order: Sequence[str]) -> str:
    """Accuracy, spike distance and costs of each budget and method, and how far SBC, tuned or not, is ahead of it.

    Differences are paired: of the same network and calibration data.

    Args:
        lines: of one case.
        order: titles of its budgets; others are left out.
    """
    rows = []
    for budget in order:
        chosen = [line for line in lines if line["budget"] == budget]
        measured = [line for line in chosen if "failed" not in line]
        ours = {name: _accuracies(measured, budget, name) for name in OURS}
        for method in (name for name in NAMES if any(line["method"] == name for line in chosen)):
            mine = [line for line in chosen if line["method"] == method]
            if failures := sorted({line["failed"] for line in mine if "failed" in line}):
                rows.append([budget, NAMES[method], f"fails: {failures[0]}", *[""] * (len(OURS) + len(COLUMNS))])
                continue
            ahead = [
                "" if method == name else _paired(ours[name], {line["seed"]: line["accuracy"] for line in mine})
                for name in OURS
            ]
            accuracy = spread([100 * line["accuracy"] for line in mine])
            rows.append([budget, NAMES[method], accuracy, *ahead, *(form(mine) for form in COLUMNS.values())])
    heads = [f"{NAMES[name]} is ahead by, points" for name in OURS]
    return markdown(["budget", "method", "accuracy, %", *heads, *COLUMNS], rows)


SUMMARY = (
    "90 % sparse", "95 % sparse", "97 % sparse", "2:4", "4 bits", "3 bits", "2 bits", "2 bits on average",
    "90 % sparse, 4 bits",
)  # fmt: skip


def summary(lines: list[Line], budgets: Sequence[str] = SUMMARY) -> str:
    """One row a budget, one column a method: accuracy, and the spread over seeds."""
    columns = {
        "magnitude, rounding": ("magnitude", "rtn"),
        NAMES["obc"]: ("obc",),
        NAMES["published"]: ("published",),
        NAMES["sbc"]: ("sbc",),
        NAMES["tuned"]: ("tuned",),
    }
    dense = spread([100 * line["accuracy"] for line in lines if line["method"] == "none"])
    rows = []
    for budget in budgets:
        chosen = [line for line in lines if line["budget"] == budget and "failed" not in line]
        scores = [[100 * line["accuracy"] for line in chosen if line["method"] in names] for names in columns.values()]
        rows.append([budget, *(spread(values) if values else "" for values in scores)])
    return markdown([f"budget (dense: {dense} %)", *columns], rows)


LOST = 3.0  # points that the published method has lost where a budget is worth a row of the overview
COMPARED = ("magnitude", "rtn", "obc", "published", "sbc", "tuned")


def overview(cases: dict[str, list[Line]]) -> str:
    """Accuracy by method, at budgets where the published method has lost ``LOST`` points, and at those of few bits."""
    rows = []
    for case, lines in cases.items():
        lines = [line for line in lines if "failed" not in line]
        dense = {line["seed"]: line["accuracy"] for line in lines if line["method"] == "none"}
        for budget in dict.fromkeys(line["budget"] for line in lines if line["method"] == "published"):
            by_method = {name: _accuracies(lines, budget, name) for name in COMPARED}
            lost = [100 * (dense[seed] - value) for seed, value in by_method["published"].items() if seed in dense]
            if not by_method["tuned"] or (mean(lost) < LOST and "bits" not in budget):
                continue
            scores = [spread([100 * value for value in by_method[name].values()]) for name in COMPARED[2:]]
            plain = by_method["magnitude"] or by_method["rtn"]
            shown = spread([100 * value for value in plain.values()])
            ahead = [_paired(by_method["tuned"], by_method["published"]), _paired(by_method["tuned"], dense)]
            rows.append([case, budget, spread([100 * value for value in dense.values()]), shown, *scores, *ahead])
    heads = ["network", "budget", "dense", "magnitude, rounding", *(NAMES[name] for name in COMPARED[2:])]
    return markdown([*heads, "tuned above published", "tuned above dense"], rows)


def lost(lines: Sequence[Line], budget: str, *methods: str) -> list[float]:
    """Points below the dense network of the same seed, a value a seed of each method; [] where nothing was measured."""
    dense = {line["seed"]: line["accuracy"] for line in lines if line["method"] == "none"}
    return [
        100 * (dense[line["seed"]] - line["accuracy"])
        for line in lines
        if line["budget"] == budget and line["method"] in methods and line["seed"] in dense and "failed" not in line
    ]


def _accuracies(lines: list[Line], budget: str, method: str) -> dict[int, float]:
    return {line["seed"]: line["accuracy"] for line in lines if (line["budget"], line["method"]) == (budget, method)}


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    differences = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    return spread(differences) if differences else ""


def costs(cases: dict[str, list[Line]]) -> str:
    """How long each case took: lines, and wall time of compressing and measuring them all."""
    rows = []
    for case, lines in cases.items():
        spent = [(line.get("seconds", 0.0), line.get("measuring_seconds", 0.0)) for line in lines]
        seconds = [sum(column) for column in zip(*spent, strict=True)]
        rows.append([case, f"{len(lines)}", *(f"{part / 60:.1f}" for part in seconds)])
    return markdown(["case", "lines", "compressing, min", "measuring, min"], rows)
