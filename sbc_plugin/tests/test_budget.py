"""A budget accepts what it documents, says what is wrong with the rest, and reads files."""

import json
from pathlib import Path
from typing import Any

import pytest

from sbc_plugin import Budget, Calibration, Prune, Quantize, Recipe
from sbc_plugin.errors import SettingsError


@pytest.mark.parametrize(
    ("given", "counts", "value"),
    [
        ({"size": "64 kB"}, "size", 64_000),
        ({"size": "64KiB"}, "size", 65_536),
        ({"size": 12}, "size", 12),
        ({"factor": "20x"}, "factor", 20.0),
        ({"factor": 2.5}, "factor", 2.5),
        ({"operations": 2e5}, "operations", 2e5),
        ({"energy": "50 nJ"}, "energy", 50e-9),
        ({"energy": "1.5uJ"}, "energy", 1.5e-6),
        ({"energy": 1e-9}, "energy", 1e-9),
    ],
)
def test_one_total_in_numbers_or_words(given: dict[str, Any], counts: str, value: float) -> None:
    budget = Budget(**given)
    assert budget.counts == counts and getattr(budget, counts) == pytest.approx(value, rel=1e-15)
    assert budget.widths == ((2, 3, 4, 8) if counts in ("size", "factor") else ())
    assert budget == Budget(**{counts: getattr(budget, counts)})


@pytest.mark.parametrize("given", [{}, {"size": 10, "factor": 2}, {"operations": 1, "energy": 1, "size": 5}])
def test_exactly_one_total(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="exactly one of size, operations, energy, factor"):
        Budget(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"size": 0},
        {"size": "64 apples"},
        {"size": True},
        {"factor": 0.5},
        {"factor": "20"},
        {"factor": "0x"},
        {"factor": "-2x"},
        {"operations": 0},
        {"operations": "200000"},
        {"operations": float("nan")},
        {"operations": float("inf")},
        {"energy": "50"},
        {"energy": "50 nJ a year"},
        {"energy": -1},
        {"energy": [1]},
        {"size": 10, "bits": (1,)},
        {"size": 10, "bits": (9,)},
        {"size": 10, "bits": ()},
        {"size": 10, "bits": "4"},
        {"size": 10, "bits": (True,)},
        {"size": 10, "power_of_two": "yes"},
        {"size": 10, "fan_in": 0},
        {"size": 10, "fan_in": 2.0},
        {"size": 10, "core_weights": -1},
        {"size": 10, "core_bytes": "none"},
    ],
)
def test_values_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(reversed(given))):
        Budget(**given)


def test_bits_are_sorted_and_told_once() -> None:
    assert Budget(size=10, bits=(8, 2, 2)).bits == (2, 8)
    assert Budget(operations=10, bits=4).widths == (4,)  # type: ignore[arg-type]


CHIP = {"size": "32 KiB", "bits": [2, 4], "fan_in": 16, "power_of_two": True, "core_bytes": "4 kB", "core_weights": 9}


@pytest.mark.parametrize("name", ["chip.yaml", "chip.YML", "chip.toml"])
def test_files_hold_the_attributes(name: str, tmp_path: Path) -> None:
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in CHIP.items())
    (tmp_path / name).write_text(toml if name.endswith("toml") else json.dumps(CHIP))
    wanted = Budget(32_768, bits=(2, 4), fan_in=16, power_of_two=True, core_bytes=4000, core_weights=9)
    assert Budget.from_file(tmp_path / name) == wanted
    other = Budget.from_file(str(tmp_path / name), factor="10x")
    assert (other.counts, other.factor, other.fan_in) == ("factor", 10.0, 16)
    assert wanted.instead(factor=10) == other


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("chip.txt", "", "is no budget; its name ends in .yaml, .yml, .toml"),
        ("chip.yaml", "[1]", "is no budget: it holds no names and values"),
        ("chip.yaml", "", "is no budget: it holds no names and values"),
        ("chip.yaml", "sise: 10", "'sise' is no part of a budget; use some of size"),
        ("chip.yaml", "1: 2", "1 is no part of a budget"),
        ("chip.toml", "bits = [2]", "exactly one of"),
        ("chip.toml", "size = [", "is no budget in TOML"),
        ("chip.yaml", "[" * 100_000, "is no budget in YAML"),
        ("chip.yaml", "size: [", "is no budget in YAML"),
        ("chip.yaml", "size: !!python/object/apply:os.getcwd []", "is no budget in YAML"),
        ("chip.yaml", "size: 10\nfan_in: 0", "fan_in=0"),
    ],
)
def test_files_that_are_no_budget(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=said) as told:
        Budget.from_file(tmp_path / name)
    assert name in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Budget.from_file(tmp_path / "chip.yaml")


RECIPES = [
    Budget(size="32 KiB", bits=(2, 4), fan_in=16, power_of_two=True),
    Budget(factor="20x"),
    Budget(energy="50 nJ", bits=(3,)),
    Budget(operations=1e5, core_bytes="4 kB", core_weights=7),
]


@pytest.mark.parametrize("budget", RECIPES, ids=lambda budget: budget.counts)
def test_a_recipe_holds_a_budget(budget: Budget, tmp_path: Path) -> None:
    recipe = Recipe(budget=budget, ignore=("head",))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_file(tmp_path / "recipe.yaml") == recipe == Recipe.from_dict(recipe.to_dict())
    assert recipe.arguments()["budget"] == budget


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prune": Prune(0.5)}, "prune gives them"),
        ({"quantize": Quantize(4)}, "quantize gives them"),
        ({"rules": [("head", Quantize(8))]}, "rules gives them"),
        ({"rules": [("head", None)]}, "rules gives them"),
        ({"method": "rtn"}, "method='rtn' has none of"),
        ({"calibration": Calibration(order="sequential")}, "all layers at once"),
        ({"budget": 100}, "budget=100 is no Budget"),
    ],
)
def test_what_excludes_a_budget(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Recipe(**{"budget": Budget(size=100)} | given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: {sise: 3}", "budget: 'sise' is unknown"),
        ("budget: {size: [3]}", r"budget.size is a list"),
        ("budget: {bits: [2]}", "exactly one of"),
        ("budget: 3", "budget is 3"),
        ("budget: {size: 10, bits: [2.5]}", "whole numbers from 2 to 8"),
    ],
)
def test_recipes_that_hold_no_budget(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        Recipe.from_file(tmp_path / "recipe.yaml")
