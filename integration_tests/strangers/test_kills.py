"""A process that is killed while it writes leaves the target absent, old or whole."""

import os
import sys
from pathlib import Path

import pytest

from integration_tests.strangers.kills import WRITERS, kill_some

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, while a library has threads
@pytest.mark.parametrize("kind", ["models", "pruned models", "graphs", "pages"])
def test_a_killed_process_leaves_no_half_file(kind: str, tmp_path: Path) -> None:
    outcomes = kill_some(WRITERS[kind](), tmp_path, 4)
    assert sum(outcomes.values()) - outcomes["left beside"] == 4 and len(os.listdir(tmp_path)) == 1
