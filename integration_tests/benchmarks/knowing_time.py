"""What a Hessian that knows time is worth, with and without tuning after it: SBC against M = I on all networks.

Both are `compress` with the same settings but for ``Calibration(temporal=...)``: the solvers alone, and the default,
which decides by itself whether it tunes. *Gain* is the accuracy of SBC less that of M = I, in points, paired sequence
by sequence; ± is its standard error over test sequences, for the given networks. A gain counts where it is more than
twice that.
"""

import math
from collections.abc import Iterator

from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest, weights_digest
from integration_tests.benchmarks.budget import Network
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS
from sbc_plugin import Calibration, Prune, Quantize

SEEDS = (0, 1, 2)
NAMES = tuple(name for name in SUBJECTS if name != "mnist-autoencoder")  # which has no classes
BUDGETS = {"90 % sparse": {"prune": Prune(0.9)}, "3 bits": {"quantize": Quantize(3)}}
WAYS = {"one shot": 0, "default": None}  # steps of tuning


def lines(known: Known = lambda line: False, names: tuple[str, ...] = NAMES) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network, seed, budget and way, with the answers of both."""
    cases = [(name, seed) for seed in SEEDS for name in names]
    for name, seed in tqdm(cases, desc="knowing time", unit="network", leave=False, disable=None):
        network = None
        mark = digest([weights_digest(SUBJECTS[name].trained(seed)), 1])
        for budget, settings in BUDGETS.items():
            for way, steps in WAYS.items():
                place = {"network": name, "seed": seed, "budget": budget, "method": way, "settings": mark}
                if known(place):
                    continue
                network = network or Network(SUBJECTS[name], seed)
                timed, flat = (
                    network.right(network.made(Calibration(temporal=temporal, tuning=steps), **settings))
                    for temporal in (True, False)
                )
                yield place | {
                    "commit": commit(),
                    "accuracy": float(timed.mean()),
                    "without": float(flat.mean()),
                    "differs": float((timed - flat).square().mean()),
                    "tested": len(timed),
                    "dense": float(network.right(network.dense).mean()),
                }


def _gain(found: list[Line]) -> tuple[float, float]:
    """The mean gain in points over seeds, and its standard error over test sequences."""
    gains = [100 * (line["accuracy"] - line["without"]) for line in found]
    squares = [
        (100**2 * line["differs"] - gain**2) / (line["tested"] - 1) for line, gain in zip(found, gains, strict=True)
    ]
    return tables.mean(gains), math.sqrt(sum(max(each, 0.0) for each in squares)) / len(found)


def table(found: list[Line]) -> str:
    """A row of each network and budget; then where knowing time counts."""
    rows, counts = [], {way: [0, 0, 0] for way in WAYS}
    for name, budget in dict.fromkeys((line["network"], line["budget"]) for line in found):
        row = [name, budget]
        for way in WAYS:
            here = [line for line in found if (line["network"], line["budget"], line["method"]) == (name, budget, way)]
            if not here:
                row += ["", "", ""]
                continue
            gain, noise = _gain(here)
            counts[way][0 if gain > 2 * noise else 2 if gain < -2 * noise else 1] += 1
            lost = [[100 * (line["dense"] - line[key]) for line in here] for key in ("accuracy", "without")]
            row += [*map(tables.spread, lost), f"{gain:+.1f} ± {noise:.1f}"]
        rows.append(row)
    heads = [f"{what}, {way}" for way in WAYS for what in ("lost, SBC", "lost, M = I", "gain")]
    told = "; ".join(
        f"{way}: SBC is ahead beyond the noise in {ahead} of {ahead + level + behind} cases, behind in {behind}"
        for way, (ahead, level, behind) in counts.items()
    )
    return f"{tables.markdown(['network', 'budget', *heads], rows)}\n\n{told[0].upper()}{told[1:]}."
