"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_in_order() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    report, model, small = names["report"], names["model"], names["small"]
    assert abs(report.sparsity - 0.9) < 1e-3
    assert all((weight != 0).all() for weight in model.parameters())  # the model given is not touched
    assert not any((weight != 0).all() for weight in small.parameters())
