"""The Python of every page of the documentation runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "```python" in page.read_text() and page.stem != "distributed"]


def blocks_of(page: Path) -> list[str]:
    """A page's Python blocks."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_blocks(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks one after the other; the names they leave."""
    names: dict[str, Any] = {}
    for block in blocks_of(page):
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


def test_the_script_for_several_processes_runs_with_two(tmp_path: Path) -> None:
    (script,) = blocks_of(DOCS / "distributed.md")
    (tmp_path / "compress.py").write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "compress.py"], cwd=tmp_path, env=os.environ | threads, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.safetensors").exists()
