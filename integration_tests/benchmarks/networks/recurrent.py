"""A recurrent network for series of real numbers (T, B, channels): current-based LIF neurons that hear each other."""

import torch
from norse.torch import LIFParameters, LIFRecurrent
from torch import Tensor, nn

from integration_tests.benchmarks.networks.neurons import DT, SURROGATE_WIDTH, SumOverTime

TAU_MEM, TAU_SYN = 5.0, 2.0  # steps


class Recurrent(nn.Module):
    """Norse's LIFRecurrent, whose weights carry no bias: (T, B, inputs) to spikes (T, B, hidden), from rest."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        p = LIFParameters(
            tau_mem_inv=torch.tensor(1 / (TAU_MEM * DT)),
            tau_syn_inv=torch.tensor(1 / (TAU_SYN * DT)),
            alpha=torch.tensor(SURROGATE_WIDTH),
        )
        self.neurons = LIFRecurrent(inputs, hidden, p=p, dt=DT)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neurons(x)[0]
        return spikes


def recurrent(inputs: int = 12, hidden: int = 96, classes: int = 9) -> nn.Module:
    """One recurrent layer and a linear readout, summed over time: scores (B, classes)."""
    return nn.Sequential(Recurrent(inputs, hidden), nn.Linear(hidden, classes), SumOverTime())
