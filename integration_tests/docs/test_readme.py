"""The README's Python and its commands run as they stand, in one folder, one after the other."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sbc_plugin.cli.parser import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    names: dict[str, Any] = {}
    commands = 0
    for kind, block in re.findall(r"^```(python|sh)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE):
        if kind == "python":
            exec(compile(block, "README.md", "exec"), names)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "sbc" and main(arguments) == 0, line
            commands += 1
    report, model, small = names["report"], names["model"], names["small"]
    assert commands == 4
    assert 0.9 <= report.sparsity < 0.905  # the grid has a 0 of its own
    assert all((weight != 0).all() for weight in model.parameters())  # the model given is not touched
    assert not any((weight != 0).all() for weight in small.parameters())
    written = [
        "digits.nir",
        "report.html",
        "report.recipe.yaml",
        "small.nir",
        "small.onnx",
        "small.safetensors",
        "spikes.npz",
        "test.npz",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


def test_links_and_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
