"""Small networks whose outputs are neurons too, one step a call: the class is that of the neuron that spikes most."""

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, LIFCell, LIFParameters, LIFRecurrentCell, SequentialState
from torch import nn

from integration_tests.benchmarks.networks.neurons import DT, SURROGATE_WIDTH

TAU_MEM, TAU_SYN = 4.0, 2.0  # steps
GAIN = 5.0  # first weights are scaled by this: at PyTorch's defaults hardly a neuron reaches its threshold
HIDDEN, CHANNELS = 64, (8, 16)


def _current_based(tau_mem: float = TAU_MEM) -> LIFParameters:
    return LIFParameters(
        tau_mem_inv=torch.tensor(1 / (tau_mem * DT)),
        tau_syn_inv=torch.tensor(1 / (TAU_SYN * DT)),
        alpha=torch.tensor(SURROGATE_WIDTH),
    )


def _lively(*layers: nn.Module) -> nn.Module:
    """The layers one after the other, with larger weights."""
    network = SequentialState(*layers)
    with torch.no_grad():
        for module in network:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight *= GAIN
    return network


def box(inputs: int, classes: int) -> nn.Module:
    """Two linear layers with LIFBox neurons, without a synaptic current."""
    neuron = LIFBoxParameters(tau_mem_inv=torch.tensor(1 / (TAU_MEM * DT)), alpha=torch.tensor(SURROGATE_WIDTH))
    first, last = nn.Linear(inputs, HIDDEN, bias=False), nn.Linear(HIDDEN, classes, bias=False)
    return _lively(first, LIFBoxCell(neuron, dt=DT), last, LIFBoxCell(neuron, dt=DT))


def feed_forward(inputs: int, classes: int) -> nn.Module:
    """Three linear layers with current-based LIF neurons."""
    layers: list[nn.Module] = []
    for features, width in ((inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, classes)):
        layers += [nn.Linear(features, width), LIFCell(_current_based(), dt=DT)]
    return _lively(*layers)


def recurrent(inputs: int, classes: int) -> nn.Module:
    """A recurrent layer of current-based LIF neurons, and a linear one."""
    hidden = LIFRecurrentCell(inputs, HIDDEN, p=_current_based(), dt=DT)
    return _lively(hidden, nn.Linear(HIDDEN, classes, bias=False), LIFCell(_current_based(), dt=DT))


def convolutional(inputs: int, classes: int) -> nn.Module:
    """Two convolutions and a linear layer with current-based LIF neurons, for images of 14 x 14 pixels."""
    layers: list[nn.Module] = []
    for channels, width in ((inputs, CHANNELS[0]), CHANNELS):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), LIFCell(_current_based(2.0), dt=DT)]
    last = nn.Linear(16 * CHANNELS[1], classes, bias=False)
    return _lively(*layers, nn.Flatten(), last, LIFCell(_current_based(2.0), dt=DT))
