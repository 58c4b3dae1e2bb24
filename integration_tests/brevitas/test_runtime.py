"""Milliseconds and bytes in onnxruntime: what is counted in the file, and what an answer says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX
from sbc_plugin import Comparison, Prune, Quantize, compare, compress, record_spikes
from sbc_plugin.brevitas import export_onnx, measure_runtime
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.evaluation import Evaluation, Runtime, RuntimeComparison


def weights_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("name", ["step", "conv", "LIFRecurrentCell", "loop, sum", "direct coding", "transposed"])
def test_every_weight_counts_once_however_time_is_taken(name: str) -> None:
    case = CASES[name]
    found = measure_runtime(case.model(), case.batch(seed=0))
    assert found.weights == weights_of(case.model()) and found.integers == 0
    assert found.milliseconds > 0 and found.file_bytes > 4 * found.weights


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_of_the_file_are_counted(bits: int, tmp_path: Path) -> None:
    case = CASES["step"]
    x = case.batch(seed=0)
    small, _ = compress(case.model(), [x], quantize=Quantize(bits), backend="brevitas", progress=False)
    found = measure_runtime(small, x)
    assert found.integers == found.weights == weights_of(case.model())
    exported = export_onnx(small, tmp_path / "model.onnx", x)
    assert found.file_bytes == pytest.approx(exported.path.stat().st_size, rel=0.05)


def test_batches_that_come_first_are_turned() -> None:
    model = SequentialState(nn.Linear(6, 5), LIFBoxCell(BOX), nn.Linear(5, 4), LIFBoxCell(BOX))
    x = (torch.rand(3, 40, 6) < 0.5).float()  # (B, T, ...)
    found = compare(model, model, [x], batch_first=True, runtime=True).runtime
    assert found is not None and found.dense.weights == found.compressed.weights == 6 * 5 + 5 * 4


def test_what_does_not_get_better_is_explained() -> None:
    dense = Runtime(1.0, 80_000, 1000, 0)
    zeros = RuntimeComparison(dense, replace(dense, milliseconds=1.05))
    assert "multiplies zeros" in zeros.reasons[0] and "holds zeros and floats" in zeros.reasons[1]
    assert len(zeros.reasons) == 2
    whole = RuntimeComparison(dense, Runtime(2.0, 12_000, 1000, 1000))
    assert "multiplies zeros" in whole.reasons[0] and "become floats again" in whole.reasons[1]
    assert len(whole.reasons) == 2
    assert not RuntimeComparison(dense, Runtime(0.4, 30_000, 300, 0)).reasons
    (left,) = RuntimeComparison(dense, Runtime(1.0, 30_000, 300, 0)).reasons
    assert "not what takes the time" in left


def test_compare_measures_it_when_asked_and_keeps_it() -> None:
    case = CASES["step"]
    x = case.batch(seed=0)
    model = case.model()
    small, _ = compress(model, [x], method="magnitude", prune=Prune(0.5), progress=False)
    assert compare(model, small, [x]).runtime is None
    found = compare(model, small, iter([x]), runtime=True)
    assert found.runtime is not None and found.runtime.dense.weights == found.runtime.compressed.weights
    assert "onnxruntime, one thread" in str(found) and found.sequences == x.shape[1]
    evaluation = Evaluation(found, None, None, [], False, {})
    assert Evaluation.from_dict(json.loads(evaluation.to_json())) == evaluation
    assert isinstance(found, Comparison)


def test_what_cannot_be_timed_is_refused() -> None:
    case = CASES["step"]
    model, x = case.model(), case.batch(seed=0)
    with pytest.raises(SettingsError, match="give it in the place of its recording"):
        compare(record_spikes(model, [x]), model, [x], runtime=True)
    with pytest.raises(SettingsError, match="without forward="):
        compare(model, model, [x], forward=case.output, runtime=True)
    attention = CASES["attention"]
    with pytest.raises(UnsupportedModelError, match="cannot be exported"):
        measure_runtime(attention.model(), attention.batch(seed=0))


def test_a_plain_model_is_written_for_the_comparison_alone(tmp_path: Path) -> None:
    """A file for use is refused still, since weights on a grid would stand in it as floats without a word."""
    case = CASES["step"]
    with pytest.raises(UnsupportedModelError, match="no Brevitas layer"):
        export_onnx(case.model(), tmp_path / "model.onnx", case.batch(seed=0))
    assert not list(tmp_path.iterdir())
