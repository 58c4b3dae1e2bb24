"""A VGG-like network for still images (T, B, 1, 28, 28), shown at every step: the first layer makes the spikes.

Source of the form: Simonyan, Zisserman, arXiv 1409.1556.
"""

from torch import nn

from integration_tests.benchmarks.networks.neurons import Merged, Spiking, SumOverTime, conv

TAU = 2.0  # steps


def vgg(width: int = 8) -> nn.Module:
    """Seven convolutions and two linear layers; currents are averaged over 2 x 2 pixels before the neuron. (B, 10)."""
    two, four = 2 * width, 4 * width

    def pooled(inputs: int, channels: int) -> Merged:
        return Merged(*conv(inputs, channels), nn.AvgPool2d(2))

    currents = (
        conv(1, width, stride=2),
        conv(width, two),
        pooled(two, two),
        conv(two, four),
        pooled(four, four),
        conv(four, four),
        conv(four, four),
    )
    return nn.Sequential(
        *(layer for current in currents for layer in (current, Spiking(TAU))),
        nn.Flatten(2),
        nn.Linear(9 * four, 64),
        Spiking(TAU),
        nn.Linear(64, 10),
        SumOverTime(),
    )
