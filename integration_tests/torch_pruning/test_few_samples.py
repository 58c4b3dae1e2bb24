"""Layers wider than their samples: the pruner cuts and compensates as with the Hessian formed as a matrix."""

import copy
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.core.pruning.primal_dual import DualHessian, PrimalHessian
from sbc_plugin.errors import CalibrationError
from sbc_plugin.settings import Calibration
from sbc_plugin.torch_pruning import SBCPruner, gathered
from sbc_plugin.torch_pruning.consumers import Consumer
from sbc_plugin.torch_pruning.statistics import gather_consumers


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 20, bias=False), nn.ReLU(), nn.Linear(20, 5))


def flattened() -> nn.Module:
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 3))


def grouped() -> nn.Module:
    body = [nn.Conv2d(2, 16, 1), nn.ReLU(), nn.Conv2d(16, 12, 2, groups=2), nn.ReLU()]
    return nn.Sequential(*body, nn.Conv2d(12, 8, 2), nn.Flatten(), nn.Linear(32, 3))


class Residual(nn.Module):
    """Rows of the middle layer go with the channels that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        result: Tensor = self.last(x + torch.relu(self.middle(x)))
        return result


def spiking() -> nn.Module:
    return norse.SequentialState(nn.Linear(6, 30), norse.LIFBoxCell(), nn.Linear(30, 4), norse.LIFBoxCell())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linear, (4, 6)),
    "flattened": (flattened, (4, 2, 6, 6)),
    "grouped": (grouped, (1, 2, 4, 4)),
    "residual": (Residual, (4, 6)),
    "spiking": (spiking, (12, 1, 6)),
}


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    build, shape = NETWORKS[name]
    torch.manual_seed(3)
    model = build().double().eval()
    size = 100 if name == "spiking" else 5
    data = [size * torch.rand(shape, dtype=torch.float64) for _ in range(2)]
    data[0][..., 0] = data[1][..., 0] = 0.0  # what is dead
    return model, data


def consumers(name: str, few: float, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Consumer]:
    monkeypatch.setattr(gathered, "WIDE", 0)
    monkeypatch.setattr(gathered, "FEW", few)
    model, data = made(name)
    return gather_consumers(model, data, Calibration(**settings))[0]


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_are_those_of_the_matrix(name: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found, expected = (consumers(name, few, monkeypatch, max_samples=limit) for few in (100.0, 0.0))
    for one, other in zip(found, expected, strict=True):
        assert all(isinstance(hessian, DualHessian) for hessian in one.hessians)
        assert all(isinstance(hessian, PrimalHessian) for hessian in other.hessians)
        torch.testing.assert_close(one.hessian, other.hessian, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(one.scale, other.scale, rtol=1e-10, atol=0)
        assert torch.equal(one.silent, other.silent)


@pytest.mark.parametrize("steps", [1, 2])  # the second one cuts with statistics that have shrunk
@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_models_are_those_of_the_matrix(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "WIDE", 0)
    model, data = made(name)
    pruned = []
    for few in (100.0, 0.0):
        monkeypatch.setattr(gathered, "FEW", few)
        each = copy.deepcopy(model)
        example = data[0][0] if name == "spiking" else data[0][:1]
        readout = [module for module in each.modules() if isinstance(module, nn.Linear)][-1]
        pruner = SBCPruner(
            each, example, calibration_data=data, pruning_ratio=0.5, iterative_steps=steps, ignored_layers=[readout]
        )
        for _ in range(steps):
            pruner.step()
        pruned.append(each.state_dict())
    assert any(value.shape != model.state_dict()[key].shape for key, value in pruned[0].items())
    for key, value in pruned[0].items():
        torch.testing.assert_close(value, pruned[1][key], rtol=1e-6, atol=1e-8)


def test_samples_that_outgrow_the_columns_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "WIDE", 0)
    monkeypatch.setattr(gathered, "FEW", 0.5)
    batches = [torch.randn(1, 2, 8, dtype=torch.float64) for _ in range(5)]
    held = gathered.Gathered(8, 1, "cpu")
    for number, batch in enumerate(batches, start=1):
        held.add(batch)
        x = torch.cat(batches[:number], dim=1)[0]
        assert held.few == (number <= 2) and held.count == 2 * number
        torch.testing.assert_close(held.hessians()[0].matrix, 2 / len(x) * x.mT @ x, rtol=1e-12, atol=1e-12)


def test_nothing_is_held_without_damping_or_of_narrow_layers() -> None:
    assert gathered.Gathered(1000, 1, "cpu", hold=False).most == gathered.Gathered(9, 1, "cpu").most == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # whose square is infinite in float32
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    held = gathered.Gathered(1000, 1, "cpu")
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        held.add(torch.full((1, 2, 1000), value))


def test_a_wide_layer_takes_no_memory_of_its_columns_squared() -> None:
    """A Hessian of these 25,088 columns would take 5 GB."""
    model = nn.Sequential(nn.Conv2d(1, 512, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512 * 49, 2)).eval()
    x = torch.rand(3, 1, 7, 7)
    before = model(x)
    pruner = SBCPruner(model, x[:1], calibration_data=[x], pruning_ratio=0.05, ignored_layers=[model[3]])
    pruner.step()
    assert model[3].weight.shape == (2, 486 * 49)
    torch.testing.assert_close(model(x), before, rtol=1e-2, atol=1e-2)  # three samples can be fitted


@pytest.mark.parametrize(("theirs", "few"), [(3, True), (0, True), (40, False)])
def test_ranks_hold_all_samples_where_these_are_few(theirs: int, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = torch.randn(1, 4, 300, dtype=torch.float64), torch.randn(1, theirs, 300, dtype=torch.float64)
    held = gathered.Gathered(300, 1, "cpu")
    held.add(mine)
    answers: dict[type, Any] = {list: [theirs], Tensor: other if theirs else None}
    summed: list[Any] = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "everyone", lambda thing: [thing, answers[type(thing)]])
    monkeypatch.setattr(gathered, "sum_statistics", summed.extend)
    gathered.of_all_ranks([held])
    assert held.few == few and len(summed) == (not few)
    if few:
        x = torch.cat([mine, other], dim=1)[0]
        torch.testing.assert_close(held.hessians()[0].matrix, 2 / len(x) * x.mT @ x, rtol=1e-12, atol=1e-12)
    else:
        assert summed[0].accumulator is held.accumulator
