"""What one chooses, and what that takes: the table of ``docs/choosing.md``, from the lines of several cases."""

from collections.abc import Iterable
from statistics import geometric_mean, median

from integration_tests.benchmarks import searching, tables
from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.scale import QUICK

GIBIBYTE = 2**30


def table(timed: list[Line], large: list[Line], searched: list[Line]) -> str:
    """Seconds of one processor core.

    Args:
        timed: of the case ``default_time``.
        large: of the case ``scale``.
        searched: of the case ``search``.
    """
    cases: dict[tuple[str, str, int], dict[str, float]] = {}
    for line in timed:
        case = cases.setdefault((line["network"], line["budget"], line["seed"]), {})
        case[line["method"]] = line["processor_seconds"]
    both = [case for case in cases.values() if len(case) == 2]
    networks = len({network for network, _, _ in cases})
    ratios = [case["default"] / case["one shot"] for case in both]
    alone, default = (_range(case[way] for case in both) for way in ("one shot", "default"))
    rows = [
        ["solvers alone, `Calibration(tuning=0)`", alone, _large(large, "one shot")],
        ["default", f"{default}; {geometric_mean(ratios):.1f} times as long in the mean", _large(large, "default")],
    ]
    for way in ("sparsity", "size"):
        calls = [searching.calls(line) for line in searched if line["method"] == way and "low" in line]
        if calls:
            times = f"{median(calls):.1f} times one default call (median of {len(calls)})"
            rows.append([f'`search(over="{way}")`', times, "not measured"])
    return tables.markdown(["choice", f"{networks} networks of the benchmark", "networks of ImageNet's sizes"], rows)


def _range(seconds: Iterable[float]) -> str:
    found = sorted(seconds)
    return f"{found[0]:.1f} to {found[-1]:.1f} s"


def _large(lines: list[Line], method: str) -> str:
    found = sorted((line for line in lines if line["method"] == method), key=lambda line: line["weights"])
    cells = [
        f"{line['network']}: {line['processor_seconds'] / 60:.0f} min, {line['peak_bytes'] / GIBIBYTE:.1f} GiB"
        for line in found
        if line["network"] != QUICK
    ]
    return "; ".join(cells) or "not measured"
