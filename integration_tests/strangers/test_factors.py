"""A factor between weight and neuron counts as it is, learnable or not, and an activation is never taken for one."""

from collections.abc import Callable

import pytest
import torch
from norse.torch import LIFBoxCell
from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.norse import find_layers

FACTORS = torch.tensor([1.0, 1.0, 1.0, 8.0, 8.0, 0.5])
OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor | None]] = {
    "x * p": (lambda x, p: x * p, FACTORS),
    "p * x": (lambda x, p: p * x, FACTORS),
    "x / p": (lambda x, p: x / p, 1 / FACTORS),
    "-x * p": (lambda x, p: -x * p, FACTORS),
    "x * exp(log(p))": (lambda x, p: x * p.log().exp(), FACTORS),
    "x * softplus(p)": (lambda x, p: x * functional.softplus(p), functional.softplus(FACTORS)),
    "2 * x * p * p / p": (lambda x, p: 2 * x * p * p / p, 2 * FACTORS),
    "x * p of one axis more": (lambda x, p: x * p[None], FACTORS),
    "p / (x + 9)": (lambda x, p: p / (x + 9), None),
    "x * x": (lambda x, p: x * x, None),
}


class Scaled(nn.Module):
    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor], learnable: bool) -> None:
        super().__init__()
        self.linear, self.neuron, self.operation = nn.Linear(20, 6, bias=False), LIFBoxCell(), operation
        self.factors = nn.Parameter(FACTORS.clone(), requires_grad=learnable)

    def forward(self, x: Tensor, state: object = None) -> object:
        return self.neuron(self.operation(self.linear(x), self.factors), state)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_factor_is_the_gain_of_its_row(name: str, learnable: bool, sequences: int) -> None:
    operation, gain = OPERATIONS[name]
    torch.manual_seed(0)
    (layer,), _ = find_layers(Scaled(operation, learnable), (torch.rand(30, sequences, 20) < 0.3).float())
    if gain is None:
        assert "M = I" in layer.note
    else:
        torch.testing.assert_close(layer.gain, gain.double(), rtol=1e-6, atol=0)
        assert layer.note == ""
