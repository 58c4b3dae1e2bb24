"""Tables of ``docs/results.md`` from the lines of a case: means over seeds with standard errors, paired differences."""

import math
from typing import Any

Line = dict[str, Any]
NAMES = {
    "none": "dense",
    "magnitude": "magnitude",
    "rtn": "rounding",
    "obc": "M = I (OBC, GPTQ)",
    "sbc": "SBC",
}


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def standard_error(values: list[float]) -> float:
    """Of the mean, from the sample's spread.

    >>> round(standard_error([1.0, 2.0, 3.0]), 3)
    0.577
    """
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard error.

    >>> spread([1.0, 2.0, 3.0], 2)
    '2.00 ± 0.58'
    """
    return f"{mean(values):.{digits}f} ± {standard_error(values):.{digits}f}"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table: first two columns to the left, the others to the right."""
    marks = ["---" if column < 2 else "---:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, marks, *rows])


def by_method(lines: list[Line]) -> str:
    """Accuracy, spike distance and costs of each budget and method, and how far SBC is ahead on the same network."""
    rows = []
    for budget in dict.fromkeys(line["budget"] for line in lines):
        chosen = [line for line in lines if line["budget"] == budget]
        sbc = {line["seed"]: line["accuracy"] for line in chosen if line["method"] == "sbc"}
        for method in dict.fromkeys(line["method"] for line in chosen):
            mine = [line for line in chosen if line["method"] == method]
            ahead = [100 * (sbc[line["seed"]] - line["accuracy"]) for line in mine if line["seed"] in sbc]
            rows.append(
                [
                    budget,
                    NAMES.get(method, method),
                    spread([100 * line["accuracy"] for line in mine]),
                    spread(ahead) if ahead and method != "sbc" else "",
                    *_optional(mine, "distance", lambda values: spread(values, 3)),
                    *_optional(mine, "operations", lambda values: f"{mean(values):,.0f}"),
                    *_optional(mine, "packed_bytes", lambda values: f"{mean(values) / 1000:.1f}"),
                    f"{mean([line['seconds'] for line in mine]):.1f}",
                ]
            )
    heads = ["budget", "method", "accuracy, %", "SBC is ahead by, points"]
    heads += ["spike distance"] if "distance" in lines[0] else []
    heads += ["synaptic operations"] if "operations" in lines[0] else []
    heads += ["size, kB"] if "packed_bytes" in lines[0] else []
    return markdown([*heads, "seconds"], rows)


def summary(lines: list[Line]) -> str:
    """One row a budget, one column a method: accuracy, and the spread over seeds."""
    columns = {"baseline": ("magnitude", "rtn"), "obc": ("obc",), "sbc": ("sbc",)}
    dense = spread([100 * line["accuracy"] for line in lines if line["method"] == "none"])
    rows = []
    for budget in dict.fromkeys(line["budget"] for line in lines if line["method"] != "none"):
        chosen = [line for line in lines if line["budget"] == budget]
        cells = [spread([100 * x["accuracy"] for x in chosen if x["method"] in names]) for names in columns.values()]
        rows.append([budget, *cells])
    heads = [f"budget (dense: {dense} %)", "magnitude, rounding", NAMES["obc"], NAMES["sbc"]]
    return markdown(heads, rows)


def _optional(lines: list[Line], name: str, form: Any) -> list[str]:
    return [form([line[name] for line in lines])] if name in lines[0] else []
