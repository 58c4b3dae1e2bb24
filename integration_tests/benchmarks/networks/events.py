"""Networks for events (T, B, 2, 34, 34): the 2312-500-10 of the N-MNIST literature, and a small convolutional one."""

import torch
from torch import nn

from integration_tests.benchmarks.networks.neurons import Merged, Spiking, SumOverTime, conv

SIDE = 34  # pixels
TAU = 4.0  # steps
GAIN = 10.0  # initial weights are scaled by this: at PyTorch's defaults hardly a neuron reaches its threshold


def two_linear(hidden: int = 500) -> nn.Module:
    """2312-500-10 without biases; the output neuron that spikes most is the answer, (T, B, 10)."""
    network = nn.Sequential(
        nn.Flatten(2),
        nn.Linear(2 * SIDE**2, hidden, bias=False),
        Spiking(TAU),
        nn.Linear(hidden, 10, bias=False),
        Spiking(TAU),
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight *= GAIN
    return network


def convolutional(width: int = 8) -> nn.Module:
    """Four convolutions with BatchNorm and neurons, max pooling of spikes, two linear layers; scores (B, 10)."""
    wide = 4 * width
    return nn.Sequential(
        conv(2, width, kernel=5, stride=2),
        Spiking(TAU),
        Merged(nn.MaxPool2d(2)),
        conv(width, 2 * width),
        Spiking(TAU),
        Merged(nn.MaxPool2d(2)),
        conv(2 * width, wide),
        Spiking(TAU),
        conv(wide, wide),
        Spiking(TAU),
        Merged(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(4 * wide, 64),
        Spiking(TAU),
        nn.Linear(64, 10),
        SumOverTime(),
    )
