"""Fixed-point grids for states that change at every step: signed, a power-of-two step, saturating.

Unlike the grids of weights they have one step for all values, so that a chip can compute with adders and shifters.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from sbc_plugin.errors import CalibrationError, SettingsError

BITS = range(2, 25)  # float32 holds every integer of 24 bits


@dataclass(frozen=True)
class FixedPoint:
    """The values ``code * step``, code from ``-2^(bits - 1)`` to ``2^(bits - 1) - 1``.

    Attributes:
        bits: 2 to 24, sign included.
        step: distance of two neighbouring values, a power of two; in the unit of what is rounded.

    >>> import torch
    >>> FixedPoint(bits=3, step=0.5).round(torch.tensor([0.3, -0.75, 9.0, -9.0])).tolist()
    [0.5, -1.0, 1.5, -2.0]
    """

    bits: int
    step: float

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return -(2.0 ** (self.bits - 1)) * self.step, (2.0 ** (self.bits - 1) - 1) * self.step

    def round(self, values: Tensor) -> Tensor:
        """The nearest values of the grid, of any shape, in the dtype given; ties go to even codes, the rest saturates.

        Exact in float32 and float64, because the step is a power of two.
        """
        return ((values / self.step).round() * self.step).clamp(*self.limits)

    def saturated(self, values: Tensor) -> Tensor:
        """True where a value lies more than half a step beyond the limits, so that rounding moves it further."""
        low, high = self.limits
        return (values < low - self.step / 2) | (values > high + self.step / 2)


def fixed_point(low: float, high: float, bits: int) -> FixedPoint:
    """The grid of the smallest power-of-two step whose limits hold everything from ``low`` to ``high``.

    Args:
        low: smallest value seen.
        high: largest value seen.
        bits: 2 to 24.

    Raises:
        SettingsError: bits out of range.
        CalibrationError: a value seen is NaN or infinite.

    >>> fixed_point(-0.2, 1.0, bits=4)
    FixedPoint(bits=4, step=0.25)
    """
    check_bits(bits)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CalibrationError(f"values from {low:g} to {high:g} have no grid; repair the model or the data")
    largest = max(high / (2 ** (bits - 1) - 1), -low / 2 ** (bits - 1))
    if largest <= 0:  # nothing but zeros was seen
        return FixedPoint(bits, 1.0)
    mantissa, exponent = math.frexp(largest)
    return FixedPoint(bits, math.ldexp(1.0, exponent - (mantissa == 0.5)))


def check_bits(bits: int) -> None:
    """Refuse a number of bits for which there is no grid.

    Raises:
        SettingsError: it is no whole number from 2 to 24.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        raise SettingsError(f"bits={bits!r} is not supported; use a whole number from {BITS[0]} to {BITS[-1]}")
