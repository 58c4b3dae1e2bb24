"""Recipes: what files hold comes back, and what is no recipe is refused in words that name file and key."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.recipe import Recipe
from sbc_plugin.evaluation.rule import Rule, rules_of
from sbc_plugin.settings import Calibration, Prune, Quantize

NAMES = [
    "0",
    "1.0",
    "1e5",
    "on",
    "null",
    "~",
    "2:4",
    "0x1f",
    "a: b",
    "re:a|b",
    "*",
    " x ",
    "#",
    "é",
    "\n",
    "\x00",
    "'",
    '"',
]
RECIPES = [
    Recipe(prune=Prune(0.9)),
    Recipe(
        "obc", Prune(0.5, "2:4", silent_first=False), Quantize(4, "group:32"), Calibration(alpha=1e-5, tuning=(3, 0))
    ),
    Recipe(quantize=Quantize(8), ignore=tuple(NAMES), backend="brevitas", batch_first=True),
    Recipe(rules=rules_of([("*", (Prune(0.25), Quantize(2))), ("type:Linear", None), (nn.Conv2d, Quantize(3))])),
    Recipe(prune=Prune(0.9), calibration=Calibration(device="cpu", memory="8 GiB", max_samples=7)),
]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=range(len(RECIPES)))
def test_recipes_come_back(recipe: Recipe, tmp_path: Path) -> None:
    again = Recipe.from_file(written(tmp_path / "recipe.yaml", recipe.to_yaml()))
    assert again.to_dict() == recipe.to_dict()
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).to_dict() == recipe.to_dict()
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_dict()  # other readers see the same, by YAML 1.1


def test_both_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    in_yaml = (
        "prune: {sparsity: 0.5, pattern: 2:4}\ncalibration: {tuning: 0, alpha: 1e-3}\nignore: [0, head.*]\n"
        "rules:\n- {layers: 2, quantize: {bits: 8}}\n- {layers: 're:on', ignore: true}\n"
    )
    in_toml = (
        'ignore = ["0", "head.*"]\nprune = {sparsity = 0.5, pattern = "2:4"}\n'
        "calibration = {tuning = 0, alpha = 1e-3}\n"
        '[[rules]]\nlayers = "2"\nquantize = {bits = 8}\n[[rules]]\nlayers = "re:on"\nignore = true\n'
    )
    expected = Recipe(
        prune=Prune(0.5, "2:4"), calibration=Calibration(tuning=0, alpha=1e-3), ignore=("0", "head.*"),
        rules=(Rule("2", quantize=Quantize(8)), Rule("re:on")),
    )  # fmt: skip
    assert Recipe.from_file(written(tmp_path / "r.yml", in_yaml)) == expected
    assert Recipe.from_file(written(tmp_path / "r.toml", in_toml)) == expected


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
)
NO_RECIPES: dict[str, tuple[str | bytes, str]] = {
    "unknown key": ("prun: {sparsity: 0.5}", "'prun' is unknown; use .*prune"),
    "unknown setting": ("prune: {sparcity: 0.5}", "prune: 'sparcity' is unknown"),
    "key that is no text": ("1: 2", "1 is unknown"),
    "missing setting": ("prune: {pattern: unstructured}", "prune lacks sparsity"),
    "text for a number": ("prune: {sparsity: '0.5'}", "prune.sparsity is '0.5', a number is needed"),
    "number for text": ("prune: {sparsity: 0.5, pattern: 4}", "prune.pattern is 4, text is needed"),
    "number for a truth": ("prune: {sparsity: 0.5, refit: 1}", "prune.refit is 1, true or false is needed"),
    "truth for a number": ("quantize: {bits: true}", "quantize.bits is True, a whole number is needed"),
    "fraction for a whole": ("quantize: {bits: 4.0}", "quantize.bits is 4.0, a whole number is needed"),
    "three numbers": ("prune: {sparsity: 0.5}\ncalibration: {tuning: [1, 2, 3]}", "calibration: tuning"),
    "out of range": ("prune: {sparsity: 1.5}", "prune: sparsity=1.5"),
    "list for settings": ("prune: [0.5]", "prune is a list"),
    "settings for a list": ("rules: {a: 1}", "rules is a mapping, a list is needed"),
    "rule without layers": ("rules: [{quantize: {bits: 4}}]", r"rules\[0\] lacks layers"),
    "rule that does nothing": ("rules: [{layers: a}]", r"rules\[0\] needs prune"),
    "rule that does both": ("rules: [{layers: a, ignore: true, quantize: {bits: 4}}]", r"rules\[0\] needs prune"),
    "selector of a number": ("ignore: [1.0]", r"ignore\[0\] is 1.0, text is needed"),
    "no regular expression": ("ignore: ['re:(']\nprune: {sparsity: 0.5}", r"ignore\[0\].*no regular expression"),
    "unknown method": ("method: best\nprune: {sparsity: 0.5}", "method='best' is unknown"),
    "newer": ("format: 2\nprune: {sparsity: 0.5}", "format is 2"),
    "nothing to do": ("method: sbc", "nothing to do"),
    "empty": ("", "is empty"),
    "a word": ("hello", "is 'hello'"),
    "list": ("- 1", "is a list"),
    "a key twice": ("prune: {sparsity: 0.5, sparsity: 0.6}", "'sparsity' stands twice"),
    "aliases": (BOMB, "aliases"),
    "an alias of itself": ("&a [*a]", "aliases"),
    "depth": ("[" * 5000, "is no recipe"),
    "depth of mappings": ("{a: " * 5000, "is no recipe"),
    "code": ("!!python/object/apply:os.system ['true']", "is no recipe"),
    "a date": ("method: !!timestamp 2001-01-01", "method is"),
    "a huge number": (f"quantize: {{bits: {'9' * 5000}}}", "is no recipe"),
    "no YAML": ("a: [", "is no recipe in YAML"),
    "two documents": ("a: 1\n---\nb: 1", "is no recipe in YAML"),
    "no text": (b"\xff\xfe\x00", "is no recipe"),
    "control characters": (b"a: \x01", "is no recipe"),
    "huge": (b" " * (2**18 + 1), "larger than"),
}


@pytest.mark.parametrize("name", NO_RECIPES)
def test_what_is_no_recipe_is_refused(name: str, tmp_path: Path) -> None:
    text, message = NO_RECIPES[name]
    path = written(tmp_path / "file.yaml", text)
    with pytest.raises(SettingsError, match=message) as refused:
        Recipe.from_file(path)
    assert str(path) in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", ["a = [", "prune = 1979-05-27", "a = " + "[" * 5000, "prune = {sparsity = inf}"])
def test_what_is_no_recipe_in_toml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"file\.toml"):
        Recipe.from_file(written(tmp_path / "file.toml", text))


@pytest.mark.parametrize(
    "text", [", ".join(f"k{n}: 1" for n in range(5_000)), "- " * 100_000, "? " * 100_000, "a " * 100_000]
)
def test_reading_takes_little_time(text: str, tmp_path: Path) -> None:
    path, started = written(tmp_path / "file.yaml", f"{{{text}}}" if ":" in text else text), time.perf_counter()
    with pytest.raises(SettingsError):
        Recipe.from_file(path)
    assert time.perf_counter() - started < 30


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path / "recipe.json", tmp_path):
        with pytest.raises(SettingsError, match=str(path)):
            Recipe.from_file(path)


def test_numbers_of_other_types_are_written_as_numbers() -> None:
    numpy: Any = pytest.importorskip("numpy")
    assert type(Recipe(prune=Prune(numpy.float32(0.5))).to_dict()["prune"]["sparsity"]) is float
