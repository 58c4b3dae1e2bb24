"""Agreement of two classifiers: against torch.distributions, and the inverse_temperature by its definition."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from sbc_plugin.core.distillation import CONFIDENCE, REACH, divergence, inverse_temperature


def scores(seed: int, rows: int = 50, classes: int = 10) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_divergence_is_that_of_the_distributions(factor: float) -> None:
    dense, other = scores(0), scores(1)
    expected = kl_divergence(Categorical(logits=factor * dense), Categorical(logits=factor * other)).mean()
    torch.testing.assert_close(divergence(dense, other, factor), expected)
    assert float(divergence(dense, dense + 3.0, factor)) == pytest.approx(0.0, abs=1e-12)  # softmax knows no offset


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_sharpness_gives_the_best_class_its_probability_whatever_the_scale(scale: float) -> None:
    found = inverse_temperature(scale * scores(2))
    assert found is not None
    assert float((found * scale * scores(2)).softmax(1).amax(1).mean()) == pytest.approx(CONFIDENCE, abs=1e-9)


@pytest.mark.parametrize("given", [torch.ones(3, 1), torch.ones(3, 4), torch.ones(0, 4)], ids=["one", "equal", "none"])
def test_no_sharpness_where_there_are_no_classes_to_tell_apart(given: torch.Tensor) -> None:
    assert inverse_temperature(given) is None


def test_ties_among_some_sequences_do_not_stop_it() -> None:
    mixed = torch.tensor([[0.0, 0.0], [0.0, 5.0]])  # never above 0.75 in the mean
    found = inverse_temperature(mixed)
    assert found is not None
    assert float((found * mixed).double().softmax(1).amax(1).mean()) == pytest.approx(0.5 + 0.25 * (REACH - 0.5) / 0.5)
    assert found < 1  # so that a difference of one spike decides nothing


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("tied", [0.0, 0.05, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["silent", "two best", "nearly tied"])
def test_the_factor_hardly_depends_on_how_many_sequences_are_tied(classes: int, tied: float, kind: str) -> None:
    """On the sequences that decide between classes it stays of one size; without ties it is the old definition's."""
    given = torch.randint(0, 12, (2000, classes), generator=torch.Generator().manual_seed(3)).double()
    given = given[(given == given.amax(1, keepdim=True)).sum(1) == 1][:1000]
    clear = inverse_temperature(given)
    assert clear is not None
    assert float((clear * given).softmax(1).amax(1).mean()) == pytest.approx(CONFIDENCE, abs=1e-9)
    count = round(tied * len(given))
    if kind == "silent":
        given[:count] = 0.0
    else:
        order = given[:count].argsort(1)
        best = given[:count].amax(1, keepdim=True) + 1
        given[:count] = given[:count].scatter(1, order[:, -2:], best.expand(-1, 2))
        if kind == "nearly tied":
            given[:count] += 1e-9 * torch.rand(given[:count].shape, generator=torch.Generator().manual_seed(4)).double()
    found = inverse_temperature(given)
    assert found is not None and clear / 3 < found < 3 * clear
