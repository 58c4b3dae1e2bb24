"""Weights from and into silent neurons: which ones go, and how many."""

import pytest
import torch

from sbc_plugin import Prune
from sbc_plugin.core.allocation.silent import give_silent
from sbc_plugin.errors import SettingsError


@pytest.mark.parametrize("zeros", range(0, 25))
def test_the_budget_is_spent_on_dead_weights_then_on_the_smallest_unread_ones(zeros: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(2, 6, generator=generator)}
    weights["a"][0, 0] = 0.0  # counted as a zero of the budget
    dead = {"a": torch.zeros(3, 4, dtype=torch.bool), "b": torch.zeros(2, 6, dtype=torch.bool)}
    dead["b"][:, 1] = True
    unread = {"a": torch.tensor([False, True, False]), "b": torch.tensor([False, False])}
    new = give_silent(weights, dead, unread, zeros)
    if zeros < 3:
        assert new is None
        return
    assert new is not None
    gone = min(zeros - 3, 4)
    smallest = weights["a"][1].abs().argsort()[:gone].tolist()
    expected = {name: weight.clone() for name, weight in weights.items()}
    expected["b"][:, 1] = 0.0
    expected["a"][1, smallest] = 0.0
    assert all(torch.equal(new[name], expected[name]) for name in weights)


def test_nothing_unread_changes_nothing() -> None:
    weights, dead = {"a": torch.ones(1, 2)}, {"a": torch.tensor([[True, False]])}
    assert give_silent(weights, dead, {"a": torch.tensor([False])}, 2) is None
    assert weights["a"].tolist() == [[1.0, 1.0]]


def test_patterns_leave_no_choice_of_weights() -> None:
    with pytest.raises(SettingsError, match="silent_first needs pattern='unstructured', found '2:4'"):
        Prune(0.5, pattern="2:4", silent_first=True)
