"""Which layers get which settings, decided once by what was found in a model: :func:`selected`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from re import fullmatch

from sbc_plugin.compression.layer import LayerSettings
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.recipe import Recipe
from sbc_plugin.evaluation.rule import REGEX, TYPE, Selector, as_text
from sbc_plugin.evaluation.text import printable
from sbc_plugin.layers import SpikingLayer

SHOWN = 100  # names in an error


def selected(
    layers: list[SpikingLayer], recipe: Recipe, skipped: Iterable[str] = ()
) -> tuple[dict[str, LayerSettings], dict[str, str]]:
    """The settings of each layer, and why the others are left alone.

    The first rule that matches a layer counts. What it does not give comes from the settings of all layers, with their
    budget; what it gives has a budget of its own.

    Args:
        layers: that were found in the model.
        recipe: as given.
        skipped: names that are left alone anyway, which ``ignore`` may select.

    Returns:
        By layer name, its settings; and name -> reason, for layers that are left as they are.

    Raises:
        SettingsError: a selector that matches nothing, a rule that earlier ones hide, or no layer is left.
    """
    alone: dict[str, str] = {}
    for selector in recipe.ignore:
        found = _matching(selector, layers)
        if not found and not any(_matches_name(selector, name) for name in skipped):
            raise SettingsError(_nothing("ignore", selector, layers))
        for layer in found:
            alone.setdefault(layer.name, f"left exactly as it is: ignore={as_text(selector)!r}")
    rules: dict[str, int] = {}
    for number, rule in enumerate(recipe.rules):
        found = _matching(rule.layers, layers)
        if not found:
            raise SettingsError(_nothing(f"rules[{number}]", rule.layers, layers))
        new = [layer.name for layer in found if layer.name not in rules and layer.name not in alone]
        if not new:
            raise SettingsError(
                f"rules[{number}], {as_text(rule.layers)!r}, has no effect: ignore and the rules before it have all "
                f"that it matches ({_names(found)}); put it first, or leave it out"
            )
        rules |= dict.fromkeys(new, number)
        if rule.leaves_alone:
            alone |= dict.fromkeys(new, f"left exactly as it is: the rule for {as_text(rule.layers)!r}")
    settings = {}
    for layer in layers:
        if layer.name in alone:
            continue
        own = _settings(recipe, rules.get(layer.name))
        if own.idle:
            alone[layer.name] = (
                "left exactly as it is: no rule matches it, and there is no prune or quantize of all layers"
            )
        else:
            settings[layer.name] = own
    unused = [
        name
        for name, given, own in (
            ("prune", recipe.prune, any(each.prune and not each.zeros_of for each in settings.values())),
            ("quantize", recipe.quantize, any(each.quantize and not each.bits_of for each in settings.values())),
        )
        if given is not None and not own
    ]
    if layers and not settings:
        raise SettingsError(f"ignore and rules leave no layer to compress, of {_names(layers)}")
    if unused:
        alone["rules"] = f"give every layer its own, so that {' and '.join(unused)} of all layers is not used"
    return settings, alone


def _settings(recipe: Recipe, number: int | None) -> LayerSettings:
    """Of a layer that the rule of this number is for; budgets have its number, and 0 is that of all layers."""
    (prune, quantize), zeros_of, bits_of = recipe.of_all, 0, 0
    if number is not None:
        rule = recipe.rules[number]
        prune, zeros_of = (prune, 0) if rule.prune is None else (rule.prune, number + 1)
        quantize, bits_of = (quantize, 0) if rule.quantize is None else (rule.quantize, number + 1)
    return LayerSettings(recipe.method, prune, quantize, recipe.calibration.damping, zeros_of, bits_of)


def _matching(selector: Selector, layers: list[SpikingLayer]) -> list[SpikingLayer]:
    exact = [layer for layer in layers if layer.name == selector]
    return exact or [layer for layer in layers if _matches(selector, layer)]


def _matches(selector: Selector, layer: SpikingLayer) -> bool:
    kinds = {base for part in layer.parts for base in type(part.module).__mro__}
    if not isinstance(selector, str):
        return selector in kinds
    if selector.startswith(TYPE):
        wanted = selector.removeprefix(TYPE)
        return any(wanted in (kind.__name__, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)
    return _matches_name(selector, layer.name)


def _matches_name(selector: Selector, name: str) -> bool:
    if not isinstance(selector, str):
        return False
    if selector.startswith(REGEX):
        return fullmatch(selector.removeprefix(REGEX), name) is not None
    return selector == name or fnmatchcase(name, selector)


def _nothing(where: str, selector: Selector, layers: list[SpikingLayer]) -> str:
    """What to say of a selector that matches no layer."""
    text = as_text(selector)
    for layer in layers:
        if any(part.name == selector for part in layer.parts):
            return f"{where}: {text!r} is a part of layer {layer.name!r}, which is solved as a whole; select that"
    return f"{where}: {text!r} matches no layer; the layers are {_names(layers)}"


def _names(layers: list[SpikingLayer]) -> str:
    names = ", ".join(repr(printable(layer.name)) for layer in layers[:SHOWN])
    return names if len(layers) <= SHOWN else f"{names} and {len(layers) - SHOWN} more"
