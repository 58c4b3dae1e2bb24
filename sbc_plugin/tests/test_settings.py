"""Settings accept what they document and say what is wrong with the rest."""

import dataclasses
from typing import Any

import pytest

from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin.errors import SettingsError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 0.999])
def test_sparsity_in_range(sparsity: float) -> None:
    assert Prune(sparsity).sparsity == sparsity


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 90, NAN, INF])
def test_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(SettingsError, match=r"sparsity=.* is not a fraction of zeros; use 0 <= sparsity < 1"):
        Prune(sparsity)


@pytest.mark.parametrize("sparsity", ["0.9", None, [0.5], 1j])
def test_sparsity_that_is_no_number(sparsity: Any) -> None:
    with pytest.raises(SettingsError, match="is not a fraction of zeros"):
        Prune(sparsity)


@pytest.mark.parametrize(
    ("sparsity", "pattern"), [(0.5, "2:4"), (0.5, "4:8"), (0.75, "1:4"), (1 - 1 / 3, "1:3"), (0.3, "block:4")]
)
def test_patterns_that_fit_the_sparsity(sparsity: float, pattern: str) -> None:
    assert Prune(sparsity, pattern=pattern).pattern == pattern


@pytest.mark.parametrize("rounds", [0, -1, True, 1.0, "2"])
def test_a_number_of_rounds_that_is_none(rounds: Any) -> None:
    with pytest.raises(SettingsError, match=r"rounds=.* must be a whole number of at least 1"):
        Prune(0.5, rounds=rounds)


def test_n_of_m_leaves_no_choice_of_rounds() -> None:
    assert Prune(0.5, pattern="2:4", rounds=1).rounds == 1
    with pytest.raises(SettingsError, match="'2:4' leaves no choice of rounds; leave rounds=2 out"):
        Prune(0.5, pattern="2:4", rounds=2)


def test_pattern_that_contradicts_the_sparsity() -> None:
    message = r"'2:4' has a sparsity of 0.5, sparsity=0.9 contradicts it; use Prune\(0.5, pattern='2:4'\)"
    with pytest.raises(SettingsError, match=message):
        Prune(0.9, pattern="2:4")


@pytest.mark.parametrize("pattern", ["", "random", "4:2", "4:4", "0:4", "block:0", "block:x", "2:", "block"])
def test_unknown_patterns(pattern: str) -> None:
    with pytest.raises(SettingsError, match="pattern"):
        Prune(0.5, pattern=pattern)


@pytest.mark.parametrize(
    ("make", "field", "known"),
    [
        (lambda v: Prune(0.5, solver=v), "solver", "'auto', 'magnitude', 'obs', 'admm', 'hybrid'"),
        (lambda v: Prune(0.5, allocation=v), "allocation", "'lamp', 'uniform', 'loss'"),
        (lambda v: Quantize(4, scale=v), "scale", "'mse', 'absmax', 'power_of_two'"),
        (lambda v: Calibration(order=v), "order", "'one-shot', 'sequential'"),
    ],
)
def test_unknown_choices_list_the_known_ones(make: Any, field: str, known: str) -> None:
    for value in ("nonsense", None, 3):
        with pytest.raises(SettingsError, match=f"{field}={value!r} is unknown; use one of {known}"):
            make(value)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bits_in_range(bits: int) -> None:
    assert Quantize(bits).bits == bits


@pytest.mark.parametrize("bits", [1, 0, -4, 9, 16, 4.0, "4", None, True])
def test_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(SettingsError, match=r"bits=.* is not supported; use a whole number from 2 to 8"):
        Quantize(bits)


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:1", "group:32"])
def test_granularities(granularity: str) -> None:
    assert Quantize(4, granularity=granularity).granularity == granularity


@pytest.mark.parametrize(
    "granularity", ["row", "group", "group:", "group:0", "group:-1", "group:3.5", "group:3\n", None]
)
def test_unknown_granularities(granularity: Any) -> None:
    with pytest.raises(SettingsError, match=r"granularity=.* is unknown; use 'channel', 'tensor' or 'group:32'"):
        Quantize(4, granularity=granularity)


@pytest.mark.parametrize("damping", [-0.1, NAN, INF, "0.1", None])
def test_damping_out_of_range(damping: Any) -> None:
    with pytest.raises(SettingsError, match=r"damping=.* must be a fraction >= 0"):
        Calibration(damping=damping)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, NAN, None])
def test_alpha_out_of_range(alpha: Any) -> None:
    with pytest.raises(SettingsError, match=r"alpha=.* must be from 0 .* to 1"):
        Calibration(alpha=alpha)


@pytest.mark.parametrize("max_samples", [0, -3, 2.5, True, "10"])
def test_max_samples_out_of_range(max_samples: Any) -> None:
    with pytest.raises(SettingsError, match=r"max_samples=.* must be a whole number of at least 1, or None for all"):
        Calibration(max_samples=max_samples)


def test_a_device_nobody_has() -> None:
    with pytest.raises(SettingsError, match="device='gpu' is unknown to torch"):
        Calibration(device="gpu")


def test_defaults_are_the_documented_ones() -> None:
    assert Prune(0.9) == Prune(0.9, "unstructured", "auto", "lamp", True)
    assert Quantize(4) == Quantize(4, "channel", "mse", True)
    assert Calibration() == Calibration("one-shot", True, 0.01, 0.25, None, None)


@pytest.mark.parametrize("settings", [Prune(0.5), Quantize(4), Calibration()])
def test_settings_cannot_change(settings: Any) -> None:
    field = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, field, 0.1)


@pytest.mark.parametrize("allocation", ["lamp", "mixed", None])
def test_bits_are_dealt_alike_or_by_loss(allocation: Any) -> None:
    assert Quantize(2, allocation="loss").allocation == "loss" and Quantize(2).allocation == "uniform"
    with pytest.raises(SettingsError, match=rf"allocation={allocation!r} is unknown; use one of 'uniform', 'loss'"):
        Quantize(2, allocation=allocation)
