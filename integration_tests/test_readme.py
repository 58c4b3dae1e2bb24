"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    report, model, small = names["report"], names["model"], names["small"]
    assert abs(report.sparsity - 0.9) < 1e-3
    assert all((weight != 0).all() for weight in model.parameters())  # the model given is not touched
    assert not any((weight != 0).all() for weight in small.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.nir", "small.nir"]
    assert all(int(weight.codes.abs().max()) <= 7 for weight in names["codes"].values())
