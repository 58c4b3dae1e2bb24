"""What the pages and the docstrings say of each other is true."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import sbc_plugin
from integration_tests.docs import pictures
from integration_tests.docs.public_face import INTERNAL
from sbc_plugin import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
THEORY = (DOCS / "theory.md").read_text()
CITED = re.compile(r"[Ee]quations?\s+(\d+)(?:(?:\s+(?:to|and)\s+|,\s+)(\d+))?")


def docstrings(path: Path) -> str:
    """All docstrings of a file."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))


def cited(text: str) -> set[int]:
    """Numbers of equations, of "equation 3" as of "equations 3 to 5".

    >>> sorted(cited("equations 3 to 5, and equation 7"))
    [3, 4, 5, 7]
    """
    return {number for low, high in CITED.findall(text) for number in range(int(low), int(high or low) + 1)} | {
        int(number) for number in re.findall(r"  \((\d+)\)$", text, flags=re.MULTILINE)
    }


NUMBERED = [int(number) for number in re.findall(r"^ {4}.*  \((\d+)\)$", THEORY, flags=re.MULTILINE)]


def test_equations_are_numbered_in_order() -> None:
    assert len(NUMBERED) > 8
    assert list(range(1, len(NUMBERED) + 1)) == NUMBERED


def test_every_equation_that_is_cited_exists_and_the_other_way_round() -> None:
    found: set[int] = set()
    for path in sorted((ROOT / "sbc_plugin").rglob("*.py")):
        numbers = cited(docstrings(path))
        assert numbers <= set(NUMBERED), f"{path}: {sorted(numbers - set(NUMBERED))} are not in docs/theory.md"
        found |= numbers
    assert found == set(NUMBERED), f"no docstring cites {sorted(set(NUMBERED) - found)}"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_pages_name_what_exists(page: Path) -> None:
    """Modules in backquotes, files of the repository, and links between pages."""
    text = page.read_text()
    for file in re.findall(r"`((?:core|norse|nir|brevitas|torch_pruning)/\w+\.py|\w+\.py)`", text):
        assert list((ROOT / "sbc_plugin").rglob(file)) or list(ROOT.rglob(f"integration_tests/**/{file}")), file
    for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists() or link.startswith("http"), link


def test_every_error_has_its_section() -> None:
    classes = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__.endswith("errors")
    ]
    sections = re.findall(r"^## (\w+)$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert set(classes) - {"CompressionError"} == {name for name in sections if name.endswith("Error")}
    assert len(classes) == 11


@pytest.mark.parametrize(
    "module", ["sbc_plugin", "sbc_plugin.norse", "sbc_plugin.torch_pruning", "sbc_plugin.brevitas", "sbc_plugin.nir"]
)
def test_the_api_page_holds_every_public_name(module: str) -> None:
    """By ``:members:`` without a list, or by name; what a host's module offers to this package alone is left out."""
    api = (DOCS / "api.md").read_text()
    section = next(part for part in re.split(r"^## ", api, flags=re.MULTILINE) if part.startswith(f"{module}\n"))
    if ":members:\n" in section.split(":imported-members:")[0] and "automodule" in section:
        return
    missing = [name for name in import_module(module).__all__ if not re.search(rf"\b{name}\b", section)]
    missing = [name for name in missing if not re.match(r"SBCInt\dWeight", name)]  # the page gives their scheme
    assert set(missing) <= INTERNAL.get(module, set()), f"docs/api.md lacks {missing} of {module}"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_show_what_the_library_computes(name: str) -> None:
    _, shown = pictures.PICTURES[name]()
    assert pictures.stamp(shown) in pictures.path_of(name).read_text(), "run python -m integration_tests.docs.pictures"


def test_the_version_is_one() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changes, flags=re.MULTILINE)
    assert changes.index("## [Unreleased]") < changes.index(f"## [{released[0]}]")
    assert sbc_plugin.__version__.split(".dev")[0] >= released[0]
    assert f"{released[0]}, the " in (ROOT / "README.md").read_text()
