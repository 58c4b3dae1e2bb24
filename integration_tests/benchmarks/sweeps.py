"""How one shot's time and memory grow: with the columns of a layer, the steps of a sequence, and the sequences.

A network columns-128-10 of LIFBox neurons on random spikes (10 %), pruned to 90 % zeros and rounded to 4 bits,
`Calibration(tuning=0)`; one thread, the best of three. One of the three is varied at a time, from 512 columns, 20 steps
and 256 sequences in batches of 32. Seconds are of the processor. The peak is above what was resident before; the data
is held by who calls, and is not part of it.
"""

from collections.abc import Iterator
from functools import partial

import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import nn

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.effort import measured
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin import Calibration, Prune, Quantize, compress

START = {"columns": 512, "steps": 20, "sequences": 256}
SWEEPS = {
    "columns": (128, 256, 512, 1024, 2048, 4096),
    "steps": (5, 20, 80, 320),
    "sequences": (64, 256, 1024, 4096),
}
REPEATS, BATCH, RATE = 3, 32, 0.1


def lines(known: Known = lambda line: False) -> Iterator[Line]:
    """Measure what is not known yet: a line of each sweep and value."""
    settings = digest([START, SWEEPS, REPEATS, BATCH, RATE])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for sweep, values in SWEEPS.items():
            for value in values:
                line = {"case": "sweeps", "ablation": sweep, "value": value, "settings": settings}
                if not known(line):
                    yield line | {"commit": commit()} | _measured(**START | {sweep: value})
    finally:
        torch.set_num_threads(threads)


def _measured(columns: int, steps: int, sequences: int) -> Line:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((columns, 128), (128, 10)):
        linear = nn.Linear(inputs, outputs, bias=False)
        linear.weight.data *= 20
        layers += [linear, LIFBoxCell()]
    network = SequentialState(*layers)
    shape = (steps, BATCH, columns)
    data = [(torch.rand(shape) < RATE).float() for _ in range(sequences // BATCH)]
    work = partial(
        compress, network, data, prune=Prune(0.9), quantize=Quantize(4), calibration=Calibration(tuning=0),
        progress=False,
    )  # fmt: skip
    found = [measured(work)[1] for _ in range(REPEATS)]
    return {
        "sweep_seconds": min(effort.processor_seconds for effort in found),
        "sweep_bytes": None if found[0].peak_bytes is None else max(effort.peak_bytes or 0 for effort in found),
    }


def table(found: list[Line]) -> str:
    """A row a value."""
    heads = ["varied", "", "value", "processor, s", "peak, MiB"]
    rows = [
        [
            line["ablation"],
            "",
            f"{line['value']:,}",
            f"{line['sweep_seconds']:.2f}",
            "" if line["sweep_bytes"] is None else f"{line['sweep_bytes'] / 2**20:.0f}",
        ]
        for line in found
    ]
    return tables.markdown(heads, rows)
