"""scikit-learn's handwritten digits as saccade events, in a fixed split."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sbc_plugin.demo.saccades import saccade_events
from sbc_plugin.errors import extra

with extra("demo"):
    from sklearn.datasets import load_digits

SIZE = 16  # pixels a side: the digit fills the inner 12, the saccades move it inside the margin
MARGIN = 2
TRAINING, CALIBRATION = 1197, 300  # of 1,797 digits
SPLIT_SEED = 0


@dataclass(frozen=True)
class Events:
    """Event sequences and their labels.

    Attributes:
        x: (T, N, ...), for the digits (T, N, 2, 16, 16), uint8, 0 or 1.
        labels: (N,), for the digits 0 to 9.
    """

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor | slice) -> "Events":
        """The sequences at ``index``, time unchanged."""
        return Events(self.x[:, index], self.labels[index])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Pairs ``(x (T, size, ...) as float32, labels)``, in order; the last one may be smaller."""
        starts = range(0, len(self), size)
        return [(self.x[:, i : i + size].float(), self.labels[i : i + size]) for i in starts]


@dataclass(frozen=True)
class Digits:
    """The split: ``calibration`` is a part of ``training``; ``test`` shares no image with either."""

    training: Events
    calibration: Events
    test: Events


def load(steps: int = 20) -> Digits:
    """All 1,797 digits, enlarged from 8 x 8 to 12 x 12 pixels in a dark frame of 16 x 16, as ``steps`` steps of events.

    The split is the same at each call, whatever the network's seed.
    """
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    inner = SIZE - 2 * MARGIN
    images = functional.interpolate(images, size=(inner, inner), mode="bilinear", align_corners=False)
    images = functional.pad(images, (MARGIN,) * 4)[:, 0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    labels = torch.from_numpy(data.target).long()
    everything = Events(saccade_events(images[order], steps=steps), labels[order])
    return Digits(
        training=everything.subset(slice(0, TRAINING)),
        calibration=everything.subset(slice(0, CALIBRATION)),
        test=everything.subset(slice(TRAINING, None)),
    )
