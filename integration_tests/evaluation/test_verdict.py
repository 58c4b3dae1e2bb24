"""The sentence that a page opens with, and what to do next: of reports whose figures are known."""

import json
from dataclasses import replace
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import nn

from sbc_plugin import Calibration, Prune, Quantize, compress, evaluate
from sbc_plugin.calibration.driver import drive_steps
from sbc_plugin.core.spikes import Operations
from sbc_plugin.evaluation import Answers, Check, Evaluation, LayerReport, Report, page, verdict
from sbc_plugin.evaluation.comparison import Comparison, NeuronComparison
from sbc_plugin.evaluation.operations import Cost

DENSE, SMALL = (Cost(Operations(acs=1000), 1e-9, size, 0.0) for size in (64_000, 3_200))
ONE_SHOT = {"method": "sbc", "calibration": Calibration(tuning=0)}


def layer(name: str, loss: float, bits: int = 4, sparsity: float = 0.9, sequences: int = 600) -> LayerReport:
    return LayerReport(name, "Linear > LIFBoxCell", 10, 20, sequences, 6000, sparsity, bits, loss, 0.1, [f"n{name}"])


REPORT = Report([layer("0", 0.01), layer("5", 0.2), layer("7", 0.05)], settings=ONE_SHOT, seconds=1.0)


def evaluation(check: Check | None, agreement: float | None = 0.9, distance: float = 0.05, **more: Any) -> Evaluation:
    answers = None if agreement is None else Answers(agreement, 0.0, 0.0, check)
    rows = [NeuronComparison(f"n{each.name}", distance, 0.1, 0.1, 0, 0, 0) for each in REPORT.layers]
    compared = Comparison(more.get("neurons", rows), DENSE, SMALL, 600, answers)
    accuracies = (None, None) if check is None else (check.accuracy_dense, check.accuracy)
    return Evaluation(compared, *accuracies, [], more.get("held_out", True), {})


LOST = Check(0.9617, 0.9317, 600, 24, 6)
CHANCE = Check(0.9617, 0.9567, 600, 10, 7)
GAINED = Check(0.90, 0.93, 600, 2, 20)


def test_a_loss_beyond_chance_is_said_and_coloured() -> None:
    found = verdict(REPORT, evaluation(LOST))
    assert found.worse is True and found.weakest == "5"
    assert found.sentence.startswith("Accuracy 96.2 -> 93.2 %, more than chance for 600 sequences (95 % interval")
    assert found.sentence.endswith("20.0 times smaller (64.0 -> 3.2 kB packed); weakest layer: 5.")
    assert "More bits in layer 5, 6 in place of 4: rules=[('5', Quantize(6))]." in found.advice
    text = page(REPORT, evaluation(LOST))
    assert text.index('class="verdict worse"') < text.index("What to do next") < text.index("<table")


@pytest.mark.parametrize("check", [CHANCE, GAINED, Check(1.0, 1.0, 600, 0, 0)])
def test_what_may_be_chance_is_not_coloured(check: Check) -> None:
    found = verdict(REPORT, evaluation(check))
    assert found.worse is False and 'class="verdict worse"' not in page(REPORT, evaluation(check))
    assert ("within chance" in found.sentence) == (check is not GAINED)


def test_without_labels_the_verdict_says_so() -> None:
    found = verdict(REPORT, evaluation(None, 0.973))
    assert found.worse is None
    assert found.sentence.startswith("No labels, so no accuracy: 97.3% of the answers to 600 sequences stay the same")
    assert "spike distance 0.05: as if 5 % of the spikes were missing" in found.sentence
    assert any("Give labels" in each for each in found.advice)


def test_without_classes_it_speaks_of_spikes() -> None:
    found = verdict(REPORT, evaluation(None, None, 0.3))
    assert found.worse is None and found.sentence.startswith("Spike distance 0.3: as if 30 % of the spikes")
    assert "ccuracy" not in found.sentence and any("layer 5" in each for each in found.advice)


def test_the_calibration_data_itself_is_named() -> None:
    found = verdict(REPORT, evaluation(CHANCE, held_out=False))
    assert "600 sequences of the calibration data itself" in found.sentence
    assert found.advice[0].startswith("Measure on data that nothing was fitted to")


def test_nothing_measured_is_said() -> None:
    found = verdict(replace(REPORT, left_alone=400))
    assert found.sentence.startswith("54.0% of all 1,000 weights are zero; what that did was not measured")


