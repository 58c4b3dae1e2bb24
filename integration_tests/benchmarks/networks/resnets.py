"""Two residual networks for still images (T, B, 1, 28, 28), eight blocks each: scores (B, 10).

*SEW* adds spikes to spikes, behind the neurons. Source: Fang et al., "Deep Residual Learning in Spiking Neural
Networks", NeurIPS 2021, arXiv 2102.04159. *MS* adds currents to currents, before the neurons. Source: Hu et al.,
"Advancing Spiking Neural Networks towards Deep Residual Learning", arXiv 2112.08954.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from integration_tests.benchmarks.networks.neurons import Merged, Spiking, SumOverTime, conv

TAU = 2.0  # steps
BLOCKS = ((1, 3), (2, 3), (4, 2))  # (width, blocks) of the stages; all but the first halve the image


class SEWBlock(nn.Module):
    """Spikes in, spikes out: neurons behind each convolution, then the input is added; values grow to whole numbers."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.residual = nn.Sequential(
            conv(inputs, channels, stride=stride), Spiking(TAU), conv(channels, channels), Spiking(TAU)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(conv(inputs, channels, kernel=1, stride=2), Spiking(TAU))

    def forward(self, spikes: Tensor) -> Tensor:
        added: Tensor = self.residual(spikes) + self.shortcut(spikes)
        return added


class MSBlock(nn.Module):
    """Currents in, currents out: neurons before each convolution, then the input is added."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.residual = nn.Sequential(
            Spiking(TAU), conv(inputs, channels, stride=stride), Spiking(TAU), conv(channels, channels)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(Spiking(TAU), conv(inputs, channels, kernel=1, stride=2))

    def forward(self, current: Tensor) -> Tensor:
        added: Tensor = self.residual(current) + self.shortcut(current)
        return added


def sew_resnet(width: int = 12) -> nn.Module:
    """Stem with neurons, SEW blocks, average pooling, one linear layer."""
    return nn.Sequential(*_stem(width), Spiking(TAU), *_blocks(SEWBlock, width), *_head(width))


def ms_resnet(width: int = 12) -> nn.Module:
    """Stem, membrane-shortcut blocks, neurons, average pooling, one linear layer."""
    return nn.Sequential(*_stem(width), *_blocks(MSBlock, width), Spiking(TAU), *_head(width))


def _stem(width: int) -> tuple[nn.Module, ...]:
    """Images to currents (T, B, width, 7, 7)."""
    return conv(1, width, stride=2), Spiking(TAU), conv(width, width, stride=2)


def _blocks(block: Callable[[int, int], nn.Module], width: int) -> list[nn.Module]:
    channels = [width] + [width * factor for factor, count in BLOCKS for _ in range(count)]
    return [block(before, after) for before, after in pairwise(channels)]


def _head(width: int) -> tuple[nn.Module, ...]:
    return (
        Merged(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(width * BLOCKS[-1][0], 10),
        SumOverTime(),
    )
