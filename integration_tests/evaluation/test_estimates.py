"""What ``inspect`` tells of memory and tuning, held against tensors that are alive and against its own counts."""

import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbc_plugin import inspect
from sbc_plugin.core.costs import solver_memory
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.prune import prune
from sbc_plugin.core.quantization.scale_search import quantise


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside the block held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.mark.parametrize(("rows", "columns"), [(512, 128), (16, 400), (128, 300), (10, 560), (1500, 64)])
def test_memory_of_solvers_is_that_of_their_tensors(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=generator, dtype=torch.float64)
    hessian = LayerHessian(2 * x.T @ x / len(x), None, 0.01)
    weight = torch.randn(rows, columns, generator=generator)
    with LiveBytes() as pruning:
        solution = prune(weight, hessian, int(0.9 * weight.numel()))
    with LiveBytes() as rounding:
        quantise(weight, hessian, bits=4, mask=solution.mask, parts=[columns])
    most = max(pruning.most, rounding.most)
    assert most / 2 < solver_memory(rows, columns) < 2 * most


def network(method: str = "super") -> nn.Module:
    torch.manual_seed(0)
    neuron = LIFBoxCell(LIFBoxParameters(method=method))
    model = SequentialState(nn.Linear(10, 12, bias=False), neuron, nn.Linear(12, 4), LIFBoxCell())
    with torch.no_grad():
        model[0].weight.abs_().mul_(4)
        model[2].weight.abs_().mul_(4)
    return model


def spikes(steps: int = 12) -> Tensor:
    return (torch.rand(steps, 8, 10, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def test_tuning_is_told_apart() -> None:
    found = inspect(network(), [spikes()])
    assert found.tuning is not None and found.seconds is not None and 0 < found.tuning < found.seconds
    assert "are tuning" in str(found) and found.to_dict()["tuning"] == found.tuning
    unknown = inspect(network(), [spikes()], whole=False)
    assert unknown.seconds is None and unknown.tuning is None


def test_without_gradients_there_is_no_tuning() -> None:
    model = SequentialState(nn.Linear(10, 4), LIFBoxCell(LIFBoxParameters(method="heaviside")))
    with torch.no_grad():
        model[0].weight.abs_().mul_(4)
    found = inspect(model, [spikes()])
    assert found.tuning is None and found.seconds is not None and "tuning" not in str(found)


def test_memory_holds_what_a_step_of_tuning_keeps() -> None:
    """It grows with the number of steps, as the graph of a run does, where small Hessians do not."""
    short, long = (inspect(network(), [spikes(steps)]).memory for steps in (200, 800))
    assert short < long
    inputs = spikes(800).numel() * 4
    assert inputs < long < 100 * inputs


def test_trying_a_step_leaves_no_trace() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    inspect(model, [spikes()])
    assert model.training and not model[0].weight.requires_grad and model[0].weight.grad is None
    assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@dataclass
class Sample:
    """A batch of a user's own kind."""

    events: Tensor


def forward(model: nn.Module, batch: Sample) -> Tensor:
    state, outputs = None, []
    for step in batch.events:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


def test_batches_of_ones_own_are_counted() -> None:
    one, many = (inspect(network(), [Sample(spikes())] * n, forward=forward) for n in (1, 500))
    assert [layer.columns for layer in one.layers] == [10, 12]
    assert one.seconds is not None and one.tuning is not None and many.seconds is not None and many.tuning is not None
    assert many.seconds - many.tuning > 3 * (one.seconds - one.tuning)
