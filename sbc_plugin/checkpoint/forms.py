"""The forms of packed weights as JSON, and back. Source: docs/checkpoint.md."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from sbc_plugin.checkpoint.module_state import DTYPES, NAMES
from sbc_plugin.core.exact_grids import MULTIPLES
from sbc_plugin.core.packing import TRIT, WIDTHS
from sbc_plugin.core.storage import FLOATS, PackedWeight
from sbc_plugin.errors import CheckpointError

MOST_AXES, MOST_BITS = 64, 8
LARGEST = 2**48  # more weights than any file has


def form_as_json(form: PackedWeight) -> dict[str, Any]:
    """A form as JSON; what has its usual value is left out."""
    entry: dict[str, Any] = {"shape": list(form.shape), "bytes": form.size}
    if form.dtype != torch.float32:
        entry["dtype"] = NAMES[form.dtype]
    if form.places != "all":
        entry |= {"places": form.width or "mask", "kept": form.kept}
    if form.bits:
        entry["bits"] = form.bits
        if form.zero != _middle(form.bits):
            entry["zero"] = form.zero
        if form.scales != form.shape[0]:
            entry["scales"] = form.scales
        if form.scale_dtype != torch.float32:
            entry["scale"] = NAMES[form.scale_dtype]
    return entry


def form_of(entry: Mapping[str, Any]) -> PackedWeight:
    """The form behind an entry of :func:`form_as_json`.

    Raises:
        CheckpointError: a field is missing, or of a type or size that no form has.
    """
    shape = entry.get("shape")
    if not isinstance(shape, list) or not 0 < len(shape) <= MOST_AXES:
        raise CheckpointError(f"its shape is {_shown(shape)}; the file is damaged")
    for size in shape:
        _whole("shape", size, 1, LARGEST)
    count = _whole("shape", prod(shape), 1, LARGEST)
    bits: Any = entry.get("bits", 0)
    if bits != TRIT:
        _whole("bits", bits, 1 if "bits" in entry else 0, MOST_BITS)
    width = entry.get("places", 0)
    if "places" in entry and width != "mask":
        _whole("places", width, WIDTHS[0], WIDTHS[-1])
    zero = entry.get("zero", _middle(bits) if bits else 0)
    return PackedWeight(
        shape=tuple(shape),
        dtype=_dtype("dtype", entry),
        places="all" if "places" not in entry else "mask" if width == "mask" else "gaps",
        width=0 if width == "mask" else width,
        kept=_whole("kept", entry.get("kept", count), 0, count),
        bits=bits,
        zero=None if zero is None else _whole("zero", zero, 0, MULTIPLES),
        scales=_whole("scales", entry.get("scales", shape[0]), 1, count) if bits else 0,
        scale_dtype=_dtype("scale", entry),
        size=_whole("bytes", entry.get("bytes"), 0, LARGEST),
    )


def _whole(field: str, value: Any, least: int, most: int) -> int:
    """A whole number of the header, as it is.

    Raises:
        CheckpointError: it is none, or out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"its field {field!r} is {_shown(value)}, not from {least:,} to {most:,}; the file is damaged"
        )
    return value


def _dtype(field: str, entry: Mapping[str, Any]) -> torch.dtype:
    name = entry.get(field, "F32")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype not in FLOATS:
        raise CheckpointError(f"its field {field!r} is {_shown(name)}, no floating-point type; the file is damaged")
    return dtype


def _middle(bits: float) -> int:
    """The usual code of 0.0."""
    return 1 if bits == TRIT else 2 ** (int(bits) - 1) - 1


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < LARGEST else "a number beyond 2^48"
    return text if len(text) < 60 else f"{text[:60]}..."
