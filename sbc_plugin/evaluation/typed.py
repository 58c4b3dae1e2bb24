"""Settings from what files hold: every value is of the type that its field declares, and errors name file and key."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sbc_plugin.errors import SettingsError
from sbc_plugin.settings import Budget, Calibration, Prune, Quantize

Kind = TypeVar("Kind", Prune, Quantize, Calibration, Budget)
Result = TypeVar("Result")

LONGEST = 60  # characters of a value in an error
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list of whole numbers"}


def mapping_of(content: Any, known: Iterable[str], where: str) -> dict[str, Any]:
    """The content as a dict.

    Raises:
        SettingsError: it is no mapping, or has a key that is not known.
    """
    if not isinstance(content, Mapping):
        raise SettingsError(f"{where} is {shown(content)}; settings by name are needed: {', '.join(sorted(known))}")
    for key in content:
        if key not in known:
            raise SettingsError(f"{where}: {shown(key)} is unknown; use {', '.join(sorted(known))}")
    return dict(content)


def list_of(value: Any, where: str, key: str) -> list[Any]:
    """The value, if it is a list.

    Raises:
        SettingsError: it is not.
    """
    if not isinstance(value, list):
        raise SettingsError(f"{where}: {key} is {shown(value)}, a list is needed")
    return value


def settings_of(kind: type[Kind], value: Any, where: str, key: str) -> Kind:
    """A settings object of this kind from a mapping.

    Raises:
        SettingsError: a key that is unknown or missing, or a value of another type or out of range.
    """
    known = {each.name: each for each in fields(kind)}
    content = mapping_of(value, known, f"{where}: {key}")
    for name, each in known.items():
        if each.default is MISSING and content.get(name) is None:
            raise SettingsError(f"{where}: {key} lacks {name}")
    hints = get_type_hints(kind)
    given = {name: typed(hints[name], part, where, f"{key}.{name}") for name, part in content.items()}
    return naming(f"{where}: {key}", kind, given)


def typed(hint: Any, value: Any, where: str, key: str) -> Any:
    """The value, if it is of one of the types that the hint names; a list becomes a tuple.

    Raises:
        SettingsError: it is not.
    """
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    kind = tuple if isinstance(value, list) else type(value)
    if kind in kinds or (kind is int and float in kinds):
        return tuple(value) if kind is tuple else value
    needed = " or ".join(WORDS[each] for each in kinds if each in WORDS)
    raise SettingsError(f"{where}: {key} is {shown(value)}, {needed} is needed")


def shown(value: Any) -> str:
    """A value in the words of an error."""
    if value is None:
        return "empty"
    if isinstance(value, list | Mapping):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def naming(where: str, make: Callable[..., Result], given: Mapping[str, Any]) -> Result:
    """``make(**given)``, whose errors say where.

    Raises:
        SettingsError: the one that it raised.
    """
    try:
        return make(**given)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
