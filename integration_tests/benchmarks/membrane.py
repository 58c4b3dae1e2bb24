"""Membranes of few bits in the demo's five networks, weights untouched: what the neurons' own states cost on a chip."""

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from integration_tests.benchmarks import tables
from sbc_plugin import compare
from sbc_plugin.demo import digits, network
from sbc_plugin.norse import quantize_membranes

SEEDS = range(5)
BITS = (16, 12, 8, 6, 4)
SCALES = {"absmax": "holds the whole range", "mae": "least mean absolute error"}


def lines(seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line for each seed, width and rule for the step: accuracy and spike distance on held-out digits."""
    data = digits.load()
    known, held_out = data.calibration.batches(100), data.test.batches(300)
    for seed in tqdm(seeds, desc="membrane", unit="seed", leave=False, disable=None):
        dense = network.pretrained(seed)
        yield {"seed": seed, "bits": 32, "step": "", "accuracy": network.accuracy(dense, data.test)}
        for bits in BITS:
            for scale in SCALES:
                model, report = quantize_membranes(dense, bits, calibration_data=known, scale=scale)
                yield {
                    "seed": seed,
                    "bits": bits,
                    "step": scale,
                    "accuracy": network.accuracy(model, data.test),
                    "distance": compare(dense, model, held_out).distance,
                    "saturated": tables.mean([row.saturated for row in report.states]),
                }


def table(found: list[dict[str, Any]]) -> str:
    """Accuracy, spike distance and saturated fraction of each width and rule, means over seeds with standard errors."""
    rows = []
    for bits, step in dict.fromkeys((line["bits"], line["step"]) for line in found):
        mine = [line for line in found if (line["bits"], line["step"]) == (bits, step)]
        cells = [f"{bits}", SCALES[step]] if step else ["32, floating point", ""]
        cells.append(tables.spread([100 * line["accuracy"] for line in mine]))
        if step:
            cells.append(tables.spread([line["distance"] for line in mine], 4))
            cells.append(f"{100 * tables.mean([line['saturated'] for line in mine]):.2f}")
        rows.append(cells + [""] * (5 - len(cells)))
    return tables.markdown(["bits of v", "step", "accuracy, %", "spike distance", "saturated, %"], rows)
