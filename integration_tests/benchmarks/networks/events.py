"""Networks for events (T, B, 2, 34, 34): the 2312-500-10 of the N-MNIST literature, and a small convolutional one."""

import torch
from torch import nn

from integration_tests.benchmarks.networks.neurons import Spiking

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
