"""Losses, order and compensation of whole channels against least squares on the samples themselves."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.pruning import channels
from sbc_plugin.core.pruning.channels import Reader, channel_losses, elimination_scores, without_columns
from sbc_plugin.errors import SingularHessianError

# float64, condition numbers up to 1e4
assert_close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)


def samples(n: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs (n, columns), as spiking layers see them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(n, columns, generator=generator, dtype=torch.float64) @ mix


def refit_loss(x: Tensor, weight: Tensor, kept: Tensor) -> float:
    """``sum_rows ||x w - x_K w'||^2 / n`` with w' from lstsq: 1/2 e H e for H = 2 x^T x / n."""
    target = x @ weight.mT
    fitted = x[:, kept] @ torch.linalg.lstsq(x[:, kept], target).solution
    return float((target - fitted).square().sum() / len(x))


def reader(x: Tensor, weight: Tensor, channel: Tensor, row_channel: Tensor | None = None) -> Reader:
    rows = torch.full((len(weight),), -1) if row_channel is None else row_channel
    return Reader(weight, 2 * x.mT @ x / len(x), channel, rows)


def test_loss_of_a_channel_is_the_loss_of_the_least_squares_refit_without_it() -> None:
    channel = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])  # ragged, and two columns that stay
    x, weight = samples(200, 8), torch.randn(5, 8, dtype=torch.float64)
    found = channel_losses([reader(x, weight, channel)], 3)
    expected = [refit_loss(x, weight, channel != c) for c in range(3)]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_losses_of_several_readers_add_up() -> None:
    x, y = samples(100, 4), samples(100, 6, seed=1)
    v, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    first, second = torch.tensor([0, 1, 2, -1]), torch.tensor([2, 2, 1, 1, 0, 0])
    together = channel_losses([reader(x, v, first), reader(y, w, second)], 3)
    apart = channel_losses([reader(x, v, first)], 3) + channel_losses([reader(y, w, second)], 3)
    assert_close(together, apart)


def test_a_row_that_goes_with_its_channel_is_not_missed() -> None:
    x, weight = samples(100, 3), torch.randn(3, 3, dtype=torch.float64)
    channel = torch.arange(3)
    found = channel_losses([reader(x, weight, channel, row_channel=torch.arange(3))], 3)
    others = [torch.arange(3) != c for c in range(3)]
    expected = [refit_loss(x, weight[others[c]], others[c]) for c in range(3)]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("pending", [1, 5, 256])  # columns that go before the inverse is computed anew
def test_elimination_is_greedy_over_refits(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PENDING", pending)
    channel = torch.arange(6).repeat_interleave(2)
    x, weight = samples(300, 12), torch.randn(4, 12, dtype=torch.float64)
    left, order, costs, spent = list(range(6)), [], [], 0.0
    while left:  # the same greedy, with an lstsq for every candidate
        losses = {
            c: refit_loss(x, weight, torch.isin(channel, torch.tensor([d for d in left if d != c]))) for c in left
        }
        best = min(losses, key=lambda c: losses[c])
        costs.append(losses[best] - spent)
        spent = losses[best]
        order.append(best)
        left.remove(best)
    scores = elimination_scores([reader(x, weight, channel)], 6)
    assert scores.argsort().tolist() == order
    highest = torch.tensor(list(itertools.accumulate(costs, max)), dtype=torch.float64)
    assert_close(scores[order], highest)


def test_ragged_channels_and_rows_that_go_are_eliminated_as_refits_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PENDING", 3)
    channel = torch.tensor([3, 0, 0, -1, 1, 2, 2, 2, -1, 4, 1, 3])
    x, weight = samples(300, 12), torch.randn(5, 12, dtype=torch.float64)
    rows = torch.tensor([0, -1, 2, -1, 4])
    left, order = list(range(5)), list[int]()
    new, kept = weight.clone(), torch.ones(12, dtype=torch.bool)
    while left:
        losses = {}
        for c in left:
            stay = ~torch.isin(rows, torch.tensor([*order, c]))
            fewer = kept & (channel != c)
            losses[c] = refit_loss(x[:, kept], new[stay][:, kept], fewer[kept])
        best = min(losses, key=lambda c: losses[c])
        kept &= channel != best
        new = without_columns(weight, 2 * x.mT @ x / len(x), ~kept)
        order.append(best)
        left.remove(best)
    assert elimination_scores([reader(x, weight, channel, rows)], 5).argsort().tolist() == order


@pytest.mark.parametrize("pending", [1, 256])
def test_a_reader_whose_channels_have_all_gone_costs_nothing_more(
    pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PENDING", pending)
    x, weight = samples(200, 4), torch.randn(3, 4, dtype=torch.float64)
    first = Reader(1e-6 * torch.ones(1, 2), torch.eye(2, dtype=torch.float64), torch.arange(2), torch.tensor([-1]))
    both = elimination_scores([first, reader(x, weight, torch.arange(2, 6))], 6)
    alone = elimination_scores([reader(x, weight, torch.arange(4))], 4)
    assert both.argsort()[:2].tolist() == [0, 1]
    assert_close(both[2:], alone)


def test_scores_differ_even_where_nothing_is_lost() -> None:
    silent = Reader(torch.zeros(2, 5), torch.eye(5, dtype=torch.float64), torch.arange(5), torch.tensor([-1, -1]))
    scores = elimination_scores([silent], 5)
    assert len(scores.unique()) == 5 and scores.max() < 1e-20


def test_limit_leaves_the_rest_as_it_is_then() -> None:
    x, weight = samples(200, 6), torch.randn(3, 6, dtype=torch.float64)
    whole = elimination_scores([reader(x, weight, torch.arange(6))], 6)
    some = elimination_scores([reader(x, weight, torch.arange(6))], 6, limit=2)
    first = whole.argsort()[:2]
    assert torch.equal(some.argsort()[:2], first)
    gone = torch.isin(torch.arange(6), first)
    refitted = without_columns(weight, 2 * x.mT @ x / len(x), gone)
    alone = channel_losses([reader(x[:, ~gone], refitted[:, ~gone], torch.arange(4))], 4)
    assert_close(some[~gone], alone)


def test_compensation_is_the_least_squares_optimum() -> None:
    x, weight = samples(150, 7), torch.randn(4, 7, dtype=torch.float64)
    removed = torch.tensor([True, False, False, True, False, True, False])
    new = without_columns(weight, 2 * x.mT @ x / len(x), removed)
    expected = torch.linalg.lstsq(x[:, ~removed], x @ weight.mT).solution.mT
    assert_close(new[:, ~removed], expected)
    assert not new[:, removed].any()


def test_all_or_nothing_can_be_removed() -> None:
    weight, hessian = torch.randn(2, 3), torch.eye(3, dtype=torch.float64)
    assert torch.equal(without_columns(weight, hessian, torch.zeros(3, dtype=torch.bool)), weight)
    assert not without_columns(weight, hessian, torch.ones(3, dtype=torch.bool)).any()


def test_a_singular_hessian_is_an_error() -> None:
    singular = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(SingularHessianError, match="not positive definite"):
        without_columns(torch.ones(1, 3), singular, torch.tensor([True, False, False]))
