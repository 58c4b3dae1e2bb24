"""What a graph keeps is noted, freed with the graph, and gives the gradients that it gives without a watcher."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sbc_plugin.calibration.counting import KeptTensors

# Each keeps its own output, its input, or both.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda x: x.softmax(0),
    "relu": torch.relu, "square": torch.square, "max": lambda x: x.amax(0, keepdim=True).expand(7),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_is_freed_and_its_gradients_are_right(name: str) -> None:
    function = FUNCTIONS[name]
    x = torch.linspace(-1, 2, 7, dtype=torch.float64, requires_grad=True)
    with KeptTensors() as kept:
        y = function(x)
    (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(function(x).sum(), x)
    assert torch.equal(found, wanted) and kept.memory >= x.nbytes
    alive = weakref.ref(y)
    del y
    assert alive() is None
