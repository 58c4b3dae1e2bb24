"""Strangers' networks are pruned right, or refused with the model as it was; the oracle finds a wrong cut."""

import copy

import pytest
import torch
from torch import nn

from integration_tests.strangers.channels import attempt, masked, reproduction, settings, summary
from integration_tests.strangers.networks import network
from sbc_plugin.torch_pruning import get_pruner

SEEDS = range(60)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 10))
def test_strangers_are_pruned_right_or_refused(first: int) -> None:
    outcomes = {seed: attempt(seed) for seed in SEEDS[first : first + 10]}
    faults = [reproduction(seed, outcome) for seed, outcome in outcomes.items() if outcome.is_fault]
    assert not faults, "\n\n".join(faults)
    assert sum(outcome.kind == "right" for outcome in outcomes.values()) >= 8


def test_a_network_follows_from_its_seed_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = network(7), network(7)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.description == second.description and first.description != network(8).description
    assert torch.equal(first.batch, second.batch)
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.run(first.model, first.batch), second.run(second.model, second.batch))


def test_every_network_runs_with_the_batch_that_comes_with_it() -> None:
    with torch.no_grad():
        for seed in range(100, 130):
            stranger = network(seed)
            output = stranger.run(stranger.model, stranger.batch)
            assert output.isfinite().all() and stranger.batch.shape[1] in output.shape
            assert stranger.model(stranger.example) is not None
            assert any(module is stranger.readout for module in stranger.model.modules())


def test_the_oracle_finds_weights_that_came_to_the_wrong_place() -> None:
    stranger = network(1)
    dense, given = copy.deepcopy(stranger.model), settings(stranger)
    pruner = get_pruner("l2", stranger.model, stranger.example, **given)
    for _ in range(given["iterative_steps"]):
        pruner.step()
    expected = masked(stranger, dense, pruner.pruning_history())

    def outputs(model: nn.Module) -> torch.Tensor:
        return stranger.run(copy.deepcopy(model).double(), stranger.batch.double()).detach()

    torch.testing.assert_close(outputs(stranger.model), outputs(expected), rtol=0, atol=1e-9)
    with torch.no_grad():
        stranger.readout.weight.copy_(stranger.readout.weight.flip(1))  # type: ignore[operator, union-attr]
    assert not torch.allclose(outputs(stranger.model), outputs(expected), rtol=0, atol=1e-3)


def test_refusals_are_counted_without_names_and_numbers() -> None:
    one, two = (summary(f"torch-pruning's graph is wrong for {n} layers: 'a.{n}': mixed") for n in (1, 23))
    assert one == two == "torch-pruning's graph is wrong for N layers: '...': mixed"
