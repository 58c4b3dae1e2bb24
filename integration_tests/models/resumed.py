"""Small compressions of every kind, to be interrupted, and what it means that two ended in the same."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

import sbc_plugin
from integration_tests.models.cases import CASES
from sbc_plugin import Calibration, Prune, Quantize, Report

CLOSE = Prune(0.6, silent_first=False)  # leaves something to tune
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "tuned": (
        "LIFRecurrentCell",
        {"prune": replace(CLOSE, sparsity=0.8), "quantize": Quantize(3), "calibration": Calibration(tuning=5)},
    ),
    "as needed": ("conv", {"prune": Prune(0.8), "quantize": Quantize(3)}),
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
        {"prune": replace(CLOSE, rounds=2), "quantize": Quantize(2)}
        | {"calibration": Calibration(order="sequential", tuning=4)},
    ),
    "baseline": ("step", {"method": "magnitude", "prune": Prune(0.5), "quantize": Quantize(4)}),
}


def compressed(name: str, **more: Any) -> tuple[nn.Module, Report]:
    case, settings = CASES[RUNS[name][0]], RUNS[name][1]
    data = [case.batch(seed=seed) for seed in range(1, 6)]
    given = {"calibration_data": data, "forward": case.forward, "progress": False, **settings, **more}
    return sbc_plugin.compress(case.model(), **given)


def assert_same(found: tuple[nn.Module, Report], wanted: tuple[nn.Module, Report]) -> None:
    expected = wanted[0].state_dict()
    assert found[0].state_dict().keys() == expected.keys()
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    rows = [[replace(row, seconds=0.0) for row in report.layers] for _, report in (found, wanted)]
    assert rows[0] == rows[1]
    timeless = {"layers": [], "seconds": 0.0, "stages": {}}
    assert replace(found[1], **timeless) == replace(wanted[1], **timeless)
