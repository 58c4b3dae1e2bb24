"""Read mutated files, and report on what was neither read right nor refused: raw errors, time, memory, other files."""

import argparse
import ctypes
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy
import torch
from torch import nn

from sbc_plugin import load, read_spikes
from sbc_plugin.cli.spike_files import Batches
from sbc_plugin.errors import CompressionError
from sbc_plugin.nir import read
from sbc_plugin.torch_pruning import load_pruned

MOST_SECONDS, MOST_BYTES = 20.0, 2**30
SMALL = 10**6  # values of an input with which a network that was read is run
MODULE = "integration_tests.strangers.mutations"
Maker = Callable[[str, int, Path], Path]


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        result: "read", "refused", or what went wrong.
        seconds: that it took.
        size: bytes of memory above what the process held before.
    """

    result: str
    seconds: float
    size: int

    @property
    def fine(self) -> bool:
        right = self.result in ("read", "refused")
        return right and self.seconds <= MOST_SECONDS and self.size <= MOST_BYTES


def examine(path: Path) -> Outcome:
    """Read a mutated file in every way that it can be read in."""
    started, base = time.perf_counter(), _memory(reset=True)
    with _opened_elsewhere(path) as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [_result(way) for way in _ways(path)]
    wrong = [result for result in results if result not in ("read", "refused")]
    wrong += [f"opened {name}" for name in opened]
    result = wrong[0] if wrong else "read" if "read" in results else "refused"
    return Outcome(result, time.perf_counter() - started, max(0, _memory() - base))


def _result(way: Callable[[], Any]) -> str:
    try:
        way()
    except CompressionError:
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "read"


def _ways(path: Path) -> list[Callable[[], Any]]:
    if path.suffix == ".nir":
        return [lambda: _run(path, read(path))]
    if path.suffix == ".safetensors":
        from integration_tests.strangers.mutations import networks

        first, second = networks()
        ways: list[Callable[[], Any]] = [lambda: load(path)]
        ways += [_into(path, model) for model in (first, second)]
        return [*ways, lambda: load_pruned(path, networks()[1], torch.ones(1, 1, 6, 6))]
    return [lambda: list(Batches(*read_spikes(path), 2))]


def _into(path: Path, model: nn.Module) -> Callable[[], Any]:
    """Load into a model; after an error it must be as it was."""

    def way() -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        parameters = [getattr(module, "p", None) for module in model.modules()]
        try:
            load(path, model)
        except CompressionError:
            after = model.state_dict()
            same = after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
            if not same or any(
                a is not getattr(m, "p", None) for a, m in zip(parameters, model.modules(), strict=True)
            ):
                raise AssertionError("the model is not as it was") from None
            raise
        stored, held = load(path).tensors, model.state_dict()
        assert all(torch.equal(held[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in stored.items())

    return way


def _run(path: Path, network: Any) -> None:
    """A network that was read runs, and its weights are those that nir itself reads."""
    with numpy.errstate(all="ignore"):  # of shapes that overflow where nothing uses them
        graph = nir.read(path, type_check=False)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Linear | nir.Affine | nir.Conv1d | nir.Conv2d):
            expected = torch.from_numpy(numpy.asarray(node.weight).astype(numpy.float32))
            assert torch.equal(network.module_of(name).weight, expected), f"the weight of {name!r} is another"
    shape = network.input_shape
    if torch.Size(shape).numel() < SMALL:
        with torch.no_grad():
            _, state = network(torch.ones(2, *shape))
            network(torch.ones(2, *shape), state)


def _memory(reset: bool = False) -> int:
    """The most that this process has held since the last reset, bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return _memory()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


_AUDITED: list[list[str]] = []  # lists to which Python's own opens are added


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _AUDITED and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(arguments[0])
        if not name.startswith((sys.prefix, sys.base_prefix, "/proc/")) and not name.endswith((".py", ".pyc", ".so")):
            _AUDITED[-1].append(name)


sys.addaudithook(_audit)


