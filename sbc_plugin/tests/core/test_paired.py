"""The paired interval against its publication, brute force over all outcomes, and simulated data."""

import math

import pytest
import torch

from sbc_plugin.core.paired import PairedDrop, halves
from sbc_plugin.errors import SettingsError


def test_interval_is_the_published_one() -> None:
    """21 children's airways before and after a transplantation, as reviews of such intervals print them."""
    found = PairedDrop(sequences=21, lost=1, won=7)
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert found.drop == pytest.approx(-6 / 21)


def test_both_ways_round_are_mirror_images() -> None:
    one, other = PairedDrop(50, 6, 2), PairedDrop(50, 2, 6)
    assert (one.low, one.high, one.drop) == pytest.approx((-other.high, -other.low, -other.drop))


def coverage(n: int, lost: float, won: float) -> float:
    """The probability that the interval holds the true drop, summed over every outcome."""
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            found = PairedDrop(n, b, c)
            if found.low <= lost - won <= found.high:
                ways = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(n - b - c + 1)
                same = 1 - lost - won
                total += math.exp(ways + b * math.log(lost) + c * math.log(won) + (n - b - c) * math.log(same))
    return total


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.05, 0.05), (0.1, 0.02), (0.3, 0.1), (0.01, 0.005)])
def test_coverage_over_all_outcomes(n: int, lost: float, won: float) -> None:
    assert coverage(n, lost, won) >= 0.93


def test_coverage_on_simulated_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(2000):
        draw = torch.rand(150, generator=generator)
        before = draw < 0.95
        after = (draw < 0.90) | ((draw > 0.95) & (draw < 0.97))  # loses 5 points, wins 2
        found = PairedDrop.of(before, after)
        held += found.low <= 0.03 <= found.high
    assert held / 2000 >= 0.94


@pytest.mark.parametrize("width", [0.1, 0.01, 0.003])
def test_so_many_sequences_have_an_interval_of_this_width(width: float) -> None:
    few = PairedDrop(200, 10, 4)
    n = few.sequences_for(width)
    rate_lost, rate_won = (few.lost + 1) / 202, (few.won + 1) / 202
    variance = rate_lost + rate_won - (rate_lost - rate_won) ** 2
    assert 1.959964 * math.sqrt(variance / (n + 2)) <= width + 1e-9
    assert n == 1 or 1.959964 * math.sqrt(variance / (n + 1)) > width - 1e-9


def test_what_is_no_comparison_is_refused() -> None:
    for given in ((0, 0, 0), (5, 4, 2), (5, -1, 0)):
        with pytest.raises(SettingsError, match="no comparison"):
            PairedDrop(*given)
    with pytest.raises(SettingsError, match="half_width"):
        PairedDrop(5, 1, 0).sequences_for(0.0)


@pytest.mark.parametrize("count", [1, 2, 7, 60, 101])
def test_halves_have_the_same_classes(count: int) -> None:
    labels = torch.arange(count) % 5
    one, other = halves(labels)
    assert bool((one ^ other).all()) and int(one.sum()) - int(other.sum()) == count % 2
    for label in range(5):
        assert abs(int((one & (labels == label)).sum()) - int((other & (labels == label)).sum())) <= 1
    assert torch.equal(halves(labels)[0], one)
    assert count < 60 or not torch.equal(halves(labels, seed=1)[0], one)
