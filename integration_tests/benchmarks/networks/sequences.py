"""Networks for sequences (T, B, inputs) of 50 to 150 steps: recurrent cells of each kind, IAF, current-based LIF.

All take whole sequences and start at rest. Norse's recurrent modules reset to a value; an :class:`Explicit` layer, as a
network from a NIR file has it, loops over time and sends its spikes through a Linear of its own, so that it may also
subtract the threshold.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from norse.torch import (
    IAFCell,
    IAFParameters,
    LIBoxCell,
    LIBoxParameters,
    LICell,
    LIFBoxCell,
    LIFBoxParameters,
    LIFCell,
    LIFParameters,
    LIFRecurrent,
    LIFRefracParameters,
    LIFRefracRecurrent,
    Lift,
    LIParameters,
    LSNNParameters,
    LSNNRecurrent,
)
from norse.torch.functional.reset import reset_subtract, reset_value
from torch import Tensor, nn

from integration_tests.benchmarks.networks.neurons import (
    DT,
    INITIAL_DEVIATION,
    SURROGATE_WIDTH,
    First,
    Merged,
    Spiking,
    SumOverTime,
)

TAU_MEM, TAU_SYN, TAU_ADAPT = 8.0, 2.0, 60.0  # steps
ADAPTATION, REFRACTORY = 0.03, 2.0  # thresholds a spike; steps
ENTERING, RETURNING = 20.0, 4.0  # deviations of initial currents, in thresholds, of inputs that are all 1 or all spike

Layer = Callable[[int, int], nn.Module]


def _inverse(steps: float) -> Tensor:
    return torch.tensor(1 / (steps * DT))


def lif_parameters() -> LIFParameters:
    """Of a current-based LIF neuron."""
    return LIFParameters(
        tau_mem_inv=_inverse(TAU_MEM), tau_syn_inv=_inverse(TAU_SYN), alpha=torch.tensor(SURROGATE_WIDTH)
    )


def _begun(module: nn.Module) -> nn.Module:
    """A recurrent module of Norse whose initial weights are scaled as an :class:`Explicit` layer's."""
    with torch.no_grad():
        for weight, size in ((module.input_weights, ENTERING), (module.recurrent_weights, RETURNING)):
            weight.copy_(torch.randn_like(weight) * size * weight.shape[1] ** -0.5 / TAU_SYN)
        module.recurrent_weights.fill_diagonal_(0.0)
    return First(module)


def lif(inputs: int, hidden: int) -> nn.Module:
    """LIFRecurrent: current-based, resets to 0."""
    return _begun(LIFRecurrent(inputs, hidden, p=lif_parameters(), dt=DT))


def adaptive(inputs: int, hidden: int) -> nn.Module:
    """LSNNRecurrent: as LIFRecurrent, with a threshold that rises at each spike."""
    p = LSNNParameters(
        tau_mem_inv=_inverse(TAU_MEM), tau_syn_inv=_inverse(TAU_SYN), tau_adapt_inv=_inverse(TAU_ADAPT),
        beta=torch.tensor(ADAPTATION), alpha=SURROGATE_WIDTH,
    )  # fmt: skip
    return _begun(LSNNRecurrent(inputs, hidden, p=p, dt=DT))


def refractory(inputs: int, hidden: int) -> nn.Module:
    """LIFRefracRecurrent: as LIFRecurrent, silent for some steps after a spike."""
    p = LIFRefracParameters(lif=lif_parameters(), rho_reset=torch.tensor(REFRACTORY))
    return _begun(LIFRefracRecurrent(inputs, hidden, p=p, dt=DT))


