"""Which layers get settings of their own: :class:`Rule`, and what selects layers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from sbc_plugin.errors import SettingsError
from sbc_plugin.settings import Prune, Quantize

Selector: TypeAlias = str | type[nn.Module]
What: TypeAlias = Prune | Quantize | tuple[Prune | Quantize, ...] | None

LONGEST = 1000  # characters of a selector
REGEX, TYPE = "re:", "type:"


@dataclass(frozen=True)
class Rule:
    """What some layers get in the place of what all others get.

    Attributes:
        layers: which: a layer's name; a pattern of names such as "features.*"; "re:" and a regular expression of the
            whole name; "type:" and the name of a class, or the class itself.
        prune: with a budget of these layers' own; None leaves it to the settings of all layers.
        quantize: the same for the grid. If both are None, the layers are left alone.

    Raises:
        SettingsError: no selector, or a regular expression that cannot be read.
    """

    layers: Selector
    prune: Prune | None = None
    quantize: Quantize | None = None

    def __post_init__(self) -> None:
        check_selector(self.layers)
        for name, value, kind in (("prune", self.prune, Prune), ("quantize", self.quantize, Quantize)):
            if value is not None and not isinstance(value, kind):
                raise SettingsError(f"rule for {self.layers!r}: {name}={value!r} is no {kind.__name__}")

    @property
    def leaves_alone(self) -> bool:
        """Whether nothing is to be done to the layers."""
        return self.prune is None and self.quantize is None

    @classmethod
    def of(cls, given: Any, number: int = 0) -> "Rule":
        """A rule from a pair of a selector and ``Prune``, ``Quantize``, both of them in a tuple, or None.

        Raises:
            SettingsError: it is no such pair.
        """
        if isinstance(given, Rule):
            return given
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise SettingsError(
                f"rules[{number}]={given!r} is no pair; give (selector, Prune(...)), or Quantize, or None"
            )
        selector, what = given
        parts = () if what is None else tuple(what) if isinstance(what, tuple | list) else (what,)
        kinds = [type(part) for part in parts]
        if any(kind not in (Prune, Quantize) for kind in kinds) or len(set(kinds)) < len(kinds) or what == ():
            raise SettingsError(f"rules[{number}]: {what!r} is no Prune, Quantize, tuple of one of each, or None")
        found = dict(zip(kinds, parts, strict=True))
        return cls(selector, found.get(Prune), found.get(Quantize))


def selectors_of(given: Any) -> tuple[Selector, ...]:
    """What ``ignore`` holds.

    Raises:
        SettingsError: it is no list of selectors.
    """
    selectors = _listed("ignore", given)
    for selector in selectors:
        check_selector(selector)
    return selectors


def rules_of(given: Any) -> tuple[Rule, ...]:
    """What ``rules`` holds.

    Raises:
        SettingsError: it is no list of rules, or of pairs.
    """
    return tuple(Rule.of(rule, number) for number, rule in enumerate(_listed("rules", given)))


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise SettingsError(f"{name}={value!r} is no list; give {name}=[...]")
    return tuple(value)


def check_selector(selector: Any) -> None:
    """Refuse what selects no layers.

    Raises:
        SettingsError: no text and no class of modules, or a regular expression that cannot be read.
    """
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        return
    if not isinstance(selector, str) or not selector:
        raise SettingsError(
            f"{selector!r} selects no layers; give a name, 'features.*', 're:...', 'type:Conv2d' or nn.Conv2d"
        )
    if len(selector) > LONGEST:
        raise SettingsError(
            f"a selector of {len(selector):,} characters, of which {LONGEST} are allowed: {selector[:40]!r}..."
        )
    if selector.startswith(REGEX):
        try:
            re.compile(selector.removeprefix(REGEX))
        except (re.error, RecursionError, OverflowError) as error:
            raise SettingsError(f"{selector!r} is no regular expression: {error}") from error


def as_text(selector: Selector) -> str:
    """A selector as files hold it: a class by its full name.

    >>> as_text(nn.Linear), as_text("fc*")
    ('type:torch.nn.modules.linear.Linear', 'fc*')
    """
    return selector if isinstance(selector, str) else f"{TYPE}{selector.__module__}.{selector.__qualname__}"
