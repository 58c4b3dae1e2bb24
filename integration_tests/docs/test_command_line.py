"""The reference of the command line is that of the parser, and every setting has one option."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from integration_tests.docs import command_line
from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin.cli.parser import _parser
from sbc_plugin.cli.settings import CALIBRATING, GRID, PRUNING, recipe_of
from sbc_plugin.evaluation.recipe import Recipe


def test_the_page_is_that_of_the_parser() -> None:
    assert command_line.PAGE.read_text() == command_line.page(), "run python -m integration_tests.docs.command_line"


@pytest.mark.parametrize("command", ["compress", "search", "sweep"])
def test_every_setting_has_one_option(command: str) -> None:
    parser = command_line.commands()[command]
    found = command_line.settings_of(parser)
    attributes = {
        *({field.name for field in fields(Prune)} & set(PRUNING)),
        *CALIBRATING.values(),
        *(name.removeprefix("bit_") for name in GRID),
    }
    assert {field.name for kind in (Prune, Quantize, Calibration) for field in fields(kind)} == attributes
    assert {*PRUNING, *GRID, *CALIBRATING} - {"sparsity", "bits"} <= found
    assert {field.name for field in fields(Recipe)} - {"prune", "quantize", "calibration", "backend", "rules"} <= found
    names = [name for action in parser._actions for name in action.option_strings]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--solver", "admm"], Prune(0.5, solver="admm")),
        (["--no-refit"], Prune(0.5, refit=False)),
        (["--rescale"], Prune(0.5, rescale=True)),
        (["--silent-first"], Prune(0.5, silent_first=True)),
        (["--no-silent-first"], Prune(0.5, silent_first=False)),
        (["--no-symmetric"], Quantize(4, symmetric=False)),
        (["--no-temporal"], Calibration(temporal=False)),
        (["--alpha", "0.5"], Calibration(alpha=0.5)),
        (["--max-samples", "7"], Calibration(max_samples=7)),
        (["--hessian-device", "cpu"], Calibration(device="cpu")),
        (["--no-align"], Calibration()),
    ],
)
def test_an_option_sets_its_attribute(options: list[str], expected: Prune | Quantize | Calibration) -> None:
    always = ["compress", "model.nir", "--data", "x.npy", "-o", "out.nir", "--sparsity", "0.5", "--bits", "4"]
    recipe = recipe_of(_parser().parse_args([*always, *options]))
    assert expected in (recipe.prune, recipe.quantize, recipe.calibration)


def test_an_option_can_take_back_what_a_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("prune: {sparsity: 0.5, rescale: true}\nbatch_first: true\n")
    always = ["compress", "model.nir", "--data", "x.npy", "-o", "out.nir", "--recipe", str(tmp_path / "r.yaml")]
    assert recipe_of(_parser().parse_args(always)) == Recipe(prune=Prune(0.5, rescale=True), batch_first=True)
    changed = recipe_of(_parser().parse_args([*always, "--no-rescale", "--no-batch-first"]))
    assert changed == Recipe(prune=Prune(0.5), batch_first=False)


def test_what_everybody_needs_stands_before_what_few_do() -> None:
    for name in ("compress", "search", "sweep"):
        titles = [str(group.title) for group in command_line.commands()[name]._action_groups if group._group_actions]
        first = next(place for place, title in enumerate(titles) if title.startswith("expert"))
        assert all(title.startswith("expert") for title in titles[first:]), titles


def test_every_command_that_the_pages_show_is_known_to_the_parser() -> None:
    """In blocks of text and shell, and inline; what the examples of ``--help`` show too."""
    root = command_line.PAGE.parents[1]
    shown = 0
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for line in re.findall(r"^(?:  )?sbc ([a-z]+ .*)$", page.read_text(), flags=re.MULTILINE):
            line = line.partition("  ")[0]
            known = command_line.commands().get(line.split()[0])
            assert known is not None, f"{page.name}: sbc {line}"
            names = {name for action in known._actions for name in action.option_strings}
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)) <= names, f"{page.name}: sbc {line}"
            shown += 1
    assert shown > 15
