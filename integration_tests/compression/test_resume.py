"""A run that is interrupted goes on, and ends in the same bits as one that was left alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sbc_plugin
from integration_tests.models.cases import CASES
from sbc_plugin import Calibration, Prune, Quantize, Report
from sbc_plugin.checkpoint import folder as folders
from sbc_plugin.compression import journal, plan

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "tuned": ("step", {"prune": Prune(0.5), "quantize": Quantize(3), "calibration": Calibration(tuning=4)}),
    "as needed": ("step", {"prune": Prune(0.7)}),
    "one-shot": (
        "conv",
        {"prune": Prune(0.5, allocation="loss"), "quantize": Quantize(3, allocation="loss")}
        | {"calibration": Calibration(tuning=0)},
    ),
    "sequential": (
        "step",
        {"prune": Prune(0.5, silent_first=True), "quantize": Quantize(4)}
        | {"calibration": Calibration(order="sequential", tuning=0, max_samples=9)},
    ),
    "rounds": (
        "conv",
        {"prune": Prune(0.8, rounds=2), "calibration": Calibration(align=True, tuning=3)},
    ),
    "recurrent": (
        "LIFRecurrentCell",
        {"prune": Prune(0.5, rounds=2), "quantize": Quantize(2, symmetric=False)}
        | {"calibration": Calibration(order="sequential", tuning=2)},
    ),
    "baseline": ("step", {"method": "magnitude", "prune": Prune(0.5), "quantize": Quantize(4)}),
}


class Stopped(Exception):
    """Stands for whatever ends a process."""


def compressed(name: str, **more: Any) -> tuple[nn.Module, Report]:
    case, settings = CASES[RUNS[name][0]], RUNS[name][1]
    data = [case.batch(seed=seed) for seed in range(1, 6)]
    return sbc_plugin.compress(case.model(), data, forward=case.forward, progress=False, **settings | more)


def assert_same(found: tuple[nn.Module, Report], wanted: tuple[nn.Module, Report]) -> None:
    expected = wanted[0].state_dict()
    assert found[0].state_dict().keys() == expected.keys()
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    rows = [[replace(row, seconds=0.0) for row in report.layers] for _, report in (found, wanted)]
    assert rows[0] == rows[1]
    assert replace(found[1], layers=[], seconds=0.0) == replace(wanted[1], layers=[], seconds=0.0)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Stop the run in the place of the write of this number, counted from 1; 0: never."""
    write = folders.Folder.write
    left = [0]

    def counted(self: folders.Folder, name: folders.Name, value: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped
        write(self, name, value)

    monkeypatch.setattr(folders.Folder, "write", counted)
    monkeypatch.setattr(journal, "SECONDS", 0.0)  # the state of tuning is kept after each step
    monkeypatch.setattr(journal, "SHARE", 0)
    monkeypatch.setattr(plan, "TUNING_STEPS", 6)
    return lambda number: left.__setitem__(0, number)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_at_each_write_ends_in_the_same_bits(
    name: str, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    wanted = compressed(name)
    assert_same(compressed(name, checkpoint=tmp_path / "at once"), wanted)
    for stops in range(200):
        stop_at(2)  # each start gets one write further
        torch.manual_seed(stops)
        try:
            found = compressed(name, checkpoint=tmp_path / "stopped")
            break
        except Stopped:
            pass
    assert stops >= 5
    assert_same(found, wanted)
    assert len(list((tmp_path / "stopped").iterdir())) <= 5  # lock, job, answer, batches, result
    stop_at(1)  # a finished run writes nothing
    assert_same(compressed(name, checkpoint=tmp_path / "stopped"), wanted)
