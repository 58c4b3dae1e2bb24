"""Sizes in bytes, as people write them."""

import re

from sbc_plugin.errors import SettingsError

UNITS = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for unit, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def bytes_of(size: object, what: str = "size") -> int:
    """A number of bytes, given as such or in words.

    Args:
        size: a positive number, or one with a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).
        what: named in the error.

    Raises:
        SettingsError: neither.

    >>> bytes_of("64 kB"), bytes_of("1.5GiB"), bytes_of(12)
    (64000, 1610612736, 12)
    """
    if isinstance(size, int | float) and not isinstance(size, bool) and 1 <= size < float("inf"):
        return int(size)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size) if isinstance(size, str) else None
    if found is None or found[2].lower() not in UNITS or float(found[1]) * UNITS[found[2].lower()] < 1:
        raise SettingsError(f'{what}={size!r} is no number of bytes; use e.g. "8 GiB", "64 kB", or 64_000')
    return int(float(found[1]) * UNITS[found[2].lower()])


def in_words(count: float) -> str:
    """A number of bytes, in words.

    >>> in_words(1536), in_words(3 * 2**30), in_words(10)
    ('1.5 KiB', '3.0 GiB', '10 bytes')
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count:.0f} bytes"
