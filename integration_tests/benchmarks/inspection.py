"""What ``inspect`` tells before, beside what ``compress`` then takes: to 90 % zeros and 4 bits, seed 0.

Both are wall time on one machine, one after the other. *One shot* is ``Calibration(tuning=0)``, told without the
seconds that are told for tuning: the passes over the data that serve tuning are still in it, so it takes less than is
told. A factor of two is promised for the default.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.demo.run import ONE_SHOT
from sbc_plugin.evaluation.inspection import inspect

SEED = 0
PRUNE, QUANTIZE = Prune(0.9), Quantize(4)
WAYS = {"one shot": ONE_SHOT, "default": Calibration()}


@dataclass(frozen=True)
class Estimates:
    """What to measure: the networks, by name."""

    networks: tuple[str, ...] = tuple(SUBJECTS)


def lines(known: Known = lambda line: False, estimates: Estimates | None = None) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network and way."""
    settings = digest([str(WAYS), str(PRUNE), str(QUANTIZE)])
    for name in (estimates or Estimates()).networks:
        line = {"case": "inspection", "network": name, "seed": SEED, "settings": settings}
        if all(known(line | {"method": way}) for way in WAYS):
            continue
        subject = SUBJECTS[name]
        case, model = subject.case, subject.trained(SEED)
        data = list(subject.parts(SEED).calibration.batches(subject.batch))
        run = partial(compress, model, data, prune=PRUNE, quantize=QUANTIZE, forward=case.forward, progress=False)
        run(calibration=ONE_SHOT)  # what a process pays once is not told
        told = inspect(model, data, forward=case.forward)
        assert told.seconds is not None
        tuning = told.tuning or 0.0
        for way, calibration in WAYS.items():
            started = time.perf_counter()
            run(calibration=calibration)
            took = time.perf_counter() - started
            expected = told.seconds - (tuning if way == "one shot" else 0)
            yield line | {"method": way, "told": round(expected, 2), "took": round(took, 2), "commit": commit()}


def table(found: list[Line]) -> str:
    """A row for each network: told and taken, by way."""
    heads = ["network", *(f"{way}, {what}" for way in WAYS for what in ("told, s", "took, s", "ratio"))]
    rows = []
    for name in dict.fromkeys(line["network"] for line in found):
        ways = {line["method"]: line for line in found if line["network"] == name}
        row = [name]
        for line in (ways.get(way) for way in WAYS):
            cells = (
                [f"{line['told']:.1f}", f"{line['took']:.1f}", f"{line['told'] / line['took']:.2f}"]
                if line
                else [""] * 3
            )
            row += cells
        rows.append(row)
    return tables.markdown(heads, rows)
