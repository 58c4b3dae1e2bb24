"""Small data sets of several kinds as sequences: tables, time series, tactile recordings, images.

Each function takes a number of steps and returns inputs (T, N, ...) and labels (N,), in the files' order. What chance
decides is drawn from torch's global generator.
"""

import gzip
import os
import pickle
from pathlib import Path

import numpy
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional

from integration_tests.benchmarks import braille, fashion, time_series

Sequences = tuple[Tensor, Tensor]
LETTERS = "braille27/tutorial5_braille_spiking_data.pkl.gz"
IMAGES = 1_500  # of Fashion-MNIST, before other classes are left out


def rates(values: Tensor, steps: int) -> Tensor:
    """Values from 0 to 1 as the chance of a spike in each step."""
    return (torch.rand(steps, *values.shape) < values).float()


def latencies(values: Tensor, steps: int) -> Tensor:
    """One spike for each value from 0 to 1, the larger the sooner, and one for what it lacks of 1: (T, N, 2 F)."""
    both = torch.cat([values, 1 - values], 1)
    return functional.one_hot(((1 - both) * (steps - 1)).round().long(), steps).movedim(-1, 0).float()


def table(name: str) -> Sequences:
    """A table of scikit-learn's (N, F), each column ranked, so that it is spread evenly from 0 to 1; and its labels."""
    found = getattr(datasets, f"load_{name}")()
    ranks = torch.from_numpy(found.data).float().argsort(0).argsort(0)
    return ranks / (len(ranks) - 1), torch.from_numpy(found.target).long()


def breast_cancer(steps: int) -> Sequences:
    """Two classes, 30 columns, as latencies."""
    values, labels = table("breast_cancer")
    return latencies(values, steps), labels


def wine(steps: int) -> Sequences:
    """Three classes, 13 columns, as rates."""
    values, labels = table("wine")
    return rates(torch.cat([values, 1 - values], 1), steps), labels


def series(name: str, steps: int) -> Sequences:
    """Time series of aeon's, standardised, as currents."""
    values, labels = resized(name, steps)
    return standardised(values).permute(2, 0, 1), labels


def profiles(name: str, steps: int) -> Sequences:
    """Time series of aeon's with one channel: 50 of their values, and what they lack of 1, as rates."""
    values = resized(name, 50)[0][:, 0]
    values = (values - values.amin()) / (values.amax() - values.amin())
    return rates(torch.cat([values, 1 - values], 1), steps), resized(name, 50)[1]


def standardised(values: Tensor) -> Tensor:
    """(N, channels, T) with mean 0 and deviation 1 in each channel; channels that never change become 0."""
    centred = values - values.mean((0, 2), keepdim=True)
    return centred / centred.std((0, 2), keepdim=True).clamp_min(1e-6)


def resized(name: str, steps: int) -> Sequences:
    """Time series of aeon's as (N, channels, steps), with labels, training data first."""
    place = time_series.folder(name)
    parts = [time_series.read(place / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    values = [functional.interpolate(one[None], steps, mode="linear")[0] for found, _ in parts for one in found]
    return torch.stack(values), torch.cat([labels for _, labels in parts])


def seven_letters(steps: int) -> Sequences:
    """Seven letters of Braille, felt by 12 taxels: spikes of as many equal parts of each recording."""
    x, labels = braille.recordings(braille.folder())
    return torch.stack([part.amax(0) for part in x.tensor_split(steps)]), labels


def ten_letters(steps: int) -> Sequences:
    """The first ten letters of another recording, as currents: analogue values of 12 taxels.

    The file is that of the spytorch tutorial 5 (CC BY 4.0).

    Raises:
        FileNotFoundError: it is not below ``$SBC_DATA``.
    """
    path = Path(os.environ.get("SBC_DATA", "")) / LETTERS
    if "SBC_DATA" not in os.environ or not path.exists():
        raise FileNotFoundError(f"no {LETTERS} below $SBC_DATA; set SBC_DATA")
    with gzip.open(path) as file:
        found = [one for one in pickle.load(file) if one["letter"] in "ABCDEFGHIJ"]
    shortest = min(len(one["taxel_data"]) for one in found)
    values = torch.from_numpy(numpy.stack([1 - one["taxel_data"][:shortest] / 255 for one in found])).float()
    values = functional.interpolate(values.mT, steps)  # (N, 12, T)
    return standardised(values).permute(2, 0, 1), torch.tensor(["ABCDEFGHIJ".index(one["letter"]) for one in found])


def clothes(steps: int, classes: int) -> Sequences:
    """Fashion-MNIST below a number of classes, 14 x 14 pixels, as rates: (T, N, 1, 14, 14)."""
    place = fashion.folder()
    images, labels = (fashion.read(f"train-{name}", place)[:IMAGES] for name in ("images-idx3", "labels-idx1"))
    keep = labels < classes
    values = functional.avg_pool2d(images[keep, None].float() / 255, 2)
    return rates(values, steps), labels[keep].long()
