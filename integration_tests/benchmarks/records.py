"""One JSON line a measurement, with what it was measured on.

A case whose lines tell ``settings`` (a digest of all that they depend on) is kept line by line: a run that was
interrupted goes on where it stopped, and a line is measured again when its settings have changed. Other cases are
replaced as a whole.
"""

import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from sbc_plugin.evaluation.evaluate import version_of

Line = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("norse", "torch-pruning", "brevitas")
PLACE = ("network", "ablation", "value", "seed", "budget", "method")  # a line is the only one of its case with these


@cache
def commit() -> str:
    """The commit that is checked out, short."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def environment() -> dict[str, Any]:
    """Versions, machine and commit, written beside the results."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version_of(name) for name in PACKAGES},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(case: str, lines: Iterable[Line], folder: Path = RESULTS) -> Path:
    """Write the lines of one case as they come, so that an interrupted run leaves what it measured; return the file.

    The lines go to a file of their own, which takes the place of the case's last results at the end.
    """
    path, partial = folder / f"{case}.jsonl", folder / f"{case}.partial.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with partial.open("w") as file:
        for line in lines:
            file.write(json.dumps({"case": case} | line) + "\n")
            file.flush()
    partial.replace(path)
    _note_environment(case, folder)
    return path


def resume(
    case: str, lines: Callable[[Callable[[Line], bool]], Iterable[Line]], folder: Path = RESULTS, *, again: bool = False
) -> Path:
    """Measure what a case has no line for yet, and keep each line as it comes; return the file.

    Args:
        case: name of the file.
        lines: called with ``known(line)``, which tells whether a line of the same seed, budget, method and settings is
            there; yields the lines that are missing. Each takes the place of an older one of the same ``PLACE``.
        folder: of the files.
        again: know no line, so that all are measured anew.
    """
    path = folder / f"{case}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {_place(line): line for line in read(case, folder)}

    def known(line: Line) -> bool:
        return not again and kept.get(_place(line), {}).get("settings") == line["settings"]

    for line in lines(known):
        kept.pop(_place(line), None)
        kept[_place(line)] = line
        partial = folder / f"{case}.partial.jsonl"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept.values()))
        partial.replace(path)  # whole files only: an interruption leaves the old one or the new one
        _note_environment(case, folder)
    return path


def _place(line: Line) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in PLACE)


def _note_environment(case: str, folder: Path) -> None:
    environments, partial = folder / "environment.json", folder / "environment.partial.json"
    with FileLock(folder / "environment.lock"):  # cases may run side by side
        known = json.loads(environments.read_text()) if environments.exists() else {}
        partial.write_text(json.dumps(dict(sorted((known | {case: environment()}).items())), indent=1) + "\n")
        partial.replace(environments)


def read(case: str, folder: Path = RESULTS) -> list[Line]:
    """The lines of a case; none if it was never run."""
    path = folder / f"{case}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
