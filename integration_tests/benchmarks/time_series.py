"""Time series with classes, from the files that come with the package aeon or lie in ``$SBC_DATA``.

aeon itself is not imported: it wants another numpy than this project's environment may have, and its files are plain
text.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


def folder(name: str) -> Path:
    """Where the two files of a data set are.

    Raises:
        FileNotFoundError: nowhere; says how to get them.
    """
    places = [Path(os.environ["SBC_DATA"]) / name] if "SBC_DATA" in os.environ else []
    package = find_spec("aeon")
    if package is not None and package.submodule_search_locations:
        places.append(Path(package.submodule_search_locations[0]) / "datasets" / "data" / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no {name}; pip install aeon, or put its folder {name} into $SBC_DATA")


def read(path: Path) -> tuple[list[Tensor], Tensor]:
    """A ``.ts`` file: series (channels, steps), each as long as it is, and labels (N,) from 0 in their sorted order."""
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().lower() == "@data")
    series, labels = [], []
    for line in filter(None, lines[start + 1 :]):
        *channels, label = line.split(":")
        series.append(torch.tensor([[float(value) for value in channel.split(",")] for channel in channels]))
        labels.append(label)
    order = sorted(set(labels))
    return series, torch.tensor([order.index(label) for label in labels])
