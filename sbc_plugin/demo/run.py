"""What compression does to the demo's network: every budget, by every method, on held-out digits."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from torch import nn
from tqdm import tqdm

from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.compression.compress import compress
from sbc_plugin.demo import digits, network
from sbc_plugin.evaluation.comparison import compare, record_spikes
from sbc_plugin.evaluation.operations import Cost
from sbc_plugin.evaluation.text import table
from sbc_plugin.settings import Calibration, Prune, Quantize

BATCH = 100  # sequences


@dataclass(frozen=True)
class Budget:
    """What every method is allowed to keep.

    Attributes:
        title: as the table shows it.
        baseline: the method of :func:`sbc_plugin.compress` that uses no Hessian: "magnitude" or "rtn".
        prune: how many weights go, if any.
        quantize: the grid, if any.
    """

    title: str
    baseline: str
    prune: Prune | None = None
    quantize: Quantize | None = None


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
    Budget("90 % sparse", "magnitude", prune=Prune(0.90)),
    Budget("95 % sparse", "magnitude", prune=Prune(0.95)),
    Budget("4 bits", "rtn", quantize=Quantize(4)),
    Budget("2 bits", "rtn", quantize=Quantize(2)),
    Budget("90 % sparse, 4 bits", "magnitude", prune=Prune(0.90), quantize=Quantize(4)),
)

TITLES = {
    "none": "dense",
    "magnitude": "magnitude",
    "rtn": "rounding",
    "obc": "M = I (OBC, GPTQ)",
    "one shot": "SBC, one shot",
    "sbc": "SBC",
}
ONE_SHOT = Calibration(tuning=0)


def measure(dense: nn.Module, data: digits.Digits, budgets: Sequence[Budget] = BUDGETS) -> Iterator[Row]:
    """The dense network's row, then for each budget those of its baseline, M = I, SBC in one shot, and SBC."""
    test = data.test.batches(BATCH)
    recording = record_spikes(dense, test)
    yield _row("-", "none", network.accuracy(dense, data.test), recording.cost)
    for budget in budgets:
        for method in (budget.baseline, "obc", "one shot", "sbc"):
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


def render(rows: Sequence[Row]) -> str:
    """The table that people read."""
    heads = ["budget", "method", "accuracy", "spike distance", "synaptic operations", "size", "seconds"]
    cells = [
        [
            row.budget,
            TITLES[row.method],
            f"{row.accuracy:.1%}",
            f"{row.distance:.3f}",
            f"{row.operations:,}",
            f"{row.packed_bytes / 1000:.1f} kB",
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    return "\n".join(table(heads, cells))


def run(seed: int = 0, as_json: bool = False) -> None:
    """Print the whole table, as text or as JSON lines, for the network trained from ``seed``.

    Raises:
        CheckpointError: no network was trained from this seed.
    """
    dense = network.pretrained(seed)
    data = digits.load()
    total = 1 + 4 * len(BUDGETS)
    rows = list(tqdm(measure(dense, data), total=total, desc="demo", unit="row", leave=False, disable=None))
    if as_json:
        for row in rows:
            print(json.dumps({"seed": seed} | asdict(row)))
        return
    print(
        f"Handwritten digits as saccade events, {data.test.x.shape[0]} steps; network of seed {seed}. "
        f"Calibrated on {len(data.calibration)} sequences, measured on {len(data.test)} others.\n"
    )
    print(render(rows))
