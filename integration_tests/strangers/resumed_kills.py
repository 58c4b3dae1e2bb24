"""Kill compressions that keep a checkpoint, at random moments, start them again, and compare with undisturbed ones.

``python -m integration_tests.strangers.resumed_kills 200`` kills so many, in turn in compressions of every kind.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from integration_tests.models.resumed import RUNS, assert_same, compressed
from sbc_plugin.compression import journal

MOST = 100  # kills of one compression; each start gets further, unless it is killed before it could


def child(work: Callable[[], object]) -> int:
    """A process that does the work, and ends with 0 when it is done."""
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return process


def kill_until_done(name: str, folder: Path, seed: int, most: int = MOST) -> int:
    """Start a compression and kill it until it gets to its end, or was killed so often; how often that was."""
    chosen = random.Random(seed)
    started = time.perf_counter()
    wanted = compressed(name)
    duration = time.perf_counter() - started
    kills = 0
    while kills < most:
        torch.manual_seed(kills)  # a start knows nothing of the one before it
        process = child(lambda: compressed(name, checkpoint=folder))
        time.sleep(chosen.uniform(0.2, 1.2) * duration)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, f"{name}, seed {seed}: a start after {kills} kills failed"
            break
        kills += 1
    assert_same(compressed(name, checkpoint=folder), wanted)
    return kills


def main_loop(count: int) -> None:
    torch.set_num_threads(1)
    journal.SECONDS, journal.SHARE = 0.0, 0
    done, seed, names = 0, 0, list(RUNS)
    while done < count:
        name = names[seed % len(names)]
        with tempfile.TemporaryDirectory() as folder:
            kills = kill_until_done(name, Path(folder) / "job", seed, min(MOST, count - done))
        print(f"{name}, seed {seed}: the same bits after {kills} kills", flush=True)
        done, seed = done + kills, seed + 1


if __name__ == "__main__":
    main_loop(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
