"""Kill processes while they write: a target is absent, old or whole, and what was left beside goes with the next write.

``python -m integration_tests.strangers.kills 200`` kills so many, in turn while they write each kind of file.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import norse.torch as norse
import torch
from torch import nn

from sbc_plugin import Quantize, compress, load, save
from sbc_plugin.brevitas import export_onnx
from sbc_plugin.cli.parser import main
from sbc_plugin.nir import read, write
from sbc_plugin.torch_pruning import load_pruned, save_pruned

LONGEST = 3  # times what it takes to write a file: until a process is killed
CUTS = [("0", True, [1, 4])]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return norse.SequentialState(nn.Linear(40, 30 if seed >= 0 else 32), norse.LIFBoxCell(), nn.Linear(30, 10)).eval()


@dataclass(frozen=True)
class Writer:
    """One kind of file.

    Attributes:
        name: of the file.
        write: writes version 0 or 1 of it.
        check: raises if the file is not whole.
    """

    name: str
    write: Callable[[Path, int], Any]
    check: Callable[[Path], Any]


def _models() -> Writer:
    models = network(0), network(1)
    return Writer("a.safetensors", lambda path, i: save(path, models[i]), lambda path: load(path, network(2)))


def _pruned() -> Writer:
    def small(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(40, 28), nn.ReLU(), nn.Linear(28, 10))

    def whole() -> nn.Module:
        return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))

    models = small(0), small(1)
    return Writer(
        "b.safetensors",
        lambda path, i: save_pruned(path, models[i], CUTS),
        lambda path: load_pruned(path, whole(), torch.ones(1, 40)),
    )


def _graphs() -> Writer:
    models = network(0), network(1)
    return Writer("c.nir", lambda path, i: write(path, models[i]), read)


def _pages() -> Writer:
    """The command line: a page of results."""
    x = (torch.rand(6, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    report = compress(network(0), [x], quantize=Quantize(4), method="magnitude", progress=False)[1]
    source = Path(tempfile.mkdtemp(prefix="kills-")) / "report.json"
    texts = [json.dumps({"report": report.to_dict(), "evaluation": None, "model": name}) for name in ("first", "other")]

    def page(path: Path, version: int) -> None:
        source.write_text(texts[version])
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["report", str(source), "-o", str(path)]) in (0, None)

    def check(path: Path) -> None:
        assert path.read_text().rstrip().endswith("</html>")

    return Writer("d.html", page, check)


def _onnx() -> Writer:
    x = (torch.rand(6, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    models = [
        compress(network(i), [x], quantize=Quantize(4), method="magnitude", backend="brevitas", progress=False)[0]
        for i in range(2)
    ]

    def check(path: Path) -> None:
        import onnx

        onnx.checker.check_model(onnx.load(path))

    return Writer("e.onnx", lambda path, i: export_onnx(models[i], path, x), check)


WRITERS = {"models": _models, "pruned models": _pruned, "graphs": _graphs, "pages": _pages, "onnx": _onnx}


def kill_one(writer: Writer, folder: Path, seed: int, duration: float) -> str:
    """Kill a process at a random moment while it writes; how the target was found: "absent", "old" or "new".

    ``duration`` is what it takes to write the file, s.
    """
    chosen, path = random.Random(seed), folder / writer.name
    had = path.read_bytes() if path.exists() else None
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            for version in range(10**6):
                writer.write(path, version % 2)
        os._exit(1)
    time.sleep(chosen.uniform(0, LONGEST * duration))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "the process ended by itself"
    found = path.read_bytes() if path.exists() else None
    if found is not None:
        writer.check(path)
    return "absent" if found is None else "old" if found == had else "new"


def kill_some(writer: Writer, folder: Path, count: int) -> dict[str, int]:
    """How often each outcome was found; the next write leaves the target alone in its folder."""
    outcomes = {"absent": 0, "old": 0, "new": 0, "left beside": 0}
    writer.write(folder / writer.name, 0)  # once more than measured: the first time imports what is needed
    started = time.perf_counter()
    writer.write(folder / writer.name, 1)
    duration = time.perf_counter() - started
    for seed in range(count):
        outcomes[kill_one(writer, folder, seed, duration)] += 1
        outcomes["left beside"] += len(set(os.listdir(folder)) - {writer.name})
        if seed % 3 == 2:
            writer.write(folder / writer.name, seed % 2)
            assert os.listdir(folder) == [writer.name], os.listdir(folder)
            if seed % 2:
                (folder / writer.name).unlink()
    writer.write(folder / writer.name, 0)
    assert os.listdir(folder) == [writer.name], os.listdir(folder)
    writer.check(folder / writer.name)
    return outcomes


def main_loop(count: int) -> None:
    torch.set_num_threads(1)
    for name, make in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(name, kill_some(make(), Path(folder), count // len(WRITERS)), flush=True)


if __name__ == "__main__":
    main_loop(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
