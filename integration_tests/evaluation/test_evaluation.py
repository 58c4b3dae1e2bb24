"""What an evaluation says, counted by hand from the models' own spikes; and the page that is made of it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import nn

from integration_tests.models.one_shot import compress
from sbc_plugin import Prune
from sbc_plugin.calibration.driver import drive_steps
from sbc_plugin.errors import CalibrationError, CheckpointError
from sbc_plugin.evaluation.accuracy import accuracy
from sbc_plugin.evaluation.evaluate import BINS, RECORDED, SHOWN, TRACES, Evaluation, evaluate
from sbc_plugin.evaluation.page import page
from sbc_plugin.evaluation.report import Report
from sbc_plugin.norse import record_states

STEPS, SEQUENCES, INPUTS, HIDDEN, CLASSES = 12, 20, 6, 30, 3


def model() -> nn.Module:
    torch.manual_seed(0)
    made = norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN),
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.4))),
        nn.Linear(HIDDEN, CLASSES),
        norse.LIFCell(),
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 3
    return made


@pytest.fixture(scope="module")
def evaluated() -> tuple[nn.Module, nn.Module, Report, Evaluation, list[Any]]:
    dense = model()
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(STEPS, SEQUENCES, INPUTS, generator=generator) < 0.4).float()
    labels = torch.randint(CLASSES, (SEQUENCES,), generator=generator)
    data = [(x[:, :16], labels[:16]), (x[:, 16:], labels[16:])]
    small, report = compress(dense, data, prune=Prune(0.6))
    return dense, small, report, evaluate(dense, small, iter(data)), data


def test_spikes_membranes_and_rates_are_those_of_the_models(evaluated: Any) -> None:
    dense, small, _, found, data = evaluated
    x = data[0][0][:, :RECORDED]
    states = [record_states(network, x) for network in (dense, small)]
    assert [activity.name for activity in found.activity] == ["1", "3"]
    for activity in found.activity:
        before, after = (record[activity.name] for record in states)
        assert (activity.steps, activity.neurons) == (STEPS, before.spikes.shape[2])
        assert len(activity.shown) <= SHOWN and sorted(set(activity.shown)) == activity.shown
        for row, neuron in enumerate(activity.shown):
            for times, record in ((activity.spikes_dense, before), (activity.spikes, after)):
                assert times[row] == [step for step in range(STEPS) if record.spikes[step, 0, neuron]]
        assert 1 <= len(activity.traced) <= TRACES and set(activity.traced) <= set(activity.shown)
        for row, neuron in enumerate(activity.traced):
            for traces, record in ((activity.v_dense, before), (activity.v, after)):
                assert traces[row] == pytest.approx(
                    record.v_before[:, 0, neuron].tolist(), abs=1e-6
                )  # rounded to 6 places
            expected = 0.4 if activity.name == "1" else 1.0
            assert activity.v_th[row] == pytest.approx(expected)
        for counts, record in ((activity.rates_dense, before), (activity.rates, after)):
            rates = record.spikes.mean((0, 1)).tolist()
            assert counts[0] == rates.count(0.0)
            for part in range(BINS):  # the edges lie between the multiples of 1 / (steps x sequences) that rates are
                assert counts[part + 1] == sum(part / BINS < rate - 1e-9 <= (part + 1) / BINS for rate in rates)


def test_a_spike_is_a_threshold_that_was_crossed(evaluated: Any) -> None:
    """Rasters, membranes and thresholds come from different places, and have to agree."""
    for activity in evaluated[3].activity:
        for trace, level, neuron in zip(activity.v_dense, activity.v_th, activity.traced, strict=True):
            times = activity.spikes_dense[activity.shown.index(neuron)]
            assert times == [step for step, v in enumerate(trace) if v > level]


def test_accuracy_is_measured_where_there_are_labels(evaluated: Any) -> None:
    dense, small, _, found, data = evaluated
    right = 0
    for x, labels in data:
        state, total = None, torch.zeros(())
        with torch.no_grad():
            for step in x:
                spikes, state = small(step, state)
                total = total + spikes
        right += int((total.argmax(1) == labels).sum())
    assert found.accuracy == right / SEQUENCES
    without = evaluate(dense, small, [x for x, _ in data], held_out=False)
    assert without.accuracy is None and without.accuracy_dense is None
    assert replace(without, held_out=True, environment=found.environment).activity == found.activity
    assert "the calibration data itself" in str(without) and "accuracy" not in str(without)


def test_json_and_back(evaluated: Any) -> None:
    found = evaluated[3]
    assert Evaluation.from_dict(json.loads(found.to_json())) == found
    broken = found.to_dict()
    del broken["comparison"]["neurons"][0]["rate"]
    with pytest.raises(CheckpointError, match="no evaluation"):
        Evaluation.from_dict(broken)


def test_models_that_do_not_belong_together_are_refused(evaluated: Any) -> None:
    dense, _, _, _, data = evaluated
    other = norse.SequentialState(nn.Linear(INPUTS, CLASSES), norse.LIFBoxCell())
    with pytest.raises(CalibrationError, match="its own compression"):
        evaluate(dense, other, data)


def test_the_page_needs_no_network_and_says_everything(evaluated: Any) -> None:
    _, _, report, found, _ = evaluated
    report = replace(report, skipped={"<odd & name>": "because <b>"})
    text = page(report, found, "a <title>")
    assert "<title>a &lt;title&gt;</title>" in text and "&lt;odd &amp; name&gt;" in text
    links = set(re.findall(r'(?:href|src)="([^"#]+)', text)) - {"data:,"}
    assert not links, links
    assert not re.findall(r"url\((?!#)", text) and "<script" not in text and "@import" not in text
    for layer in report.layers:
        assert f"{layer.loss:.4f}" in text and f"{layer.rows} × {layer.columns}" in text
    assert text.count("<svg") == 3 * len(found.activity)
    assert f"{found.accuracy:.1%}" in text and "45 nm" in text and str(found.environment["torch"]) in text


def test_the_page_of_a_report_alone(evaluated: Any) -> None:
    text = page(evaluated[2]).replace("accuracy depends on such ties", "")  # a warning
    assert "<svg" not in text and "accuracy" not in text and "Nothing." in text


def test_the_same_report_gives_the_same_page(evaluated: Any) -> None:
    _, _, report, found, _ = evaluated
    assert page(report, found) == page(report, found)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_complaint(evaluated: Any, tmp_path: Path, width: int) -> None:
    _, _, report, found, _ = evaluated
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(page(report, found), encoding="utf-8")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*browser, f"--window-size={width},2000", "--enable-logging=stderr", f"--screenshot={picture}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr
    assert picture.stat().st_size > 20_000  # an empty page of this size takes 10 kB


def test_each_model_runs_once_on_each_batch(evaluated: Any) -> None:
    """Apart from the first, on which layers are found and states recorded; accuracy is that of :func:`accuracy`."""
    dense, small, _, found, data = evaluated
    runs: list[Any] = []

    def forward(network: nn.Module, batch: Any) -> torch.Tensor:
        runs.append((network, batch))
        return drive_steps(network, batch[0])

    again = evaluate(dense, small, iter(data), forward=forward)
    assert [network for network, batch in runs if batch is data[1]] == [dense, small]
    assert again.comparison == found.comparison
    assert [again.accuracy_dense, again.accuracy] == [accuracy(network, data) for network in (dense, small)]
