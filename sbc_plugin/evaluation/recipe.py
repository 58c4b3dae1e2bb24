"""All settings of a call of ``compress`` as one record, which files hold and which every report writes: :class:`Recipe`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from os import PathLike
from types import UnionType
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from torch import nn

from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.recipe_file import as_yaml, read_content
from sbc_plugin.settings import METHODS, Calibration, Prune, Quantize

Selector: TypeAlias = str | type[nn.Module]
What: TypeAlias = Prune | Quantize | tuple[Prune | Quantize, ...] | None
Kind = TypeVar("Kind", Prune, Quantize, Calibration)

FORMAT = 1
LONGEST = 1000  # characters of a selector
REGEX, TYPE = "re:", "type:"
WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a pair of whole numbers",
}  # fmt: skip


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


@dataclass(frozen=True)
class Recipe:
    """All settings of a call of ``compress``; the model, its data and how it is run are given beside it.

    ``compress(model, data, **Recipe.from_file("recipe.yaml").arguments())`` does what the file says.

    Attributes:
        method: "sbc", "obc", "magnitude" or "rtn".
        prune: of all layers without a rule; None keeps their weights.
        quantize: the same for the grid.
        calibration: how Hessians are gathered, and how the result is tuned.
        ignore: selectors of layers that are left alone.
        rules: of layers that get something else; pairs, as ``compress`` takes them, become :class:`Rule`.
        backend: "brevitas" or None.
        batch_first: as of ``compress``.

    Raises:
        SettingsError: a value of another kind, or nothing to do.
    """

    method: str = "sbc"
    prune: Prune | None = None
    quantize: Quantize | None = None
    calibration: Calibration = field(default_factory=Calibration)
    ignore: tuple[Selector, ...] = ()
    rules: tuple[Rule, ...] = ()
    backend: str | None = None
    batch_first: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingsError(f"method={self.method!r} is unknown; use one of {', '.join(map(repr, METHODS))}")
        ignore, rules = _listed("ignore", self.ignore), _listed("rules", self.rules)
        for selector in ignore:
            check_selector(selector)
        object.__setattr__(self, "ignore", ignore)
        object.__setattr__(self, "rules", tuple(Rule.of(rule, number) for number, rule in enumerate(rules)))
        if not any((self.prune, self.quantize, *(not rule.leaves_alone for rule in self.rules))):
            raise SettingsError("nothing to do: give prune=Prune(sparsity), quantize=Quantize(bits), or both")
        _check_kind("prune", self.prune, Prune, "Prune(0.9)")
        _check_kind("quantize", self.quantize, Quantize, "Quantize(bits=4)")
        _check_kind("calibration", self.calibration, Calibration, "Calibration()")

    @property
    def grids(self) -> list[Quantize]:
        """All settings of a grid, those of all layers first."""
        return [each for each in (self.quantize, *(rule.quantize for rule in self.rules)) if each is not None]

    @property
    def selections(self) -> dict[str, Any]:
        """Name -> selectors to ignore, and each rule; {} where there is none."""
        ignore = {"ignore": self.ignore} if self.ignore else {}
        return ignore | {f"rules[{number}]": rule for number, rule in enumerate(self.rules)}

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``compress`` by name, for ``**``."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts, without what is left open."""
        calibration = asdict(self.calibration)
        if self.calibration.device is not None:
            calibration["device"] = str(self.calibration.device)
        if isinstance(self.calibration.tuning, tuple):
            calibration["tuning"] = list(self.calibration.tuning)
        rules = [
            {"layers": as_text(rule.layers), "ignore": True} if rule.leaves_alone
            else {"layers": as_text(rule.layers), "prune": _plain(rule.prune), "quantize": _plain(rule.quantize)}
            for rule in self.rules
        ]  # fmt: skip
        content = {
            "format": FORMAT,
            "method": self.method,
            "prune": _plain(self.prune),
            "quantize": _plain(self.quantize),
            "calibration": calibration,
            "ignore": [as_text(selector) for selector in self.ignore],
            "rules": rules,
            "backend": self.backend,
            "batch_first": self.batch_first,
        }
        return _given(content)

    @classmethod
    def from_dict(cls, content: Any, where: str = "recipe") -> "Recipe":
        """The recipe from what :meth:`to_dict` gave, or from a part of it.

        Args:
            content: a mapping.
            where: named in errors, e.g. a file.

        Raises:
            SettingsError: unknown keys, or values of another type or out of range; names the key.
        """
        known = {"format", *(each.name for each in fields(cls))}
        content = _mapping(content, known, where)
        version = content.pop("format", FORMAT)
        if type(version) is not int or version > FORMAT:
            raise SettingsError(f"{where}: format is {version!r}, this version reads {FORMAT}; update sbc-plugin")
        hints = get_type_hints(cls)
        read: dict[str, Any] = {"prune": Prune, "quantize": Quantize, "calibration": Calibration}
        found: dict[str, Any] = {}
        for key, value in content.items():
            if value is None:
                continue
            if key in read:
                found[key] = _settings(read[key], value, where, key)
            elif key == "ignore":
                found[key] = tuple(
                    _selector(each, where, f"ignore[{n}]") for n, each in enumerate(_list(value, where, key))
                )
            elif key == "rules":
                found[key] = tuple(_rule(each, where, f"rules[{n}]") for n, each in enumerate(_list(value, where, key)))
            else:
                found[key] = _typed(hints[key], value, where, key)
        return _naming(where, cls, found)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> "Recipe":
        """The recipe of a file in YAML or TOML.

        Raises:
            SettingsError: no such file, no recipe, unknown keys, or values that do not fit; names file and key.
        """
        return cls.from_dict(read_content(path), str(path))

    def to_yaml(self) -> str:
        """The text of a file that :meth:`from_file` reads."""
        return as_yaml(self.to_dict())


