"""Points of accuracy that each method loses, on the networks that defaults may be chosen on and on those held out.

Defaults were chosen on the networks of the *development* half alone (and some, long ago, on the first nine, which
belong to it). The other half only reports: its networks and its data sets are in neither. All numbers are points below
the dense network, and the lowest of a row is best.
"""

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.sequence_cases import DEVELOPMENT, HELD_OUT

PLAIN = ("magnitude", "rtn")
WAYS = ("obc", "sbc", "tuned")
HALVES = {"development": DEVELOPMENT, "held out": HELD_OUT}


def table(found: dict[str, list[Line]]) -> str:
    """A row of each network and budget, a table of each half, and below each what its networks lose in the mean.

    Args:
        found: lines by name of the case.
    """
    text = []
    heads = ["network", "budget", "magnitude, rounding", *(tables.NAMES[way] for way in WAYS)]
    for half, cases in HALVES.items():
        rows, means = [], dict[str, list[list[float]]]()
        for case in cases:
            lines = found.get(case.name, [])
            for budget in case.budgets:
                values = [tables.lost(lines, budget.title, *methods) for methods in (PLAIN, *((way,) for way in WAYS))]
                if not any(values):
                    continue
                rows.append([case.name, budget.title, *(tables.spread(each) if each else "" for each in values)])
                if not all(values):  # not measured yet
                    continue
                means.setdefault(budget.title, []).append([tables.mean(each) for each in values])
        for title, each in means.items():
            rows.append(
                [f"*mean of {len(each)}*", title, *(tables.spread(list(one)) for one in zip(*each, strict=True))]
            )
        text += [f"### {half.capitalize()}", "", tables.markdown(heads, rows) if rows else "Not run yet.", ""]
    return "\n".join(text)
