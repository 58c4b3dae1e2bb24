"""Checksums differ where values, types or shapes do, and are the same for the same values in other places."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin.calibration.fingerprint import of_batch, of_model
from sbc_plugin.errors import CalibrationError


@dataclass
class Graph:
    x: Tensor
    edges: list[int]


class Pair(NamedTuple):
    a: Any
    b: Any


X = torch.arange(6.0).view(2, 3)
ALL_DIFFERENT: list[Any] = [
    X, X.double(), X.view(3, 2), X.mT, X + 1e-6, X.to(torch.int64), X.bool(), X.half(), X.bfloat16(), X + 0j,
    X[:0], X[:, :0], torch.tensor(1.0), torch.tensor(float("nan")), 1.0, 1, True, None, "1", b"1", float("nan"),
    [X], (X,), [X, X], [[X], X], [[X, X]], {"x": X}, {"y": X}, {"x": X, "y": 1}, {"x": (X, "y", 1)}, [], (), {}, [[]],
    ["ab", "c"], ["a", "bc"], X.numpy(), X.double().numpy(), np.zeros((0, 3)), np.float32(1),
    Graph(X, [1]), Graph(X, [2]), Pair(X, 1), (X, 1), torch.float32, torch.device("cpu"), "\ud800",
    np.array(["a"]), np.array(["b"]),
]  # fmt: skip


def test_what_differs_has_another_checksum() -> None:
    found = [of_batch(value) for value in ALL_DIFFERENT]
    same = [(i, j) for j, b in enumerate(found) for i, a in enumerate(found[:j]) if a == b]
    assert not same


@pytest.mark.parametrize(
    "other",
    [
        X.clone(),
        X.mT.contiguous().mT,
        torch.cat([X, X], 1)[:, :3],
        X.to_sparse(),
        X.requires_grad_(False).clone().requires_grad_(),
        torch.view_as_complex(torch.stack([X, -X], -1)).real,
    ],
    ids=["copy", "strides", "view", "sparse", "gradient", "complex"],
)
def test_where_values_lie_does_not_count(other: Tensor) -> None:
    assert of_batch(other) == of_batch(X)


def test_lazy_signs_are_values() -> None:
    z = torch.tensor([1 + 2j])
    assert of_batch(z.conj()) == of_batch(torch.tensor([1 - 2j])) != of_batch(z)


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.array([object()]), torch.zeros(2, device="meta"), endless(), [X, iter([])]]
)
def test_what_cannot_be_seen_is_refused(value: Any) -> None:
    with pytest.raises(CalibrationError, match="of which it cannot be said whether it is the same"):
        of_batch(value)


class Own(nn.Module):
    def __init__(self, steps: int, rule: Any = None) -> None:
        super().__init__()
        self.steps, self.rule = steps, rule
        self.inner = nn.Conv2d(2, 2, 3)
        self.register_buffer("scale", torch.ones(2), persistent=False)


def model(steps: int = 3, rule: Any = None) -> Own:
    torch.manual_seed(0)
    return Own(steps, rule)


def changed(change: Any) -> Own:
    made = model()
    change(made)
    return made


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (model(4), "class Own"),
        (model(rule=torch.relu), "class Own"),
        (model(rule=lambda x: x), "class Own"),
        (changed(lambda m: m.scale.mul_(2)), "scale"),
        (changed(lambda m: m.inner.bias.data.add_(1)), "inner.bias"),
        (changed(lambda m: setattr(m.inner, "stride", (2, 2))), "inner Conv2d"),
        (changed(lambda m: setattr(m, "inner", nn.Conv2d(2, 2, 3, dilation=2))), "inner Conv2d"),
        (changed(lambda m: m.double()), "inner.weight"),
    ],
)
def test_a_model_that_computes_otherwise_is_another(other: nn.Module, name: str) -> None:
    here, there = of_model(model()), of_model(other)
    assert name in {key for key in here | there if here.get(key) != there.get(key)}


def test_what_a_forward_leaves_and_modes_do_not_count() -> None:
    def use(module: Own) -> None:
        module.last = X
        module.__dict__["calls"] = 3
        module.train(not module.training)
        module.requires_grad_(False)

    assert of_model(changed(use)) == of_model(model())