FEW = Report([layer("0", 0.01, sequences=40), layer("5", 0.2, sequences=40)], settings=ONE_SHOT)
ADVICE = {
    "few sequences": (FEW, evaluation(LOST), "larger calibration set: 40 sequences are few"),
    "many sequences": (REPORT, evaluation(LOST), "!larger calibration set"),
    "no steps": (REPORT, evaluation(LOST), "gradient steps without labels"),
    "tuned": (replace(REPORT, settings={"method": "sbc", "calibration": Calibration()}), evaluation(LOST), "!gradient"),
    "floats": (Report([layer("0", 0.1, 32), layer("5", 0.2, 32)]), evaluation(LOST), "80 %: rules=[('5', Prune(0.8))]"),
    "hardly any left": (Report([layer("0", 0.1, 32), layer("5", 0.2, 32, 0.9999)]), evaluation(LOST), "Prune(0.9998)"),
    "half": (Report([layer("0", 0.1, 32), layer("5", 0.2, 32, 0.5)]), evaluation(LOST), "leave layer 5 whole"),
    "eight bits": (Report([layer("0", 0.1, 8, 0.0), layer("5", 0.2, 8, 0.0)]), evaluation(LOST), "leave layer 5 alone"),
    "one layer": (Report([layer("5", 0.2)]), evaluation(LOST), "bits in layer 5"),
    "too few to tell": (REPORT, evaluation(Check(0.9, 0.9, 600, 20, 20)), "cannot exclude a loss of 2.1 points"),
    "room for more": (REPORT, evaluation(Check(0.9, 0.9, 60_000, 20, 20)), "Compress more"),
    "silenced": (
        REPORT, evaluation(CHANCE, neurons=[NeuronComparison("n7", 1.0, 0.2, 0.0, 0.0, 1.0, 1.0)]),
        "Neurons n7 fell silent: more bits in layer 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_what_to_do_next_follows_from_the_figures(case: str) -> None:
    report, measured, expected = ADVICE[case]
    said = "\n".join(verdict(report, measured).advice)
    assert (expected.lstrip("!").lower() in said.lower()) != expected.startswith("!"), said


@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.3, 0.3), (float("nan"), 0.1)])
def test_where_no_layer_stands_out_none_is_named(losses: tuple[float, float]) -> None:
    report = Report([layer(str(number), loss) for number, loss in enumerate(losses)])
    assert verdict(report, evaluation(LOST)).weakest is None


def test_layers_and_their_neurons_are_one_row() -> None:
    torch.manual_seed(0)
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3)))
    model = norse.SequentialState(nn.Linear(6, 20), cell, nn.Linear(20, 3), norse.LIFBoxCell(cell.p))
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3
    x = (torch.rand(12, 40, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    labels = drive_steps(model, x).sum(0).argmax(1)
    small, report = compress(
        model, [(x, labels)], prune=Prune(0.6), quantize=Quantize(4), calibration=Calibration(tuning=0)
    )
    assert [each.neurons for each in report.layers] == [["1"], ["3"]]
    measured = evaluate(model, small, [(x, labels)])
    text = page(report, measured)
    for each, neuron in zip(report.layers, measured.comparison.neurons, strict=True):
        row = next(row for row in text.split("<tr>") if f'<th scope="row">{each.name}</th>' in row)
        assert f">{each.loss:.4f}<" in row and f">{neuron.distance:.4f}<" in row and f"<td>{neuron.name}</td>" in row
    assert f"<td>{6 * 20 + 20 * 3}</td>" in text  # all weights
    for stage, seconds in report.stages.items():
        assert f'<th scope="row">{stage}</th>' in text and f"{seconds:,.2f}" in text
    assert Report.from_dict(json.loads(report.to_json())).layers == report.layers
    assert Evaluation.from_dict(json.loads(measured.to_json())) == measured
    assert verdict(report, measured).to_dict()["sentence"] in str(verdict(report, measured))


def test_reports_of_earlier_versions_have_a_verdict() -> None:
    content, measured = REPORT.to_dict(), evaluation(LOST).to_dict()
    del measured["comparison"]["answers"]
    for each in content["layers"]:
        del each["neurons"]
    report, old = Report.from_dict(content), Evaluation.from_dict(measured)
    found = verdict(report, old)
    assert found.worse is None and "with no interval" in found.sentence
    assert "n5" in page(report, old)
