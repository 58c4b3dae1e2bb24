"""The Python of every page of the documentation runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGES = [page for page in sorted((Path(__file__).parents[2] / "docs").rglob("*.md")) if "```python" in page.read_text()]


def run_blocks(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks one after the other; the names they leave."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem == "neurobench":
        pytest.importorskip("neurobench", reason="pip install 'sbc-plugin[neurobench]'")
    monkeypatch.chdir(tmp_path)
    names = run_blocks(page)
    assert names
    if page.stem == "torch-pruning":
        accuracy, test = names["network"].accuracy, names["data"].test
        assert accuracy(names["by_spikes"], test) > accuracy(names["by_norm"], test)
        assert sum(int((weight == 0).sum()) for weight in names["sparse"].parameters()) == round(0.95 * 28408)
