"""One JSON line a measurement, with what it was measured on; running a case replaces its file as a whole."""

import json
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("norse", "torch-pruning", "brevitas")


def environment() -> dict[str, Any]:
    """Versions, machine and commit, written beside the results."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return {
        "commit": commit.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def write(case: str, lines: Iterable[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write the lines of one case as they come, so that an interrupted run leaves what it measured; return the file.

    The lines go to a file of their own, which takes the place of the case's last results at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{case}.jsonl", folder / f"{case}.partial.jsonl"
    with partial.open("w") as file:
        for line in lines:
            file.write(json.dumps({"case": case} | line) + "\n")
            file.flush()
    partial.replace(path)
    environments = folder / "environment.json"
    known = json.loads(environments.read_text()) if environments.exists() else {}
    environments.write_text(json.dumps(dict(sorted((known | {case: environment()}).items())), indent=1) + "\n")
    return path


def read(case: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of a case; none if it was never run."""
    path = folder / f"{case}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
