"""The settings that options, ``--rule`` and a recipe file give together."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sbc_plugin.cli.budgets import budget_of
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.recipe import Recipe, given_in
from sbc_plugin.evaluation.rule import Rule
from sbc_plugin.settings import Calibration, Prune, Quantize
from sbc_plugin.settings.files import read_content

PRUNING = {
    "sparsity": float,
    "pattern": str,
    "allocation": str,
    "solver": str,
    "silent_first": bool,
    "rounds": int,
    "refit": bool,
    "rescale": bool,
}
GRID = {"bits": int, "granularity": str, "scale": str, "bit_allocation": str, "symmetric": bool}
SAME = ("order", "temporal", "damping", "alpha", "max_samples", "align", "tuning", "outputs", "memory")
CALIBRATING = {name: name for name in SAME} | {"hessian_device": "device"}  # option -> attribute
FORM = '"SELECTOR: sparsity=0.5 bits=8", or "SELECTOR: ignore"'


def recipe_of(options: argparse.Namespace) -> Recipe:
    """All settings: those of the recipe file, of which options override what they name; the rest keeps its default.

    Raises:
        SettingsError: a value out of range, an option without the one it belongs to, a file that is no recipe, or
            nothing to do.
    """

    def given(names: Mapping[str, Any]) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    found = {} if options.recipe is None else given_in(read_content(options.recipe), options.recipe)
    found["prune"] = _prune(found.get("prune"), given(PRUNING), "--")
    found["quantize"] = _quantize(found.get("quantize"), given(GRID), "--")
    found["calibration"] = replace(
        found.get("calibration", Calibration()),
        **{CALIBRATING[name]: value for name, value in given(CALIBRATING).items()},
    )
    found["budget"] = budget_of(options, found.get("budget"))
    if options.method is not None:
        found["method"] = options.method
    if options.batch_first is not None:
        found["batch_first"] = options.batch_first
    if options.ignore is not None:
        found["ignore"] = tuple(options.ignore)
    if options.rule is not None:
        found["rules"] = tuple(map(rule_of, options.rule))
    nothing = all(found[name] is None for name in ("prune", "quantize", "budget"))
    if options.recipe is None and not options.rule and nothing:
        raise SettingsError("nothing to do: give --sparsity, --pattern N:M, --bits, several of them, or --budget")
    return Recipe(**found)


def rule_of(text: str) -> Rule:
    """A rule as the command line has it.

    Raises:
        SettingsError: it is of another form, or a value is out of range.

    >>> rule_of("re:conv.*: pattern=2:4 bits=8").quantize.bits
    8
    >>> rule_of("head: ignore")
    Rule(layers='head', prune=None, quantize=None)
    """
    selector, colon, what = text.rpartition(": ")
    words = what.split()
    if not colon or not selector.strip() or not words:
        raise SettingsError(f"--rule {text!r} is no rule; give {FORM}")
    selector = selector.strip()
    if words == ["ignore"]:
        return Rule(selector)
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        key = name.replace("-", "_")
        kind = (PRUNING | GRID).get(key)
        if not equals or kind is None or key in given:
            known = ", ".join(each.replace("_", "-") for each in PRUNING | GRID)
            raise SettingsError(f"--rule {text!r}: {word!r} is no setting, or stands twice; give {FORM} (of {known})")
        given[key] = _value(kind, value, f"--rule {text!r}: {name}")
    pruning = {name: given[name] for name in PRUNING if name in given}
    grid = {name: given[name] for name in GRID if name in given}
    try:
        return Rule(selector, _prune(None, pruning, ""), _quantize(None, grid, ""))
    except SettingsError as error:
        raise SettingsError(f"--rule {text!r}: {error}") from error


def _value(kind: Any, text: str, where: str) -> Any:
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise SettingsError(f"{where}={text} is not {words[kind]}") from error


def _prune(known: Prune | None, given: dict[str, Any], dashes: str) -> Prune | None:
    """The settings of pruning, what is given in the place of what is known; a pattern N:M says its sparsity itself.

    Raises:
        SettingsError: a value out of range, or one without a sparsity.
    """
    pattern = given.get("pattern", "")
    kept, _, size = pattern.partition(":")
    if "sparsity" not in given and kept.isdigit() and size.isdigit() and int(size):
        given = {"sparsity": 1 - int(kept) / int(size), **given}
    if not given:
        return known
    if known is None and "sparsity" not in given:
        raise SettingsError(f"{dashes}{_as_option(given)} belongs to pruning; give {dashes}sparsity too")
    return Prune(**given) if known is None else replace(known, **given)


def _quantize(known: Quantize | None, given: dict[str, Any], dashes: str) -> Quantize | None:
    """The same for the grid.

    Raises:
        SettingsError: a value out of range, or one without bits.
    """
    if not given:
        return known
    if known is None and "bits" not in given:
        raise SettingsError(f"{dashes}{_as_option(given)} belongs to quantisation; give {dashes}bits too")
    given = {name.removeprefix("bit_"): value for name, value in given.items()}
    return Quantize(**given) if known is None else replace(known, **given)


def _as_option(given: dict[str, Any]) -> str:
    return next(iter(given)).replace("_", "-")
