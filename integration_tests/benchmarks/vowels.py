"""JapaneseVowels: nine speakers told apart by how they say two vowels; 12 cepstral coefficients, 7 to 29 steps.

The recordings come with the package aeon (``pip install aeon``) or lie in ``$SBC_DATA/JapaneseVowels``. aeon itself is
not imported: it wants another numpy than this project's environment may have, and its files are plain text. Source:
Kudo, Toyama, Shimbo, Pattern Recognition Letters 20 (1999); UCI Machine Learning Repository.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from integration_tests.benchmarks.splits import Split

STEPS, CHANNELS, SPEAKERS = 29, 12, 9


def folder() -> Path:
    """Where the two files are.

    Raises:
        FileNotFoundError: nowhere; says how to get them.
    """
    places = [Path(os.environ["SBC_DATA"]) / "JapaneseVowels"] if "SBC_DATA" in os.environ else []
    package = find_spec("aeon")
    if package is not None and package.submodule_search_locations:
        places.append(Path(package.submodule_search_locations[0]) / "datasets" / "data" / "JapaneseVowels")
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError("no JapaneseVowels; pip install aeon, or put its folder JapaneseVowels into $SBC_DATA")


def read(path: Path) -> tuple[Tensor, Tensor]:
    """A ``.ts`` file: series (N, 29, 12), zero behind their end, and labels (N,) from 0."""
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().lower() == "@data")
    series, labels = [], []
    for line in filter(None, lines[start + 1 :]):
        *channels, label = line.split(":")
        values = torch.tensor([[float(value) for value in channel.split(",")] for channel in channels])
        series.append(torch.nn.functional.pad(values, (0, STEPS - values.shape[1])).mT)
        labels.append(int(label) - 1)
    return torch.stack(series), torch.tensor(labels)


def standardised(series: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Series (N, 29, 12) with each coefficient in its deviations from the mean; zero behind their end, as before."""
    return (series - mean) / deviation * series.ne(0).any(2, keepdim=True)


def sequences(series: Tensor) -> Tensor:
    """Series (N, 29, 12) with time first, (29, N, 12)."""
    return series.transpose(0, 1)


def load() -> Split:
    """The published 270 training series, all of which calibrate, and 370 test series of the same speakers.

    Raises:
        FileNotFoundError: the data are not there.
    """
    place = folder()
    series, labels = read(place / "JapaneseVowels_TRAIN.ts")
    held_out, held_out_labels = read(place / "JapaneseVowels_TEST.ts")
    spoken = series[series.ne(0).any(2)]  # (steps of all series, 12): without the zeros behind their ends
    mean, deviation = spoken.mean(0), spoken.std(0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the file is sorted by speaker
    return Split(
        (standardised(series, mean, deviation)[order], labels[order]),
        (standardised(held_out, mean, deviation), held_out_labels),
        sequences,
        calibrating=len(labels),
    )
