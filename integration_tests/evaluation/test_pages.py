"""Pages in Chromium: no complaint of axe or the console, text that can be read, tables that the keyboard reaches.

Needs chromium, node, and the packages puppeteer-core and axe-core where node finds them: ``make test-pages``.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration_tests.evaluation.pages import small_pages

LOOK = Path(__file__).with_name("look.cjs")
READABLE = 12  # pixels


def missing() -> str:
    """What is not there, "" if all is."""
    programs = [name for name in ("chromium", "node") if shutil.which(name) is None]
    if programs:
        return f"needs {' and '.join(programs)}"
    code = "require('puppeteer-core'); require('axe-core')"
    found = subprocess.run(["node", "-e", code], capture_output=True, env=environment())
    return "needs puppeteer-core and axe-core: make test-pages" if found.returncode else ""


def environment() -> dict[str, str]:
    """With the folder of packages as an absolute path."""
    folder = os.environ.get("NODE_PATH", "build/pages/node_modules")
    return {**os.environ, "NODE_PATH": str(Path(folder).absolute()), "CHROMIUM": shutil.which("chromium") or ""}


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("pages")
    files = []
    for name, text in small_pages().items():
        files.append(folder / f"{name}.html")
        files[-1].write_text(text, encoding="utf-8")
    seen = subprocess.run(
        ["node", str(LOOK), "", *map(str, files)], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert seen.returncode == 0, seen.stderr
    found: list[dict[str, Any]] = json.loads(seen.stdout)
    return found


def test_axe_and_the_console_have_no_complaint(looks: list[dict[str, Any]]) -> None:
    assert len(looks) == 4 * 4  # pages; two widths, light and dark
    assert [each for each in looks if each["violations"] or each["complaints"]] == []


def test_text_of_figures_can_be_read_and_nothing_is_wider_than_the_page(looks: list[dict[str, Any]]) -> None:
    for each in looks:
        assert each["type"] is None or each["type"] >= READABLE, each
        assert each["overflow"] <= 0, each
        assert each["figure"] is None or each["figure"] >= 0.28 * each["width"], each


def test_tables_that_scroll_are_reached_by_keyboard(looks: list[dict[str, Any]]) -> None:
    assert any(each["scrolled"] for each in looks)
    assert all(each["reached"] >= each["scrolled"] for each in looks)
