"""What summing a Hessian takes, beside the bare matrix product of the same samples.

Inputs of a step, 784 samples at a time as calibration meets them, are gathered and summed by the package; the bare
product is ``X^T X`` of 8,192 samples at once, in single precision and kept nowhere. One thread, processor seconds, the
best of five; random spikes, 15 % of them 1. Below 1 the package is faster than the product, because it computes half of
a symmetric matrix. At most 1.2 is the aim.
"""

import time
from collections.abc import Callable, Iterator

import torch

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin.calibration.collector import Reservoir, waiting
from sbc_plugin.core.accumulators import HessianAccumulator

COLUMNS = (64, 256, 576, 1152, 2304, 4608)
STEPS, SAMPLES, RATE, REPEATS = 4, 784, 0.15, 5
LAYERS = 156  # as many wait at the same time, in the largest network of `scale`


def lines(known: Known = lambda line: False) -> Iterator[Line]:
    """A line for each number of columns that has none yet."""
    settings, threads = digest([COLUMNS, STEPS, SAMPLES, RATE, REPEATS, LAYERS]), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for columns in COLUMNS:
            line = {"case": "accumulation", "ablation": "columns", "value": columns, "settings": settings}
            if not known(line):
                yield line | {"commit": commit()} | _measured(columns)
    finally:
        torch.set_num_threads(threads)


def _measured(columns: int) -> Line:
    generator = torch.Generator().manual_seed(columns)
    steps = [(torch.rand(1, SAMPLES, columns, generator=generator) < RATE).float() for _ in range(STEPS)]
    together = torch.cat(steps, dim=1)[0]
    batches = max(1, 2**34 // (columns**2 * len(together)))  # so that small layers can be timed, too

    def summed() -> None:
        accumulator = HessianAccumulator(columns)
        reservoir = Reservoir(lambda samples: accumulator.add(samples[0]), waiting=waiting(LAYERS, columns))
        for number in range(batches):
            for left, samples in enumerate(reversed(range(STEPS))):
                reservoir.add(steps[left], more=samples > 0)
            reservoir.end_batch(number)
        reservoir.flush()

    def multiplied() -> None:
        for _ in range(batches):
            together.mT @ together

    return {"summed seconds": _best(summed), "product seconds": _best(multiplied), "batches": batches}


def _best(work: Callable[[], None]) -> float:
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def table(found: list[Line]) -> str:
    """A row for each number of columns."""
    rows = [
        [
            f"{line['value']:,}",
            f"{1e3 * line['summed seconds'] / line['batches']:.2f}",
            f"{1e3 * line['product seconds'] / line['batches']:.2f}",
            f"{line['summed seconds'] / line['product seconds']:.2f}",
        ]
        for line in found
    ]
    return tables.markdown(["columns", "summed, ms a batch", "bare product, ms", "ratio"], rows)