def filled(recipe: Recipe, prune: Any, calibration: Calibration) -> Recipe:
    """The recipe with what it left open as it was decided.

    Args:
        recipe: as given.
        prune: ``prune(settings)``, the settings of pruning with all that they leave open.
        calibration: with all that it leaves open.
    """
    rules = tuple(replace(rule, prune=prune(rule.prune)) for rule in recipe.rules)
    return replace(recipe, prune=prune(recipe.prune), rules=rules, calibration=calibration)


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind) and not (value is None and kind is not Calibration):
        raise SettingsError(f"{name}={value!r} is no {kind.__name__}; use {name}={example}")


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise SettingsError(f"{name}={value!r} is no list; give {name}=[...]")
    return tuple(value)


def _plain(settings: Prune | Quantize | None) -> dict[str, Any] | None:
    return None if settings is None else asdict(settings)


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(part) for name, part in value.items() if part is not None}
    return [_given(part) for part in value] if isinstance(value, list) else value


def _mapping(content: Any, known: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise SettingsError(f"{where} is {_shown(content)}; settings by name are needed: {', '.join(sorted(known))}")
    for key in content:
        if key not in known:
            raise SettingsError(f"{where}: {key!r} is unknown; use {', '.join(sorted(known))}")
    return dict(content)


def _list(value: Any, where: str, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise SettingsError(f"{where}: {key} is {_shown(value)}, a list is needed")
    return value


def _selector(value: Any, where: str, key: str) -> str:
    if type(value) is int:  # the name of a child of a sequential container, written without quotes
        value = str(value)
    if not isinstance(value, str):
        raise SettingsError(f"{where}: {key} is {_shown(value)}, text is needed; names such as '1.0' go in quotes")
    _naming(f"{where}: {key}", check_selector, {"selector": value})
    return value


def _rule(value: Any, where: str, key: str) -> Rule:
    content = _mapping(value, ("layers", "prune", "quantize", "ignore"), f"{where}: {key}")
    if "layers" not in content:
        raise SettingsError(f"{where}: {key} lacks layers, which selects some")
    leave = _typed(bool, content.get("ignore", False), where, f"{key}.ignore")
    parts = {name: content[name] for name in ("prune", "quantize") if content.get(name) is not None}
    if bool(parts) == leave:
        raise SettingsError(f"{where}: {key} needs prune, quantize or both, or else ignore: true")
    found: dict[str, Any] = {"layers": _selector(content["layers"], where, f"{key}.layers")}
    if "prune" in parts:
        found["prune"] = _settings(Prune, parts["prune"], where, f"{key}.prune")
    if "quantize" in parts:
        found["quantize"] = _settings(Quantize, parts["quantize"], where, f"{key}.quantize")
    return Rule(**found)


def _settings(kind: type[Kind], value: Any, where: str, key: str) -> Kind:
    known = {each.name: each for each in fields(kind)}
    content = _mapping(value, known, f"{where}: {key}")
    for name, each in known.items():
        if each.default is MISSING and content.get(name) is None:
            raise SettingsError(f"{where}: {key} lacks {name}")
    hints = get_type_hints(kind)
    given = {name: _typed(hints[name], part, where, f"{key}.{name}") for name, part in content.items()}
    found: Kind = _naming(f"{where}: {key}", kind, given)
    return found


def _typed(hint: Any, value: Any, where: str, key: str) -> Any:
    """The value, if it is of one of the types that the hint names; a list becomes a tuple.

    Raises:
        SettingsError: it is not.
    """
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    kind = tuple if isinstance(value, list) else type(value)
    if kind in kinds or (kind is int and float in kinds):
        return tuple(value) if kind is tuple else value
    needed = " or ".join(WORDS[each] for each in kinds if each in WORDS)
    raise SettingsError(f"{where}: {key} is {_shown(value)}, {needed} is needed")


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = f"{value:.40}..." if isinstance(value, str) and len(value) > 40 else value
    return (
        f"the {'list' if isinstance(value, list) else 'mapping'}" if isinstance(value, list | Mapping) else repr(text)
    )


def _naming(where: str, make: Any, given: dict[str, Any]) -> Any:
    try:
        return make(**given)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
