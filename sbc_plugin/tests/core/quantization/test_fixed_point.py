"""Fixed-point grids of states, against the integers that a chip would hold."""

import pytest
import torch
from torch.testing import assert_close

from sbc_plugin.core.quantization.fixed_point import FixedPoint, fixed_point
from sbc_plugin.errors import CalibrationError, SettingsError


@pytest.mark.parametrize("bits", [2, 3, 8, 11])
@pytest.mark.parametrize("step", [2.0**-9, 1.0, 4.0])
def test_rounding_is_a_signed_integer_that_saturates(bits: int, step: float) -> None:
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).double()
    values = torch.linspace(-1.5, 1.5, 1001, dtype=torch.float64) * 2 ** (bits - 1) * step
    nearest = codes[(values[:, None] / step - codes).abs().argmin(1)] * step
    grid = FixedPoint(bits, step)
    found = grid.round(values)
    ties = (values / step - nearest / step).abs() == 0.5
    assert torch.equal(found[~ties], nearest[~ties])
    assert bits > 8 or set(found.tolist()) == set((codes * step).tolist())  # every code is used
    assert torch.equal(grid.round(values.float()).double(), grid.round(values.float().double()))
    assert torch.equal(grid.saturated(values), (found - values).abs() > step / 2)


@pytest.mark.parametrize(
    ("low", "high"), [(-15.7, 1.0), (0.0, 1.0), (-1.0, 0.0), (-0.3, 0.2), (0.25, 0.5), (-8.0, 7.0)]
)
@pytest.mark.parametrize("bits", [2, 4, 8, 24])
def test_the_step_is_the_smallest_power_of_two_that_holds_the_range(low: float, high: float, bits: int) -> None:
    grid = fixed_point(low, high, bits)
    assert torch.tensor(grid.step).log2().frac() == 0
    assert grid.limits[0] <= low and high <= grid.limits[1]
    half = FixedPoint(bits, grid.step / 2)
    assert half.limits[0] > low or high > half.limits[1]


def test_many_bits_are_the_identity_up_to_half_a_step() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    grid = fixed_point(float(values.min()), float(values.max()), 24)
    assert_close(grid.round(values), values, rtol=0, atol=grid.step / 2)
    assert grid.step < 1e-6


def test_nothing_but_zeros_has_a_grid_too() -> None:
    assert fixed_point(0.0, 0.0, 4).round(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bits", [1, 25, 4.0, True, "4"])
def test_widths_without_a_grid(bits: object) -> None:
    with pytest.raises(SettingsError, match="2 to 24"):
        fixed_point(-1.0, 1.0, bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("high", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite(high: float) -> None:
    with pytest.raises(CalibrationError, match="no grid"):
        fixed_point(-1.0, high, 8)
