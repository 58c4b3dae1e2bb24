"""Networks of the sizes that are trained on ImageNet, with random weights: images (T, B, 3, H, W) to scores (B, 1000).

SEW-ResNet18, 50 and 152 have the layers of Fang et al., arXiv 2102.04159 (ResNets of He et al., neurons behind each
convolution, spikes added to spikes); the spike-driven Transformer is that of Yao et al., arXiv 2307.01694, with eight
blocks of width 512. Their BatchNorms are set by one batch of noise, so that neurons fire as those of a trained network.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from integration_tests.benchmarks.networks.neurons import Merged, Spiking, SumOverTime, conv
from integration_tests.benchmarks.networks.transformer import Block, MeanToken, Tokens

TAU = 2.0  # steps
CLASSES = 1000


class LargeSEWBlock(nn.Module):
    """A basic block (two convolutions) or a bottleneck (three); the input is added to its spikes."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.residual = nn.Sequential(
                conv(inputs, channels // 4, kernel=1), Spiking(TAU),
                conv(channels // 4, channels // 4, stride=stride), Spiking(TAU),
                conv(channels // 4, channels, kernel=1), Spiking(TAU),
            )  # fmt: skip
        else:
            self.residual = nn.Sequential(
                conv(inputs, channels, stride=stride), Spiking(TAU), conv(channels, channels), Spiking(TAU)
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 or inputs != channels:
            self.shortcut = nn.Sequential(conv(inputs, channels, kernel=1, stride=stride), Spiking(TAU))

    def forward(self, spikes: Tensor) -> Tensor:
        added: Tensor = self.residual(spikes) + self.shortcut(spikes)
        return added


def large_sew_resnet(blocks: tuple[int, ...], bottleneck: bool, width: int = 64) -> nn.Module:
    """A stem with max pooling, four stages of blocks, average pooling, one linear layer.

    Args:
        blocks: of each stage; all but the first halve the image.
        bottleneck: blocks of three convolutions, four times as wide, instead of two.
        width: channels of the stem.
    """
    layers: list[nn.Module] = [conv(3, width, kernel=7, stride=2), Spiking(TAU), Merged(nn.MaxPool2d(3, 2, padding=1))]
    inputs = width
    for stage, count in enumerate(blocks):
        channels = width * 2**stage * (4 if bottleneck else 1)
        for number in range(count):
            stride = 2 if stage and number == 0 else 1
            layers.append(LargeSEWBlock(inputs, channels, stride, bottleneck))
            inputs = channels
    head = [Merged(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(inputs, CLASSES), SumOverTime()]
    return nn.Sequential(*layers, *head)


def large_transformer(features: int = 512, blocks: int = 8) -> nn.Module:
    """A stem of four convolutions, blocks, neurons, the mean over tokens, one linear layer."""
    return nn.Sequential(
        Tokens(features, channels=3),
        *(Block(features) for _ in range(blocks)),
        Spiking(TAU), MeanToken(), nn.Linear(features, CLASSES), SumOverTime(),
    )  # fmt: skip


@dataclass(frozen=True)
class Large:
    """A network and the images that it takes.

    Attributes:
        build: the network, drawn from torch's global generator.
        side: of its images, in pixels.
        steps: T.
    """

    build: partial[nn.Module]
    side: int
    steps: int = 4

    def images(self, count: int, batch: int, seed: int) -> list[Tensor]:
        """Batches (T, B, 3, side, side) of smooth noise, the same image at each step."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, self.side // 8, self.side // 8, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=self.side, mode="bilinear")
        return [piece.expand(self.steps, *piece.shape) for piece in smooth.split(batch)]

    def network(self, seed: int) -> nn.Module:
        """In eval mode, its BatchNorms set by four images."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = self.build()
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = None  # the average over all batches so far, of which there is one
            model.train()(self.images(4, 4, seed)[0])
        return model.eval()


LARGE = {
    "SEW-ResNet18, 64 px": Large(partial(large_sew_resnet, (2, 2, 2, 2), False), 64),
    "SEW-ResNet18": Large(partial(large_sew_resnet, (2, 2, 2, 2), False), 224),
    "SEW-ResNet50": Large(partial(large_sew_resnet, (3, 4, 6, 3), True), 224),
    "SEW-ResNet152": Large(partial(large_sew_resnet, (3, 8, 36, 3), True), 224),
    "spike-driven Transformer": Large(partial(large_transformer), 112),
}
