"""A process that is killed leaves files absent, old or whole, and a run that goes on to the same end."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration_tests.models.cases import CASES
from integration_tests.models.resumed import assert_same, compressed
from integration_tests.strangers.kills import WRITERS, kill_some
from integration_tests.strangers.resumed_kills import child, kill_until_done
from sbc_plugin.compression import journal
from sbc_plugin.errors import CheckpointError

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, while a library has threads
@pytest.mark.parametrize("kind", ["models", "pruned models", "graphs", "pages"])
def test_a_killed_process_leaves_no_half_file(kind: str, tmp_path: Path) -> None:
    outcomes = kill_some(WRITERS[kind](), tmp_path, 4)
    assert sum(outcomes.values()) - outcomes["left beside"] == 4 and len(os.listdir(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, while a library has threads
@pytest.mark.parametrize("name", ["tuned", "sequential", "rounds"])
def test_a_killed_compression_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "SHARE", 0)
    kill_until_done(name, tmp_path / "job", seed=0, most=3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_folder_is_held_by_a_living_process_alone(tmp_path: Path) -> None:
    told, tell = os.pipe()

    class Held(list[Any]):
        """Batches that wait for ever where the folder is held."""

        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            if self.passes > 1:  # the first is there before the folder is opened
                os.write(tell, b"x")
                signal.pause()
            return super().__iter__()

    data = Held(CASES["step"].batch(seed=seed) for seed in range(1, 6))
    process = child(lambda: compressed("tuned", calibration_data=data, checkpoint=tmp_path))
    assert os.read(told, 1) == b"x"
    before = sorted(os.listdir(tmp_path))
    try:
        with pytest.raises(CheckpointError, match="is in use by a run that goes on"):
            compressed("tuned", checkpoint=tmp_path)
        assert sorted(os.listdir(tmp_path)) == before
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert_same(compressed("tuned", checkpoint=tmp_path), compressed("tuned"))
