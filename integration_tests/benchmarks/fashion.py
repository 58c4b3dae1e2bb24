"""Fashion-MNIST in a fixed split, as still images or as saccade events.

Looked for below ``$SBC_DATA``, where torchvision's download puts it (``FashionMNIST/raw``), and in the folder of
Debian's package dataset-fashion-mnist. Source: Xiao, Rasul, Vollgraf, arXiv 1708.07747.
"""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from integration_tests.benchmarks.splits import Split
from sbc_plugin.demo.saccades import saccade_events

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TRAINING, CALIBRATION, TEST = 20_000, 1_000, 2_000  # of 60,000 and 10,000 images
IMAGE_STEPS, EVENT_STEPS = 4, 10
MARGIN = 3  # pixels that the saccades move into: 28 + 2 * 3 = 34 a side, as in N-MNIST


def folder() -> Path:
    """Where the four files are.

    Raises:
        FileNotFoundError: nowhere; says how to get them.
    """
    places = [DEBIAN]
    if root := os.environ.get("SBC_DATA"):
        places.insert(0, Path(root) / "FashionMNIST" / "raw")
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"no Fashion-MNIST in {' or '.join(map(str, places))}; apt install dataset-fashion-mnist, or "
        "torchvision.datasets.FashionMNIST(FOLDER, download=True) and SBC_DATA=FOLDER"
    )


def read(name: str, place: Path) -> Tensor:
    """One file of the IDX format, packed or not, e.g. "train-images-idx3": uint8, (N, 28, 28) or (N,).

    Raises:
        FileNotFoundError: the folder does not hold it.
    """
    packed, plain = place / f"{name}-ubyte.gz", place / f"{name}-ubyte"
    content = bytearray(gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes())
    axes = content[3]
    shape = torch.frombuffer(content, dtype=torch.uint8, offset=4, count=4 * axes).reshape(axes, 4).long()
    sizes = (shape * torch.tensor([2**24, 2**16, 2**8, 1])).sum(1).tolist()
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * axes).reshape(sizes)


def events(images: Tensor) -> Tensor:
    """Images (N, 28, 28), uint8, seen during three saccades: (10, N, 2, 34, 34), uint8."""
    framed = functional.pad(images, (MARGIN,) * 4)
    parts = [saccade_events(part.float() / 255, steps=EVENT_STEPS) for part in framed.split(1000)]
    return torch.cat(parts, dim=1)


def still(images: Tensor) -> Tensor:
    """Images (N, 28, 28), uint8, shown for four steps: (4, N, 1, 28, 28), standardised; memory for one step only."""
    pixels = (images.float() / 255 - 0.286) / 0.353  # mean and deviation of the training images
    return pixels[None, :, None].expand(IMAGE_STEPS, -1, -1, -1, -1)


def load(encode: Callable[[Tensor], Tensor]) -> Split:
    """20,000 images to train on, 1,000 of them to calibrate with, 2,000 of the test images.

    Raises:
        FileNotFoundError: the data are not there.
    """
    place = folder()
    known = read("train-images-idx3", place)[:TRAINING], read("train-labels-idx1", place)[:TRAINING].long()
    held_out = read("t10k-images-idx3", place)[:TEST], read("t10k-labels-idx1", place)[:TEST].long()
    return Split(known, held_out, encode, CALIBRATION)
