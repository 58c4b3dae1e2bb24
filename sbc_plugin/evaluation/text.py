"""Names and numbers as other programs read them: JSON without NaN, records from JSON, names that are always text."""

import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

LONGEST = 40  # characters of a name in a sentence or beside an axis
NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as text, because JSON has no numbers of this kind


def printable(text: str) -> str:
    r"""The text with everything escaped that has no picture: halves of surrogate pairs, control characters, new lines.

    >>> printable("fc1"), printable("a\nb"), printable("\ud800")
    ('fc1', 'a\\nb', '\\ud800')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(name: str) -> str:
    """The name of a layer in a sentence or beside an axis; of one that is too long, its beginning and its end.

    >>> shortened("block1.conv"), shortened("x" * 30 + "y" * 30)
    ('block1.conv', 'xxxxxxxxxxxxxxxxxxxx…yyyyyyyyyyyyyyyyyyy')
    """
    name = printable(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[1 - LONGEST // 2 :]}"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    r"""Lines of a plain text table: the first two columns to the left, numbers to the right.

    >>> print("\n".join(table(["name", "kind", "n"], [["a", "b", "10"]])))
    name  kind   n
    a     b     10
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in [heads, *rows]:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def as_json(content: Any, indent: int | None = None) -> str:
    """The content as JSON that every reader takes: NaN and infinity are the texts "NaN", "Infinity" and "-Infinity".

    >>> as_json({"loss": float("inf"), "bits": 4})
    '{"loss": "Infinity", "bits": 4}'
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def of_fields(kind: type[Record], content: Any) -> Record:
    """A dataclass from what JSON holds, each field of the type that it is declared with.

    Args:
        kind: the dataclass, with fields of numbers, text, lists of these, and other dataclasses.
        content: a dict with its fields.

    Raises:
        TypeError: no dict, a field that is missing or unknown, or a value of another type.

    >>> from dataclasses import make_dataclass
    >>> of_fields(make_dataclass("Row", [("loss", float)]), {"loss": "Infinity"}).loss
    inf
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{type(content).__name__} in the place of {kind.__name__}")
    hints = get_type_hints(kind)
    return kind(**{str(name): _value(hints.get(name), value, str(name)) for name, value in content.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """The value, if it is what the hint says.

    Raises:
        TypeError: it is not.
    """
    if hint is float and (value in NOT_FINITE or (isinstance(value, int | float) and not isinstance(value, bool))):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return of_fields(hint, value)
    if get_origin(hint) is list and isinstance(value, list):
        return [_value(get_args(hint)[0], part, name) for part in value]
    if isinstance(hint, UnionType):
        return None if value is None else _value(get_args(hint)[0], value, name)
    raise TypeError(f"{name} is {type(value).__name__}, {getattr(hint, '__name__', 'nothing of that name')} is needed")
