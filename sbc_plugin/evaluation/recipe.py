"""All settings of a call of ``compress`` as one record, which files hold and every report writes: :class:`Recipe`."""

from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from os import PathLike
from typing import Any, get_type_hints

from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.rule import Rule, Selector, as_text, check_selector, rules_of, selectors_of
from sbc_plugin.evaluation.typed import list_of, mapping_of, naming, settings_of, shown, typed
from sbc_plugin.settings import METHODS, SECOND_ORDER, Budget, Calibration, Prune, Quantize
from sbc_plugin.settings.files import as_yaml, read_content

FORMAT = 1
ALMOST_ALL = 0.999999  # of the weights: all of silent neurons may go


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
        budget: what the whole network may cost, in the place of ``prune``, ``quantize`` and ``rules``.

    Raises:
        SettingsError: a value of another kind, nothing to do, or settings that exclude each other.
    """

    method: str = "sbc"
    prune: Prune | None = None
    quantize: Quantize | None = None
    calibration: Calibration = field(default_factory=Calibration)
    ignore: tuple[Selector, ...] = ()
    rules: tuple[Rule, ...] = ()
    backend: str | None = None
    batch_first: bool | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        object.__setattr__(self, "ignore", selectors_of(self.ignore))
        object.__setattr__(self, "rules", rules_of(self.rules))
        if not any((self.prune, self.quantize, self.budget, *(not rule.leaves_alone for rule in self.rules))):
            raise SettingsError(
                "nothing to do: give prune=Prune(sparsity), quantize=Quantize(bits), or both; or budget=Budget(...)"
            )
        _check_kind("prune", self.prune, Prune, "Prune(0.9)")
        _check_kind("quantize", self.quantize, Quantize, "Quantize(bits=4)")
        _check_kind("calibration", self.calibration, Calibration, "Calibration()")
        _check_kind("budget", self.budget, Budget, 'Budget(size="64 kB")')
        if self.budget is not None:
            self._check_alone()

    def _check_alone(self) -> None:
        """Refuse what a budget leaves no room for.

        Raises:
            SettingsError: something does.
        """
        if both := next((name for name in ("prune", "quantize", "rules") if getattr(self, name)), None):
            raise SettingsError(f"budget chooses zeros and bits, and {both} gives them; leave one of the two out")
        if self.method not in SECOND_ORDER:
            raise SettingsError(
                f'budget compares losses by Hessians, which method={self.method!r} has none of; use "sbc" or "obc"'
            )
        if self.calibration.order != "one-shot":
            raise SettingsError(f"budget chooses for all layers at once; leave order={self.calibration.order!r} out")

    @property
    def of_all(self) -> tuple[Prune | None, Quantize | None]:
        """What layers without a rule get; of a budget, the most that it may choose."""
        if self.budget is None:
            return self.prune, self.quantize
        scale = "power_of_two" if self.budget.power_of_two else "mse"
        return Prune(ALMOST_ALL), Quantize(min(self.budget.widths), scale=scale) if self.budget.widths else None

    @property
    def grids(self) -> list[Quantize]:
        """All settings of a grid, those of all layers first."""
        return [each for each in (self.of_all[1], *(rule.quantize for rule in self.rules)) if each is not None]

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
            "budget": _plain(self.budget),
        }
        found: dict[str, Any] = _given(content)
        return found

    @classmethod
    def from_dict(cls, content: Any, where: str = "recipe") -> "Recipe":
        """The recipe from what :meth:`to_dict` gave, or from a part of it.

        Args:
            content: a mapping.
            where: named in errors, e.g. a file.

        Raises:
            SettingsError: unknown keys, or values of another type or out of range; names the key.
        """
        return naming(where, cls, given_in(content, where))

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


def given_in(content: Any, where: str) -> dict[str, Any]:
    """The fields of a recipe that a file or dict gives, by name.

    Args:
        content: a mapping, as of :meth:`Recipe.to_dict`.
        where: named in errors, e.g. a file.

    Raises:
        SettingsError: unknown keys, or values of another type or out of range; names the key.
    """
    known = {"format", *(each.name for each in fields(Recipe))}
    content = mapping_of(content, known, where)
    version = content.pop("format", FORMAT)
    if type(version) is not int or version > FORMAT:
        raise SettingsError(f"{where}: format is {version!r}, this version reads {FORMAT}; update sbc-plugin")
    hints = get_type_hints(Recipe)
    read: dict[str, Any] = {"prune": Prune, "quantize": Quantize, "calibration": Calibration, "budget": Budget}
    found: dict[str, Any] = {}
    for key, value in content.items():
        if value is None:
            continue
        if key in read:
            found[key] = settings_of(read[key], value, where, key)
        elif key == "ignore":
            found[key] = tuple(
                _selector(each, where, f"ignore[{n}]") for n, each in enumerate(list_of(value, where, key))
            )
        elif key == "rules":
            found[key] = tuple(_rule(each, where, f"rules[{n}]") for n, each in enumerate(list_of(value, where, key)))
        else:
            found[key] = typed(hints[key], value, where, key)
    if "method" in found:
        naming(where, check_method, {"method": found["method"]})
    return found


def filled(recipe: Recipe, prune: Any, calibration: Calibration) -> Recipe:
    """The recipe with what it left open as it was decided.

    Args:
        recipe: as given.
        prune: ``prune(settings)``, the settings of pruning with all that they leave open.
        calibration: with all that it leaves open.
    """
    rules = tuple(replace(rule, prune=prune(rule.prune)) for rule in recipe.rules)
    return replace(recipe, prune=prune(recipe.prune), rules=rules, calibration=calibration)


def check_method(method: object) -> None:
    """Refuse what is no method.

    Raises:
        SettingsError: it is none.
    """
    if method not in METHODS:
        raise SettingsError(f"method={method!r} is unknown; use one of {', '.join(map(repr, METHODS))}")


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind) and not (value is None and kind is not Calibration):
        raise SettingsError(f"{name}={value!r} is no {kind.__name__}; use {name}={example}")


def _plain(settings: Prune | Quantize | Budget | None) -> dict[str, Any] | None:
    if settings is None:
        return None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def _given(value: Any) -> Any:
    """The value without what is None in it, its numbers and texts of Python's own types."""
    if isinstance(value, dict):
        return {name: _given(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_given(part) for part in value]
    if isinstance(value, str):
        return str.__str__(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value


def _selector(value: Any, where: str, key: str) -> str:
    if type(value) is int:  # the name of a child of a sequential container, written without quotes
        value = str(value)
    if not isinstance(value, str):
        raise SettingsError(f"{where}: {key} is {shown(value)}, text is needed; names such as '1.0' go in quotes")
    naming(f"{where}: {key}", check_selector, {"selector": value})
    return value


def _rule(value: Any, where: str, key: str) -> Rule:
    content = mapping_of(value, ("layers", "prune", "quantize", "ignore"), f"{where}: {key}")
    if "layers" not in content:
        raise SettingsError(f"{where}: {key} lacks layers, which selects some")
    leave = typed(bool, content.get("ignore", False), where, f"{key}.ignore")
    parts = {name: content[name] for name in ("prune", "quantize") if content.get(name) is not None}
    if bool(parts) == leave:
        raise SettingsError(f"{where}: {key} needs prune, quantize or both, or else ignore: true")
    found: dict[str, Any] = {"layers": _selector(content["layers"], where, f"{key}.layers")}
    if "prune" in parts:
        found["prune"] = settings_of(Prune, parts["prune"], where, f"{key}.prune")
    if "quantize" in parts:
        found["quantize"] = settings_of(Quantize, parts["quantize"], where, f"{key}.quantize")
    return Rule(**found)
