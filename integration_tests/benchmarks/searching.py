"""What `search` delivers, whether its interval holds on data that it has not seen, and what it takes.

A third of the test data is given to `search`, which splits it again: one half decides, the other one checks. The other
two thirds are not seen by it; *drop* is what the delivered network loses there. *Inside*: it lies in the interval that
was told. *Default calls* is the processor time of the search, less that of judging networks on test data, over the
time of one call of `compress` by default with what was chosen. *Bisection, all tuned* is the plain way: seven networks,
each as `compress` makes it by default, halving the range of sparsities on the same test data; the more of the weights
it takes away, the more the search has missed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.budget import Network, size_of
from integration_tests.benchmarks.effort import measured
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS
from sbc_plugin import Budget, Calibration, Prune, SearchReport, compress, search
from sbc_plugin.compression.narrowing import FARTHER, REFINED
from sbc_plugin.compression.search import SPARSITIES, STRETCH
from sbc_plugin.core.paired import PairedDrop
from sbc_plugin.errors import ToleranceError
from sbc_plugin.evaluation.judging import Judge, Judged

SEEDS = (0, 1, 2)
NAMES = ("letters-lif", "letters-current", "clothes-subtract", "recurrent", "mnist-integrators", "digits")
TOLERANCES = (0.5, 1.0, 3.0)
SIZED = ("letters-lif", "clothes-subtract", "digits")
COMPARED = 1.0  # the tolerance at which the plain way is measured too
PLAIN = "bisection, all tuned"
BATCH = 250


def lines(known: Known = lambda line: False, names: tuple[str, ...] = NAMES) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network, seed, tolerance and way."""
    settings = digest([str(STRETCH), f"{FARTHER} {REFINED} answer tuned"])
    cases = [(name, seed) for name in names for seed in SEEDS]
    for name, seed in tqdm(cases, desc="search", unit="network", leave=False, disable=None):
        network = None
        for tolerance in TOLERANCES:
            ways = ["sparsity", *(["size"] if name in SIZED else []), *([PLAIN] if tolerance == COMPARED else [])]
            for way in ways:
                place = {"network": name, "seed": seed, "budget": f"{tolerance:g} points", "method": way}
                place |= {"settings": settings, "commit": commit()}
                if known(place):
                    continue
                network = network or Network(SUBJECTS[name], seed)
                yield place | _measured(network, tolerance, way)


def _measured(network: Network, tolerance: float, way: str) -> Line:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(network.test.labels), generator=generator, device="cpu")
    third = len(order) // 3
    given, unseen = network.test.subset(order[:third]), network.test.subset(order[third:])
    batches = list(given.batches(BATCH))
    settings: dict[str, Any] = {"forward": network.subject.case.forward, "progress": False}
    work: Callable[[], tuple[nn.Module, SearchReport | None]] = (
        (lambda: (_plain(network, batches, tolerance, settings), None))
        if way == PLAIN
        else lambda: search(
            network.dense, network.data, test_data=batches, max_drop=tolerance, over=way, **settings
        )
    )  # fmt: skip
    try:
        with _judging() as judging:
            (small, report), effort = measured(work)
    except ToleranceError as error:
        return {"refused": str(error)}
    dense, right = network.right(network.dense, unseen), network.right(small, unseen)
    lost = PairedDrop.of(dense.bool(), right.bool())
    weights = [tensor.detach() for tensor in small.parameters() if tensor.dim() > 1]
    found: Line = {
        "dense": float(dense.mean()),
        "drop": 100 * lost.drop,
        "tested": len(right),
        "kept": sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights),
        "times_smaller": size_of(network.dense) / size_of(small),
        "processor_seconds": effort.processor_seconds,
    }
    if report is None:
        return found
    assert report.check is not None and report.best is not None
    low, high = report.check.interval
    best = report.best
    budget: dict[str, Any] = (
        {"budget": Budget(factor=best.factor)} if best.sparsity is None else {"prune": Prune(best.sparsity)}
    )
    _, alone = measured(
        lambda: compress(network.dense, network.data, calibration=Calibration(), **budget, **settings)
    )  # fmt: skip
    return found | {
        "low": low,
        "high": high,
        "networks": len(report.points),
        "tuned": sum(point.steps > 0 for point in report.points),
        "steps": best.steps,
        "judging_seconds": sum(judging),
        "default_seconds": alone.processor_seconds,
    }


@contextmanager
def _judging() -> Iterator[list[float]]:
    """The processor seconds that each network took to be judged."""
    found: list[float] = []

    def timed(judge: Judge, model: nn.Module) -> Judged:
        judged, effort = measured(lambda: call(judge, model))
        found.append(effort.processor_seconds)
        return judged

    call = Judge.__call__
    with mock.patch.object(Judge, "__call__", timed):
        yield found


def _plain(network: Network, batches: list[Any], tolerance: float, settings: dict[str, Any]) -> nn.Module:
    """The most compressed of seven tuned networks that stays within the tolerance on the first half of the data."""
    test = [(x[:, ::2], labels[::2]) for x, labels in batches]

    def accuracy(model: nn.Module) -> float:
        scores = network.subject.case.scores
        with torch.no_grad():
            right = torch.cat([scores(model, x).argmax(1) == labels for x, labels in test])
        return float(right.double().mean())

    start, best, low, high = accuracy(network.dense), network.dense, -1, len(SPARSITIES)
    while high - low > 1:
        middle = (low + high) // 2
        small, _ = compress(network.dense, network.data, prune=Prune(SPARSITIES[middle]), **settings)
        if 100 * (start - accuracy(small)) <= tolerance + 1e-9:
            best, low = small, middle
        else:
            high = middle
    return best


def table(found: list[Line]) -> str:
    """What is delivered at each tolerance; then how often the interval held, and how long it took."""
    rows = []
    for name, budget, way in dict.fromkeys((line["network"], line["budget"], line["method"]) for line in found):
        here = [line for line in found if (line["network"], line["budget"], line["method"]) == (name, budget, way)]
        done = [line for line in here if "refused" not in line]
        told = [line for line in done if "low" in line]
        rows.append(
            [
                name,
                budget,
                way,
                tables.spread([100 * (1 - line["kept"]) for line in done]) if done else "none found",
                tables.spread([line["times_smaller"] for line in done]) if done else "",
                tables.spread([line["drop"] for line in done]) if done else "",
                f"{sum(map(_inside, told))} of {len(told)}" if told else "",
                ", ".join(f"{line['networks']} ({line['tuned']})" for line in told),
                tables.spread([calls(line) for line in told]) if told else "",
            ]
        )
    told = [line for line in found if "low" in line]
    heads = ["network", "tolerance", "over", "zeros, %", "times smaller", "drop, points", "inside"]
    text = tables.markdown([*heads, "networks (tuned)", "default calls"], rows)
    summary = []
    for way in ("sparsity", "size"):
        mine = [line for line in told if line["method"] == way]
        taken = sorted(map(calls, mine))
        if mine:
            summary.append(
                f"Over {way}: the interval held in {sum(map(_inside, mine))} of {len(mine)}; default calls: median "
                f"{taken[len(taken) // 2]:.1f}, at most 2 in {sum(each <= 2 for each in taken)}, most {taken[-1]:.1f}."
            )
    return "\n\n".join([text, *summary])


def _inside(line: Line) -> bool:
    return bool(line["low"] <= line["drop"] <= line["high"])


def calls(line: Line) -> float:
    """How many calls of ``compress`` by default a search took, less its runs on test data."""
    return float((line["processor_seconds"] - line["judging_seconds"]) / max(line["default_seconds"], 1e-3))
