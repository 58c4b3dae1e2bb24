"""What compression does to the demo's five networks: every budget, by every method, on held-out digits."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from torch import nn
from tqdm import tqdm

from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.compression.compress import compress
from sbc_plugin.demo import digits, network
from sbc_plugin.evaluation.comparing import compare, record_spikes
from sbc_plugin.evaluation.operations import Cost
from sbc_plugin.evaluation.text import table
from sbc_plugin.settings import Calibration, Prune, Quantize

BATCH = 100  # sequences
COMPARED = 100  # test sequences whose spikes are compared; accuracy is measured on all
SEEDS = range(5)  # of the networks that are shipped


@dataclass(frozen=True)
class Budget:
    """What every method is allowed to keep.

    Attributes:
        title: as the table shows it.
        baseline: the method of :func:`sbc_plugin.compress` that uses no Hessian: "magnitude" or "rtn".
        prune: how many weights go, if any.
        quantize: the grid, if any.
        tuned: show the row with tuning too, where it gains more than noise for the time that it takes.
    """

    title: str
    baseline: str
    prune: Prune | None = None
    quantize: Quantize | None = None
    tuned: bool = True

    @property
    def methods(self) -> tuple[str, ...]:
        """Keys of ``TITLES``, in the order of the rows."""
        return (self.baseline, "obc", "one shot", *(("sbc",) if self.tuned else ()))


@dataclass(frozen=True)
class Row:
    """One line of the table, measured on held-out digits.

    Attributes:
        budget: as titled.
        method: a key of ``TITLES``.
        accuracy: fraction of digits recognised.
        distance: spike distance to the dense network: 0 = the same spikes, 1 = no better than silence.
        operations: synaptic operations a sequence.
        packed_bytes: of the weights.
        seconds: to compress; calibration included.
    """

    budget: str
    method: str
    accuracy: float
    distance: float
    operations: int
    packed_bytes: int
    seconds: float


BUDGETS = (
    Budget("95 % sparse", "magnitude", prune=Prune(0.95)),
    Budget("4 bits", "rtn", quantize=Quantize(4), tuned=False),
    Budget("90 % sparse, 4 bits", "magnitude", prune=Prune(0.90), quantize=Quantize(4), tuned=False),
)

TITLES = {
    "none": "dense",
    "magnitude": "magnitude",
    "rtn": "rounding",
    "obc": "M = I (OBC, GPTQ)",
    "one shot": "SBC, one shot",
    "sbc": "SBC, tuned",
}
ONE_SHOT = Calibration(tuning=0)


def measure(dense: nn.Module, data: digits.Digits, budgets: Sequence[Budget] = BUDGETS) -> Iterator[Row]:
    """The dense network's row, then for each budget those of its baseline, M = I, SBC in one shot, and SBC."""
    test = data.test.subset(slice(0, COMPARED)).batches(BATCH)
    recording = record_spikes(dense, test)
    yield _row("-", "none", network.accuracy(dense, data.test), recording.cost)
    for budget in budgets:
        for method in budget.methods:
            compressed, report = compress(
                dense,
                data.calibration.batches(BATCH),
                method="sbc" if method == "one shot" else method,
                prune=budget.prune,
                quantize=budget.quantize,
                calibration=DEFAULT if method == "sbc" else ONE_SHOT,
                progress=False,
            )
            comparison = compare(recording, compressed, test)
            accuracy = network.accuracy(compressed, data.test)
            yield _row(budget.title, method, accuracy, comparison.compressed, comparison.distance, report.seconds)


def _row(budget: str, method: str, accuracy: float, cost: Cost, distance: float = 0.0, seconds: float = 0.0) -> Row:
    operations = cost.operations.acs + cost.operations.macs
    return Row(budget, method, accuracy, distance, operations, cost.packed_bytes, seconds)


