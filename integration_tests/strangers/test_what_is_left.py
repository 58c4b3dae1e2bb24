"""What compression leaves alone counts, and settings that it does not use are noted."""

import json
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

import sbc_plugin
from integration_tests.models.cases import CASES
from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Prune, Quantize, Report, compare
from sbc_plugin.errors import SettingsError


def readout(kind: str) -> nn.Module:
    """A network whose last weight no layer of ours holds."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.neuron = nn.Linear(64, 30, bias=False), norse.LIFBoxCell()
            self.pairs = nn.Bilinear(30, 1, 100, bias=False) if kind == "module" else None
            self.matrix = nn.Parameter(torch.randn(30, 100)) if kind == "parameter" else None

        def forward(self, x: Tensor) -> Tensor:
            state, total = None, torch.zeros(())
            for step in x:
                spikes, state = self.neuron(8 * self.first(step), state)
                if self.pairs is not None:
                    output = self.pairs(spikes, torch.ones(len(spikes), 1))
                else:
                    output = spikes @ self.matrix
                total = total + output
            return total

    torch.manual_seed(0)
    return Network()


@pytest.mark.parametrize("kind", ["module", "parameter"])
def test_weights_that_are_left_alone_count_everywhere(kind: str) -> None:
    model, x = readout(kind), [(torch.rand(20, 5, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()]
    small, report = compress(model, x, prune=Prune(0.8), quantize=Quantize(4))
    weights = [p for p in small.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in weights)
    zeros = sum(int((p == 0).sum()) for p in weights) / total
    assert total == 64 * 30 + 30 * 100 and report.left_alone == 3000
    assert report.sparsity == pytest.approx(zeros) and report.layer_sparsity >= 0.8
    assert f"{zeros:.2%} of all weights are zero" in str(report) and "3,000 weights were left alone" in str(report)
    assert Report.from_dict(json.loads(report.to_json())) == report
    comparison = compare(model, small, x)
    assert comparison.dense.packed_bytes == 4 * total and comparison.compressed.sparsity == pytest.approx(zeros)
    assert comparison.compressed.packed_bytes > 4 * 3000  # floats that nothing has packed
    assert page_of(report).count("3,000 weights were left alone") == 1


def page_of(report: Report) -> str:
    pytest.importorskip("matplotlib")
    from sbc_plugin.evaluation import page

    return page(report)


@pytest.mark.parametrize(
    ("method", "settings", "unused"),
    [
        ("magnitude", {"prune": Prune(0.5, solver="obs", rounds=2)}, "solver='obs', rounds=2"),
        ("magnitude", {"prune": Prune(0.5, rescale=True, silent_first=True)}, "rescale=True, silent_first=True"),
        ("rtn", {"quantize": Quantize(4), "calibration": Calibration(order="sequential", align=True)},
         "order='sequential', align=True"),
        ("sbc", {"prune": Prune(0.5), "calibration": Calibration(alpha=0.5, tuning=0)}, "alpha=0.5"),
        ("sbc", {"prune": Prune(0.8, pattern="1:5", allocation="uniform")}, "does not use allocation"),
        ("sbc", {"prune": Prune(0.5, solver="obs"), "calibration": Calibration(tuning=0)}, ""),
        ("magnitude", {"prune": Prune(0.5)}, ""),
    ],
)  # fmt: skip
def test_settings_that_are_not_used_are_noted(method: str, settings: dict[str, Any], unused: str) -> None:
    case = CASES["step"]
    _, report = sbc_plugin.compress(case.model(), [case.batch()], method=method, progress=False, **settings)
    note = report.skipped.get("settings", "")
    assert unused in note and bool(note) == bool(unused)


def test_rescaling_without_a_refit_is_refused() -> None:
    with pytest.raises(SettingsError, match="refit=False moves nothing"):
        Prune(0.5, refit=False, rescale=True)
