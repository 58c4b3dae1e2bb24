"""What a whole network may cost, as a frozen record that validates itself: :class:`Budget`."""

import re
from dataclasses import dataclass, fields
from numbers import Real
from os import PathLike
from typing import Any

from sbc_plugin.core.sizes import bytes_of
from sbc_plugin.errors import SettingsError
from sbc_plugin.settings.files import read_content

ACROSS = ("size", "operations", "energy", "factor")  # what a budget counts
WIDTHS = (2, 3, 4, 8)  # bits that layers may get, where a budget does not say
PARTS = {"": 1.0, "m": 1e3, "u": 1e6, "n": 1e9, "p": 1e12, "f": 1e15}  # of a joule, by prefix


@dataclass(frozen=True)
class Budget:
    """What the whole network may cost; zeros and bits of each layer follow from it.

    Exactly one of ``size``, ``operations``, ``energy`` and ``factor`` is given; the others are what a chip allows.

    Attributes:
        size: of all packed weights, in bytes or as "64 kB" or "64 KiB"; as :func:`sbc_plugin.compare` counts it,
            without biases and a file's header.
        operations: effective synaptic operations a sequence, on the calibration data.
        energy: joules a sequence, or as "50 nJ", of these operations in 45 nm; see :func:`sbc_plugin.compare`.
        factor: how many times smaller than the dense network's weights, as 20.0 or "20x".
        bits: that a layer may get, each from 2 to 8. None = 2, 3, 4 or 8 for a size, and floating point for operations
            and energy, which do not depend on bits.
        power_of_two: whether scales have to be powers of two.
        fan_in: the most nonzero inputs of a neuron.
        core_weights: the most nonzero weights of a layer, where one core holds a layer.
        core_bytes: the most bytes of a layer's packed weights, likewise; a number or "32 KiB".

    Raises:
        SettingsError: a value out of range, or not exactly one of the four.

    >>> Budget(factor="20x").factor, Budget(energy="50 nJ").energy, Budget(size="64 kB").size
    (20.0, 5e-08, 64000)
    """

    size: int | str | None = None
    operations: float | None = None
    energy: float | str | None = None
    factor: float | str | None = None
    bits: tuple[int, ...] | None = None
    power_of_two: bool = False
    fan_in: int | None = None
    core_weights: int | None = None
    core_bytes: int | str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ACROSS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise SettingsError(f"a budget counts exactly one of {', '.join(ACROSS)}; found {found}")
        for name in ("size", "core_bytes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, bytes_of(getattr(self, name), name))
        for name, unit, example in (("operations", "", "2e5"), ("energy", "J", '"50 nJ"'), ("factor", "x", '"20x"')):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _amount(name, value, unit, example))
        if self.bits is not None:
            bits = tuple(self.bits) if isinstance(self.bits, list | tuple | range) else (self.bits,)
            if not bits or not all(_is_whole(each) and 2 <= each <= 8 for each in bits):
                raise SettingsError(f"bits={self.bits!r}: a budget allows whole numbers from 2 to 8, e.g. (2, 4, 8)")
            object.__setattr__(self, "bits", tuple(sorted(set(bits))))
        if not isinstance(self.power_of_two, bool):
            raise SettingsError(f"power_of_two={self.power_of_two!r} must be True or False")
        for name in ("fan_in", "core_weights"):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise SettingsError(f"{name}={value!r} must be a whole number of at least 1, or None for no limit")

    @property
    def counts(self) -> str:
        """Which of the four it counts."""
        return next(name for name in ACROSS if getattr(self, name) is not None)

    @property
    def widths(self) -> tuple[int, ...]:
        """The bits that a layer may get; none where weights stay in floating point."""
        return self.bits or (WIDTHS if self.counts in ("size", "factor") else ())

    @classmethod
    def from_file(cls, path: str | PathLike[str], **total: Any) -> "Budget":
        """The budget of a chip, from a file in YAML or TOML whose keys are the attributes.

        Args:
            path: name.yaml, name.yml or name.toml.
            **total: one of the four, in the place of the file's.

        Raises:
            SettingsError: a file that cannot be read, a key that is unknown, or a value out of range.
        """
        content = read_content(path, "budget")
        if not isinstance(content, dict):
            raise SettingsError(f"{path} is no budget: it holds no names and values")
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in content if name not in known]:
            raise SettingsError(f"{path}: {unknown[0]!r} is no part of a budget; use some of {', '.join(known)}")
        if total:
            content = {name: value for name, value in content.items() if name not in ACROSS}
        try:
            return cls(**content, **total)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from error

    def instead(self, **total: Any) -> "Budget":
        """The same limits of a chip, and another total.

        >>> Budget(size=100, fan_in=8).instead(factor="10x").fan_in
        8
        """
        limits = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ACROSS}
        return type(self)(**limits, **total)


def _amount(name: str, value: object, unit: str, example: str) -> float:
    """A positive number, or a text of one with a unit, which may have a prefix from f to m if it is J.

    Raises:
        SettingsError: neither.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    else:
        found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([fpnum]?)({unit})\s*", str(value))
        if not unit or found is None or (found[2] and unit != "J") or not isinstance(value, str):
            raise SettingsError(f"{name}={value!r} is no amount; use a positive number, e.g. {example}")
        number = float(found[1]) / PARTS[found[2]]
    if not 0 < number < float("inf") or (name == "factor" and number < 1):
        raise SettingsError(f"{name}={value!r} is out of range; use e.g. {example}")
    return number


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