COLUMNS = """accuracy            digits recognised, of those held out: mean and standard error over the networks
spike distance      0: the same spikes as the dense network; 1: no better than no spikes at all
synaptic operations products of a weight and an input that are not zero, for each digit
size                of all weights, packed
seconds             to compress one network, calibration included
magnitude, rounding no Hessian: the smallest weights go, or each goes to the nearest code
M = I (OBC, GPTQ)   a second-order solver that does not know time
SBC, one shot       the same solver with the Hessian of the membrane
SBC, tuned          then up to 200 gradient steps towards the dense network's spikes, without labels"""


def render(rows: Sequence[Row]) -> str:
    """The table that people read; rows of several networks become their mean, with its standard error."""
    heads = ["budget", "method", "accuracy", "spike distance", "synaptic operations", "size", "seconds"]
    cells = []
    for budget, method in dict.fromkeys((row.budget, row.method) for row in rows):
        mine = [row for row in rows if (row.budget, row.method) == (budget, method)]
        scores = [row.accuracy for row in mine]
        error = f" ± {100 * stdev(scores) / math.sqrt(len(scores)):.1f}" if len(scores) > 1 else ""
        cells.append(
            [
                budget,
                TITLES[method],
                f"{fmean(scores):.1%}{error}",
                f"{fmean(row.distance for row in mine):.3f}",
                f"{fmean(row.operations for row in mine):,.0f}",
                f"{fmean(row.packed_bytes for row in mine) / 1000:.1f} kB",
                f"{fmean(row.seconds for row in mine):.1f}",
            ]
        )
    return "\n".join(table(heads, cells))


def summary(rows: Sequence[Row]) -> str:
    """Two sentences: what methods keep at the first budget, and how small the last one makes the weights.

    Args:
        rows: of one network or of several, with the dense network's.
    """

    def mean(name: str, budget: str, method: str) -> float:
        return fmean(getattr(row, name) for row in rows if (row.budget, row.method) == (budget, method))

    first, last = BUDGETS[0], BUDGETS[-1]
    kept = {method: f"{mean('accuracy', first.title, method):.1%}" for method in first.methods}
    dense, small = mean("accuracy", "-", "none"), mean("accuracy", last.title, "one shot")
    smaller = mean("packed_bytes", "-", "none") / mean("packed_bytes", last.title, "one shot")
    zeros = first.title.replace(" sparse", " of the weights zero")
    return (
        f"With {zeros}, SBC with tuning recognises {kept['sbc']} of the digits (dense: {dense:.1%}), in one shot "
        f"{kept['one shot']}, M = I {kept['obc']}, and magnitude {kept['magnitude']}.\n"
        f"With 90 % of the weights zero and the others in 4 bits, the weights are {smaller:.0f} times smaller, and SBC "
        f"recognises {small:.1%} in one shot."
    )


def run(seed: int | None = None, as_json: bool = False) -> None:
    """Print the whole table, as text or as JSON lines, for the network trained from ``seed``; None: for all five.

    Raises:
        CheckpointError: no network was trained from this seed.
    """
    data = digits.load()
    networks = {each: network.pretrained(each) for each in (SEEDS if seed is None else (seed,))}
    found: dict[int, list[Row]] = {}
    with tqdm(total=len(networks) * _row_count(), desc="demo", unit="row", leave=False, disable=None) as progress:
        for each, dense in networks.items():
            found[each] = []
            for row in measure(dense, data):
                found[each].append(row)
                progress.update()
    if as_json:
        for each, rows in found.items():
            for row in rows:
                print(json.dumps({"seed": each} | asdict(row)))
        return
    which = f"the network of seed {seed}" if seed is not None else f"means of {len(networks)} networks"
    print(
        f"Handwritten digits as saccade events, {data.test.x.shape[0]} steps; {which}. "
        f"Calibrated on {len(data.calibration)} sequences, measured on {len(data.test)} others.\n"
    )
    all_rows = [row for rows in found.values() for row in rows]
    print(f"{render(all_rows)}\n\n{COLUMNS}\n\n{summary(all_rows)}")


def _row_count() -> int:
    return 1 + sum(len(budget.methods) for budget in BUDGETS)
