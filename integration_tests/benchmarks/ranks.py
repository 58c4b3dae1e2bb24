"""One compression by 1 and 2 processes of `torch.distributed` on one machine, and what a cost model makes of more.

The network is 512-512-512-512-512-10 with random weights. It is calibrated on 1,600 sequences of random spikes (T = 10,
a fifth of the inputs spike) and pruned to 90 % zeros. Each process has one thread. *Measured* is the processor time of
the busiest rank, which does not count how long it waits, as the best of three runs. *Wall* is the time that passed, on
two cores that had other work to do, so it does not show what two free ones gain. The model takes its constants from the
run of one process:

    calibration(1) / W + max(solving(1) / W, dearest layer) + exchange(W)

where W is the number of ranks. All-reduce moves 2 (W - 1) / W times the sum of columns^2 * 8 bytes over each rank's
connection, and broadcasts move each layer's weight and mask once. The connection is taken for one of 1.25 GB/s
(10 Gbit/s). The first row fits by construction, so only the second one tests the model. There more is measured than
modelled; how much of that is work that ranks do not share, and how much the other load, was not measured apart.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import norse.torch as norse
import torch
import torch.distributed as dist
from torch import Tensor, nn

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin import Calibration, Prune, calibrate, compress

WIDTHS = (512, 512, 512, 512, 512, 10)
STEPS, BATCHES, SEQUENCES, RUNS, TUNING = 10, 50, 32, 3, 10
BANDWIDTH = 1.25e9  # bytes a second of one rank's connection
MEASURED, MODELLED = (1, 2), (1, 2, 8, 64)

T = TypeVar("T")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), norse.LIFBoxCell()]
        with torch.no_grad():
            layers[-2].weight.copy_((torch.randn(outputs, inputs) + 0.3) * 8 / inputs**0.5)  # so that all layers spike
    return norse.SequentialState(*layers)


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, SEQUENCES, WIDTHS[0])
    return [(torch.rand(shape, generator=generator) < 0.2).float() for _ in range(BATCHES)]


def lines() -> Iterator[Line]:
    """A line a number of ranks."""
    for count in MEASURED:
        runs = [_run(count) for _ in range(RUNS)]
        stages = [name for name in runs[0] if name != "layers"]
        best = {stage: round(min(run[stage] for run in runs), 3) for stage in stages}
        layers = min(runs, key=lambda run: run["compress_wall"])["layers"]
        yield {"ranks": count, **best, "layers": layers, "steps": TUNING, "commit": commit()}


def _run(count: int) -> dict[str, Any]:
    """What the first rank reports: seconds of each stage, and of each layer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "integration_tests.benchmarks.ranks", folder, str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(count)]
        if any([rank.wait() for rank in ranks]):
            raise RuntimeError(f"a rank of {count} failed")
        found: dict[str, Any] = torch.load(Path(folder) / "found.pt", weights_only=True)
        return found


def main(folder: str, count: int, rank: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if count > 1:
        store = dist.FileStore(str(Path(folder) / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    model, batches = network(), data()

    def compressed(steps: int) -> Any:
        settings = Calibration(tuning=steps)
        return compress(model, batches, prune=Prune(0.9, silent_first=False), calibration=settings, progress=False)

    _, report = compressed(0)  # warms up
    found: dict[str, Any] = {}
    for name, work in {
        "calibrate": lambda: calibrate(model, batches),
        "compress": lambda: compressed(0),
        "tuned": lambda: compressed(TUNING),
    }.items():
        result, seconds, wall = _timed(work)
        found |= {name: seconds, f"{name}_wall": wall}
        report = result[1] if name == "compress" else report
    if rank == 0:
        found["layers"] = [{"columns": row.columns, "rows": row.rows, "seconds": row.seconds} for row in report.layers]
        torch.save(found, Path(folder) / "found.pt")
    if count > 1:
        dist.destroy_process_group()


def _timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What the work returns, the busiest rank's processor seconds, and wall seconds until all are done."""
    _ready()
    started, wall = time.process_time(), time.perf_counter()
    result = work()
    busiest = torch.tensor(time.process_time() - started)
    if dist.is_initialized():
        dist.all_reduce(busiest, dist.ReduceOp.MAX)
    return result, float(busiest), time.perf_counter() - wall


def _ready() -> None:
    if dist.is_initialized():
        dist.barrier()


def modelled(alone: Line, count: int) -> dict[str, float]:
    """Seconds of so many ranks, by the cost model of the module's text.

    Args:
        alone: the line of one process.
        count: of ranks.
    """
    layers = alone["layers"]
    solving = alone["compress"] - alone["calibrate"]
    dearest = solving * max(layer["seconds"] for layer in layers) / sum(layer["seconds"] for layer in layers)
    summed = sum(8 * layer["columns"] ** 2 for layer in layers)
    sent = sum(5 * layer["columns"] * layer["rows"] for layer in layers) if count > 1 else 0
    model = {
        "calibration": alone["calibrate"] / count,
        "solving": max(dearest, solving / count),
        "exchange": (2 * (count - 1) / count * summed + sent) / BANDWIDTH,
    }
    return model | {"all": sum(model.values()), "megabytes": 2 * (count - 1) / count * summed / 1e6}


def table(found: list[Line]) -> str:
    """Measured and modelled seconds by ranks."""
    by_count = {line["ranks"]: line for line in found}
    rows = []
    for count in MODELLED:
        model, line = modelled(by_count[1], count), by_count.get(count, {})
        measured = [f"{line[name]:.2f}" if line else "" for name in ("calibrate", "compress", "compress_wall")]
        shown = [f"{model[name]:.2f}" for name in ("calibration", "solving", "all")]
        sums = [f"{model['megabytes']:.1f}", f"{model['exchange']:.3f}"]
        rows.append([str(count), shown[0], measured[0], shown[1], *sums, shown[2], *measured[1:]])
    heads = ["ranks", "calibration, model", "measured", "solving, model", "all-reduce, MB a rank", "exchange, model"]
    text = "Seconds."
    if len(by_count) > 1:
        more = [by_count[count]["tuned"] - by_count[count]["compress"] for count in MEASURED]
        text += (
            f" Tuning of {by_count[1]['steps']} steps, with its passes over the data to aim and to judge, takes "
            f"{more[0]:.1f} s more of processor with one process, {more[1]:.1f} s on each of two, which see twice the "
            "pieces."
        )
    return f"{tables.markdown([*heads, 'compress, model', 'measured', 'wall'], rows)}\n\n{text}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