class Explicit(nn.Module):
    """LIFBox neurons whose spikes come back through a Linear: (T, B, inputs) to (T, B, hidden), from rest.

    Args:
        inputs: channels.
        hidden: neurons.
        subtract: reset by subtraction of the threshold, not to 0.
        current: a synapse (LIBox) between the weights and the membrane: current-based neurons.
    """

    def __init__(self, inputs: int, hidden: int, subtract: bool = True, current: bool = False) -> None:
        super().__init__()
        self.entering = nn.Linear(inputs, hidden)
        self.returning = nn.Linear(hidden, hidden, bias=False)
        nn.init.normal_(self.entering.weight, std=ENTERING * inputs**-0.5)
        nn.init.normal_(self.returning.weight, std=RETURNING * hidden**-0.5)
        self.synapse = LIBoxCell(LIBoxParameters(tau_mem_inv=_inverse(TAU_SYN)), dt=DT) if current else None
        reset = reset_subtract if subtract else reset_value
        p = LIFBoxParameters(tau_mem_inv=_inverse(TAU_MEM), alpha=torch.tensor(SURROGATE_WIDTH), reset_method=reset)
        self.neurons = LIFBoxCell(p, dt=DT)

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.new_zeros(x.shape[1], self.returning.in_features)
        state = synapse = None
        sent = []
        for step in x:
            current = self.entering(step) + self.returning(spikes)
            if self.synapse is not None:
                current, synapse = self.synapse(current, synapse)
            spikes, state = self.neurons(current, state)
            sent.append(spikes)
        return torch.stack(sent)


def subtracting(inputs: int, hidden: int) -> nn.Module:
    """An explicit layer of LIFBox neurons that subtract."""
    return Explicit(inputs, hidden)


def current_subtracting(inputs: int, hidden: int) -> nn.Module:
    """An explicit layer of current-based neurons that subtract."""
    return Explicit(inputs, hidden, current=True)


def recurrent(layer: Layer, inputs: int, hidden: tuple[int, ...], classes: int) -> nn.Module:
    """Recurrent layers, and a linear readout summed over time: scores (B, classes)."""
    sizes = (inputs, *hidden)
    layers = [layer(before, after) for before, after in pairwise(sizes)]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], classes), SumOverTime())


def _scaled(network: nn.Module, gain: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter *= gain
    return network


def current_based(sizes: tuple[int, ...], gain: float = 4.0) -> nn.Module:
    """Linear layers without bias and current-based LIF neurons; the output neuron that spikes most is the answer."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=False), First(Lift(LIFCell(lif_parameters(), dt=DT)))]
    return _scaled(nn.Sequential(*layers), gain)


def integrators(sizes: tuple[int, ...], gain: float = 2.0) -> nn.Module:
    """Linear layers without bias and IAF neurons, which never leak; a linear readout, summed over time."""
    p = IAFParameters(alpha=torch.tensor(SURROGATE_WIDTH))
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias=False), First(Lift(IAFCell(p, dt=DT)))]
    return nn.Sequential(*_scaled(nn.Sequential(*layers), gain), nn.Linear(sizes[-2], sizes[-1]), SumOverTime())


def _along_rows(before: int, after: int) -> Merged:
    """A convolution along one axis, at each step: (T, B, before, n) to (T, B, after, n / 2), and BatchNorm."""
    conv, norm = nn.Conv1d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(after)
    nn.init.constant_(norm.weight, INITIAL_DEVIATION)
    return Merged(OrderedDict(conv=conv, norm=norm))


def rows_1d(pixels: int, classes: int, width: int = 16) -> nn.Module:
    """Two convolutions along each row of an image whose rows are the steps, then two linear layers."""
    features = 2 * width * ((pixels + 3) // 4)
    return nn.Sequential(
        nn.Unflatten(2, (1, pixels)),
        _along_rows(1, width),
        Spiking(TAU_SYN),
        _along_rows(width, 2 * width),
        Spiking(TAU_SYN),
        nn.Flatten(2),
        nn.Linear(features, 64),
        Spiking(TAU_SYN),
        nn.Linear(64, classes),
        SumOverTime(),
    )


class LastVoltage(First):
    """Leaky integrators; the voltage after the last step, (T, B, n) to (B, n)."""

    def __init__(self) -> None:
        p = LIParameters(tau_mem_inv=_inverse(TAU_MEM), tau_syn_inv=_inverse(TAU_SYN))
        super().__init__(Lift(LICell(p, dt=DT)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[-1]


def autoencoder(pixels: int, hidden: int = 128, code: int = 32) -> nn.Module:
    """Current-based LIF, pixels-hidden-code-hidden, and integrators whose last voltages are the answer (B, pixels)."""
    body = current_based((pixels, hidden, code, hidden))
    return nn.Sequential(*body, nn.Linear(hidden, pixels), LastVoltage())
