"""The neuron of the feed-forward networks: Norse's LIFBox, run over the first axis of a whole sequence."""

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, Lift
from torch import Tensor, nn

DT = 1e-3  # s, Norse's step
SURROGATE_WIDTH = 5.0  # SuperSpike's alpha; at Norse's 100 no gradient passes ten layers


class Spiking(nn.Module):
    """LIFBox neurons with a membrane of ``tau`` steps: currents (T, B, ...) in, spikes (T, B, ...) out, from rest."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        p = LIFBoxParameters(tau_mem_inv=torch.tensor(1 / (tau * DT)), alpha=torch.tensor(SURROGATE_WIDTH))
        self.over_time = Lift(LIFBoxCell(p, dt=DT))

    def forward(self, current: Tensor) -> Tensor:
        spikes: Tensor = self.over_time(current)[0]
        return spikes


class Merged(nn.Sequential):
    """Layers without a state (convolution, BatchNorm, pooling), run on all steps at once: (T, B, ...) in and out."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
