"""The neuron of the feed-forward networks: Norse's LIFBox, run over the first axis of a whole sequence."""

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, Lift
from torch import Tensor, nn

DT = 1e-3  # s, Norse's step
INITIAL_DEVIATION = 2.0  # of a current, in thresholds
SURROGATE_WIDTH = 5.0  # SuperSpike's alpha; at Norse's 100 no gradient passes ten layers


class First(nn.Module):
    """What a module with a state returns first: its spikes or voltages (T, B, ...), from rest."""

    def __init__(self, over_time: nn.Module) -> None:
        super().__init__()
        self.over_time = over_time

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.over_time(x)[0]
        return out


class Spiking(First):
    """LIFBox neurons with a membrane of ``tau`` steps: currents (T, B, ...) in, spikes (T, B, ...) out, from rest."""

    def __init__(self, tau: float) -> None:
        p = LIFBoxParameters(tau_mem_inv=torch.tensor(1 / (tau * DT)), alpha=torch.tensor(SURROGATE_WIDTH))
        super().__init__(Lift(LIFBoxCell(p, dt=DT)))


class Merged(nn.Sequential):
    """Layers without a state (convolution, BatchNorm, pooling), run on all steps at once: (T, B, ...) in and out."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class SumOverTime(nn.Module):
    """The readout: steps (T, B, classes) added up to scores (B, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


def normalised(*layers: nn.Module, channels: int) -> Merged:
    """The layers and a BatchNorm of this many channels, wide enough from the start that neurons reach threshold."""
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, INITIAL_DEVIATION)
    return Merged(*layers, norm)


def conv(inputs: int, channels: int, kernel: int = 3, stride: int = 1) -> Merged:
    """Convolution without bias, padded to keep its size but for the stride, and BatchNorm."""
    return normalised(
        nn.Conv2d(inputs, channels, kernel, stride=stride, padding=kernel // 2, bias=False), channels=channels
    )
