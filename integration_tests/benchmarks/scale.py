"""Networks of the sizes that are trained on ImageNet, from discovery to a saved file.

make bench CASE=scale                                             # all of them, about an hour on two cores
python -m integration_tests.benchmarks.run scale --quick          # SEW-ResNet18 at 64 px alone

Weights are random, BatchNorms are set so that 14 to 22 % of a neuron's steps spike, and 64 images of smooth noise are
shown four times: what matters here is time and memory, not accuracy. Each network is pruned to 80 % zeros and rounded
to 4 bits within ``Calibration(memory="6 GiB")``; *default* is `compress` as it is, which decides by itself whether it
tunes. Each line is measured in a process of its own. Seconds are of the stages that the report tells; *processor* adds
up all threads. *Peak* is the resident memory above that of the loaded network.
"""

import copy
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.effort import Effort, measured
from integration_tests.benchmarks.networks.large import LARGE, Large
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin import Calibration, Prune, Quantize, Report, compress, load, save
from sbc_plugin.torch_pruning import get_pruner

IMAGES, BATCH, SEED = 64, 4, 0
MEMORY = "6 GiB"
PRUNE, QUANTIZE = Prune(0.8), Quantize(4)
WAYS = {"one shot": Calibration(tuning=0, memory=MEMORY), "default": Calibration(memory=MEMORY)}
QUICK = "SEW-ResNet18, 64 px"
CHANNELS = (QUICK,)  # networks whose channels are cut as well
STAGES = ("model", "calibration", "budgets", "solving", "judging", "tuning")


@dataclass(frozen=True)
class Scale:
    """What to measure.

    Attributes:
        networks: names.
        images: of calibration.
        apart: measure each line in a process of its own.
    """

    networks: tuple[str, ...] = tuple(LARGE)
    images: int = IMAGES
    apart: bool = True


def lines(known: Known = lambda line: False, scale: Scale | None = None) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network and way."""
    scale = scale or Scale()
    settings = digest([str(WAYS), str(PRUNE), str(QUANTIZE), scale.images, BATCH])
    for name in scale.networks:
        ways = [*WAYS, *(["half of the channels"] if name in CHANNELS else [])]
        line = {"case": "scale", "network": name, "images": scale.images, "seed": SEED, "settings": settings}
        line |= {"commit": commit(), "threads": torch.get_num_threads()}
        for way in ways:
            if known(line | {"method": way}):
                continue
            asked = LARGE[name], way, scale.images
            yield line | {"method": way} | (_apart(*asked) if scale.apart else _measured(*asked))


def _apart(*asked: Any) -> Line:
    # memory that an earlier line has left with the allocator would not count in this process
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, initializer=_begun, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(_measured, *asked).result()


def _begun(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _measured(large: Large, way: str, images: int) -> Line:
    network, data = large.network(SEED), large.images(images, BATCH, SEED + 1)
    found = _compressed(network, data, way) if way in WAYS else _cut(network, data)
    return {"weights": sum(parameter.numel() for parameter in network.parameters())} | found


def _compressed(network: nn.Module, data: list[torch.Tensor], way: str) -> Line:
    def made() -> tuple[nn.Module, Report]:
        return compress(network, data, prune=PRUNE, quantize=QUANTIZE, calibration=WAYS[way], progress=False)

    (small, report), effort = measured(made)
    found: Line = _told(effort) | {f"{name} seconds": seconds for name, seconds in report.stages.items()}
    found |= {"layers": len(report.layers), "slowest layer": max(row.seconds for row in report.layers)}
    found |= {"sparsity": report.layer_sparsity, "tuning": report.settings["calibration"].tuning}
    found |= {"note": report.skipped.get("tuning", "")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        _, saving = measured(lambda: save(path, small, report))
        _, loading = measured(lambda: load(path, network))
        found |= {"file": path.stat().st_size, "save seconds": saving.seconds, "load seconds": loading.seconds}
    return found


def _cut(network: nn.Module, data: list[torch.Tensor]) -> Line:
    x = data[0][:, :1]

    def made() -> None:
        pruner = get_pruner("sbc", copy.deepcopy(network), x, calibration_data=data[:4], pruning_ratio=0.5)
        pruner.step()

    _, effort = measured(made)
    return _told(effort)


def _told(effort: Effort) -> dict[str, Any]:
    return {
        "seconds": effort.seconds,
        "processor_seconds": effort.processor_seconds,
        "peak_bytes": effort.peak_bytes,
    }


def table(found: list[Line]) -> str:
    """A row a network and way."""
    heads = ["network", "way", "weights, M", "layers", *(f"{name}, s" for name in STAGES), "all, s", "processor, s"]
    heads += ["slowest layer, s", "peak, GiB", "steps", "file, MB", "load, s"]
    rows = []
    for line in found:
        stages = [f"{line[f'{name} seconds']:.0f}" if f"{name} seconds" in line else "" for name in STAGES]
        rest = ["", "", "", ""]
        if "file" in line:
            tuning = "" if line["tuning"] is None else str(line["tuning"])
            rest = [f"{line['slowest layer']:.1f}", tuning, f"{line['file'] / 1e6:.1f}", f"{line['load seconds']:.1f}"]
        peak = "" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**30:.1f}"
        rows.append(
            [
                line["network"], line["method"], f"{line['weights'] / 1e6:.1f}", str(line.get("layers", "")), *stages,
                f"{line['seconds']:.0f}", f"{line['processor_seconds']:.0f}", rest[0], peak, *rest[1:],
            ]
        )  # fmt: skip
    return tables.markdown(heads, rows)