@contextmanager
def _opened_elsewhere(path: Path) -> Iterator[list[str]]:
    """Names of other files that are opened inside the block: by Python, and, of the folder "outside", by anyone."""
    opened: list[str] = []
    seen: list[str] = []
    watch, libc = -1, None
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        watch = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(watch, os.fsencode(path.parent / "outside"), 0x20)  # IN_OPEN
    _AUDITED.append(seen)
    try:
        yield opened
    finally:
        _AUDITED.pop()
        opened += [name for name in seen if Path(name).is_file() and Path(name).absolute() != path.absolute()]
        if watch >= 0:
            with suppress(BlockingIOError):
                opened += ["a file outside"] if os.read(watch, 4096) else []
            os.close(watch)


def report_on(arguments: Sequence[str], kinds: Sequence[str], make: Maker) -> int:
    """The command line: examine files, print what went wrong, and the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many files (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "SEED"), help="a single file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.only:
            kind, seed = options.only
            print(examine(make(kind, int(seed), Path(folder))))
            return 0
        if options.worker:
            _work(range(options.first, options.first + options.count), kinds, make, Path(folder))
            return 0
    return _supervise(range(options.first, options.first + options.count), kinds)


def _work(numbers: range, kinds: Sequence[str], make: Maker, folder: Path) -> None:
    """One file after the other; a line before and after each, so that it is known which one ended the process."""
    for number in numbers:
        path = make(kinds[number % len(kinds)], number // len(kinds), folder)
        print(f"{number} begins", flush=True)
        outcome = examine(path)
        print(f"{number} {outcome.seconds:.3f} {outcome.size} {outcome.result!r}", flush=True)


def _supervise(numbers: range, kinds: Sequence[str]) -> int:
    """Let another process do it, and start it anew behind a file that ends it or takes too long."""
    started, outcomes, following = time.perf_counter(), {}, numbers.start
    while following < numbers.stop:
        for number, outcome in _outcomes(range(following, numbers.stop)):
            outcomes[number], following = outcome, number + 1
            if not outcome.fine:
                _show(number, outcome, kinds)
    slowest = max(outcomes, key=lambda number: outcomes[number].seconds)
    largest = max(outcomes, key=lambda number: outcomes[number].size)
    counted = Counter(outcome.result if outcome.fine else "wrong" for outcome in outcomes.values())
    print(f"{len(outcomes):,} files in {time.perf_counter() - started:.0f} s: {dict(counted)}")
    for name, number in (("slowest", slowest), ("largest", largest)):
        _show(number, outcomes[number], kinds, name)
    return int(counted["wrong"] > 0)


def _show(number: int, outcome: Outcome, kinds: Sequence[str], what: str = "wrong") -> None:
    kind, seed = kinds[number % len(kinds)], number // len(kinds)
    print(f"{what}: {outcome.result} ({outcome.seconds:.2f} s, {outcome.size / 2**20:.0f} MiB)", flush=True)
    print(f"  python -m {MODULE} --only {kind} {seed}", flush=True)


def _outcomes(numbers: range) -> Iterator[tuple[int, Outcome]]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        MODULE,
        str(len(numbers)),
        "--first",
        str(numbers.start),
        "--worker",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
        lines: queue.Queue[str] = queue.Queue()

        def listen() -> None:
            for line in worker.stdout or ():
                lines.put(line)
            lines.put("")

        threading.Thread(target=listen, daemon=True).start()
        begun, since = numbers.start, time.perf_counter()
        while True:
            try:
                line = lines.get(timeout=3 * MOST_SECONDS)
            except queue.Empty:
                worker.kill()
                yield begun, Outcome("no answer", time.perf_counter() - since, 0)
                return
            if not line:
                if worker.wait():
                    yield begun, Outcome(f"the process ended by {worker.returncode}", time.perf_counter() - since, 0)
                return
            number, *rest = line.split(maxsplit=3)
            if rest[0] == "begins":
                begun, since = int(number), time.perf_counter()
            else:
                yield int(number), Outcome(rest[2].strip().strip("'\""), float(rest[0]), int(rest[1]))
                begun = int(number) + 1
