"""Strangers' networks in NIR files answer as before, or the layer is named; the oracles find another answer."""

import copy

import pytest
import torch

from integration_tests.strangers.nir_files import attempt, differs, reproduction
from integration_tests.strangers.nir_networks import chain, graph, stepped
from sbc_plugin.nir import graph_of, read

SEEDS = range(60)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 20))
def test_strangers_are_written_and_read_or_refused_by_name(first: int) -> None:
    outcomes = {seed: attempt(seed) for seed in SEEDS[first : first + 20]}
    wrong = [reproduction(seed, outcome) for seed, outcome in outcomes.items() if outcome.is_fault]
    assert not wrong, "\n\n".join(wrong)
    assert sum(outcome.kind == "right" for outcome in outcomes.values()) >= 12


def test_networks_follow_from_their_seed_and_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, two = chain(3), chain(3)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.equal(one.batch, two.batch)
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))
    first, second = graph(3), graph(3)
    assert torch.equal(first.expected, second.expected) and first.source.edges == second.source.edges


def test_most_networks_spike_and_not_always() -> None:
    rates = [float(graph(seed).expected.abs().mean()) for seed in range(30)]
    assert sum(0.02 < rate < 0.98 for rate in rates) > 15


@pytest.mark.parametrize("seed", [0, 4, 5])
def test_the_oracles_find_a_weight_that_moved(seed: int) -> None:
    made = graph(seed)
    model = read(made.source, dt=1e-3, reset_method="reset_subtract" if made.subtract else "reset_value").double()
    with torch.no_grad():
        assert differs(stepped(model, made.batch), made.expected) == ""
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert "away" in differs(stepped(model, made.batch), made.expected)


def test_the_oracle_of_chains_finds_a_time_constant_that_moved() -> None:
    stranger = next(s for s in map(chain, range(50)) if s.foreign is None and not s.sequence)
    again = read(graph_of(copy.deepcopy(stranger.model).float(), input_shape=stranger.shape))
    other = read(graph_of(copy.deepcopy(stranger.model).float(), input_shape=stranger.shape), dt=5e-4)
    x = stranger.batch.float()
    with torch.no_grad():
        assert "away" in differs(stepped(other, x), stepped(again, x))
