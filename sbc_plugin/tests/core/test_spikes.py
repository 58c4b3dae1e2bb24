"""Spike metrics against double loops over spikes, neurons, samples and weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.spikes import (
    Operations,
    energy,
    synaptic_operations,
    van_rossum_distance,
)
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.tests.oracles import operations_by_loops, van_rossum_by_pairs

TAU, DT = 5e-3, 1e-3


def spikes_of(*shape: int, seed: int = 0, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).to(torch.float64)


def test_distance_equals_the_double_sum_over_spikes() -> None:
    a, b = spikes_of(25, 2, 3), spikes_of(25, 2, 3, seed=1)
    b[3, 0, 0] = -2.0  # graded and signed spikes count as they are
    distance = van_rossum_distance(a, b, tau=TAU, dt=DT)
    assert distance.shape == (2, 3)
    for batch in range(2):
        for neuron in range(3):
            expected = van_rossum_by_pairs(a[:, batch, neuron], b[:, batch, neuron], TAU, DT)
            assert distance[batch, neuron].item() == pytest.approx(expected, rel=1e-12)  # a few hundred float64 sums


def test_distance_of_a_train_to_itself_is_zero_and_it_is_symmetric() -> None:
    a, b = spikes_of(25, 4), spikes_of(25, 4, seed=1)
    assert (van_rossum_distance(a, a, tau=TAU, dt=DT) == 0).all()
    assert torch.equal(van_rossum_distance(a, b, tau=TAU, dt=DT), van_rossum_distance(b, a, tau=TAU, dt=DT))


def test_one_spike_more_costs_a_half_in_the_limit() -> None:
    silence = torch.zeros(20000, dtype=torch.float64)
    spike = silence.clone()
    spike[0] = 1.0
    # The sum over steps is above the integral by dt / (2 tau) = 5e-4.
    assert van_rossum_distance(spike, silence, tau=1.0, dt=1e-3).item() == pytest.approx(0.5 + 5e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float32])
def test_distance_takes_spikes_of_any_dtype(dtype: torch.dtype) -> None:
    a, b = spikes_of(25, 4), spikes_of(25, 4, seed=1)
    distance = van_rossum_distance(a.to(dtype), b.to(dtype), tau=TAU, dt=DT)
    assert distance.dtype == torch.float32
    expected = van_rossum_distance(a, b, tau=TAU, dt=DT)
    assert_close(distance.double(), expected, rtol=1e-5, atol=0)  # float32 over 25 steps


@pytest.mark.parametrize("groups", [None, [1, 0, 1, 1]])
def test_operations_are_those_of_loops(groups: list[int] | None) -> None:
    samples, weight = spikes_of(2, 7, 5), spikes_of(4, 5, seed=2) * -0.5
    expected = operations_by_loops(samples, weight, groups or [0, 0, 1, 1])
    owners = None if groups is None else torch.tensor(groups)
    dense = 7 * 4 * 5
    assert synaptic_operations(samples, weight, owners) == Operations(acs=expected, dense=dense)
    assert synaptic_operations(-samples, weight, owners) == Operations(acs=expected, dense=dense)
    assert synaptic_operations(samples.bool(), weight, owners) == Operations(acs=expected, dense=dense)
    assert synaptic_operations(samples * 0.5, weight, owners) == Operations(macs=expected, dense=dense)


def test_operations_of_one_group() -> None:
    samples, weight = spikes_of(7, 5), spikes_of(4, 5, seed=2)
    expected = operations_by_loops(samples[None], weight, [0] * 4)
    assert synaptic_operations(samples, weight) == Operations(acs=expected, dense=140)
    assert synaptic_operations(torch.zeros(7, 5), weight) == Operations(dense=140)


def test_operations_equal_a_convolution_of_ones() -> None:
    frames, weight = spikes_of(3, 2, 6, 6), spikes_of(4, 2, 3, 3, seed=2)
    columns = torch.nn.functional.unfold(frames, 3, padding=1).mT.reshape(-1, 18)
    expected = torch.nn.functional.conv2d(frames, weight, padding=1).sum()
    assert synaptic_operations(columns, weight.flatten(1)).acs == expected


def test_energy_is_the_sum_over_kinds() -> None:
    total = Operations(acs=1000) + Operations(acs=500, macs=2, dense=9000)
    assert total == Operations(acs=1500, macs=2, dense=9000)
    assert math.isclose(energy(total), 1500 * 0.9e-12 + 2 * 4.6e-12, rel_tol=1e-15)


def test_bad_input_is_named() -> None:
    spikes = spikes_of(5, 2, 3)
    with pytest.raises(CalibrationError, match=r"\(5, 2, 3\) and \(4, 2, 3\)"):
        van_rossum_distance(spikes, spikes[1:], tau=TAU, dt=DT)
    with pytest.raises(SettingsError, match=r"tau=0, dt=0.001"):
        van_rossum_distance(spikes, spikes, tau=0, dt=DT)
    with pytest.raises(CalibrationError, match=r"\(5, 2, 3\).*\(4, 2\)"):
        synaptic_operations(spikes, spikes_of(4, 2))
    with pytest.raises(SettingsError, match="4 rows"):
        synaptic_operations(spikes_of(3, 5, 2), spikes_of(4, 2))
