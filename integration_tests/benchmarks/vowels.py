"""JapaneseVowels: nine speakers told apart by how they say two vowels; 12 cepstral coefficients, 7 to 29 steps.

The recordings come with the package aeon (``pip install aeon``) or lie in ``$SBC_DATA/JapaneseVowels``. Source:
Kudo, Toyama, Shimbo, Pattern Recognition Letters 20 (1999); UCI Machine Learning Repository.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from integration_tests.benchmarks import time_series
from integration_tests.benchmarks.splits import Split

STEPS, CHANNELS, SPEAKERS = 29, 12, 9


def read(path: Path) -> tuple[Tensor, Tensor]:
    """A ``.ts`` file: series (N, 29, 12), zero behind their end, and labels (N,) from 0."""
    series, labels = time_series.read(path)
    return torch.stack([functional.pad(one, (0, STEPS - one.shape[1])).mT for one in series]), labels


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
    place = time_series.folder("JapaneseVowels")
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
