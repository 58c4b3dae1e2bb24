"""Names that HTML, mathtext, terminals or encodings would take for something else, and numbers that JSON has not."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import nn

from sbc_plugin import Calibration, Prune, compress, evaluate
from sbc_plugin.cli.parser import main
from sbc_plugin.errors import CheckpointError
from sbc_plugin.evaluation import Comparison, Evaluation, Report, page

NAMES = (
    "$x$",
    "$\\frac{",
    "cost: 5$",
    "</script><script>alert(1)</script>",
    "--><img src=x onerror=alert(1)>",
    "a & b < c > \"d\" 'e'",
    "${x}`y`",
    "\ud800",
    "a\udfffb",
    "line\nbreak\ttab",
    "\x1b[31mred\x00",
    "\u202eright to left",
    "层一",
    "🧠",
    "_hidden",
    "#010203",
    "x" * 5_000,
    "",
)


class Tags(HTMLParser):
    """The tags, texts and event attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.events: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        self.events += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def results() -> tuple[Report, Evaluation]:
    torch.manual_seed(0)
    model = SequentialState(nn.Linear(5, 6), LIFBoxCell())
    with torch.no_grad():
        model[0].weight *= 10
    data = [(torch.rand(8, 4, 5) < 0.5).float()]
    small, report = compress(model, data, prune=Prune(0.5), calibration=Calibration(tuning=0), progress=False)
    return report, evaluate(model, small, data)


def named(results: tuple[Report, Evaluation], name: str) -> tuple[Report, Evaluation]:
    """The same results of a network whose layer, neuron and notes have this name."""
    report, evaluation = results
    compared = evaluation.comparison
    neurons = [replace(neuron, name=name) for neuron in compared.neurons]
    report = replace(report, layers=[replace(report.layers[0], name=name)], skipped={name: "not pruned"})
    activity = [replace(row, name=name) for row in evaluation.activity]
    return report, replace(evaluation, comparison=replace(compared, neurons=neurons), activity=activity)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_only_a_name_on_the_page(results: tuple[Report, Evaluation], name: str) -> None:
    text = page(*named(results, name), title=name)
    text.encode()
    seen = Tags()
    seen.feed(text)
    assert not seen.tags & {"script", "img"} and not seen.events
    assert text.count("<svg") == text.count("</svg>") and "currentColor" in text
    shown = "".join(seen.texts)
    assert name[:10].encode("unicode_escape").decode("ascii") in shown or name[:10] in shown
    assert not any(character in text for character in "\x00\x1b\u202e")
    if name.startswith(("$", "cost", "#")):  # also beside the axes of the figures, as it stands
        assert shown.count(name) >= 5


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_takes_one_row_of_a_table(results: tuple[Report, Evaluation], name: str) -> None:
    report, evaluation = named(results, name)
    lines = len(str(results[0]).splitlines()) - len(results[0].skipped) + 1  # with one note of that name
    assert len(str(report).split("\n")) == lines
    assert len(str(evaluation).split("\n")) == len(str(results[1]).splitlines())
    if name.isprintable():
        assert name in str(report) and name in str(evaluation)
    shown = str(report) + str(evaluation)
    assert not any(character in shown for character in "\x1b\x00\t\ud800\u202e")


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_json_holds_no_numbers_that_json_has_not(results: tuple[Report, Evaluation], number: float) -> None:
    def refused(text: str) -> None:
        pytest.fail(f"{text} is no JSON")

    report, evaluation = results
    compared = evaluation.comparison
    report = replace(report, layers=[replace(report.layers[0], loss=number)])
    neurons = [replace(neuron, distance=number) for neuron in compared.neurons]
    activity = [replace(row, v=[[number] * row.steps]) for row in evaluation.activity]
    evaluation = replace(evaluation, comparison=replace(compared, neurons=neurons), activity=activity)
    for made in (report, evaluation, evaluation.comparison):
        assert isinstance(made, Report | Evaluation | Comparison)
        json.loads(made.to_json(), parse_constant=refused)
    again = Report.from_dict(json.loads(report.to_json()))
    assert repr(again.layers) == repr(report.layers)
    back = Evaluation.from_dict(json.loads(evaluation.to_json()))
    assert repr(back.comparison) == repr(evaluation.comparison) and repr(back.activity) == repr(evaluation.activity)
    plain = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))  # as Python's own JSON has it
    assert repr(plain) == repr(back)


def test_a_layer_may_be_called_nan(results: tuple[Report, Evaluation]) -> None:
    report, _ = named(results, "NaN")
    assert Report.from_dict(json.loads(report.to_json())).layers == report.layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3), ("name", "surrogate \ud800"), ("rows", "4"), ("rows", 2.5), ("samples", True), ("loss", "much"),
        ("loss", None), ("loss", 10**400), ("seconds", [1.0]), ("bits", {}), ("unknown", 1),
    ],
)  # fmt: skip
def test_a_report_of_other_types_is_refused_by_name(results: tuple[Report, Evaluation], field: str, value: Any) -> None:
    content = json.loads(results[0].to_json())
    content["layers"][0][field] = value
    if value == "surrogate \ud800":
        assert Report.from_dict(content).layers[0].name == value
        return
    with pytest.raises(CheckpointError, match="no report"):
        Report.from_dict(content)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("activity", 0, "shown"), 3), (("activity", 0, "shown"), [0.5]), (("activity", 0, "v"), [["x"]]),
        (("activity", 0), []), (("activity",), None), (("comparison", "neurons", 0, "distance"), "x"),
        (("comparison", "dense", "operations"), 1), (("comparison", "dense", "energy"), None), (("comparison",), []),
        (("environment",), 5), (("accuracy",), "x"),
    ],
)  # fmt: skip
def test_an_evaluation_of_other_types_is_refused(
    results: tuple[Report, Evaluation], place: tuple[Any, ...], value: Any
) -> None:
    content: Any = json.loads(results[1].to_json())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(CheckpointError, match="no evaluation"):
        Evaluation.from_dict(content)


@pytest.mark.parametrize("change", [{"rates": [1]}, {"spikes": []}, {"v_th": []}, {"shown": [], "spikes_dense": [[0]]}])
def test_a_page_of_numbers_that_contradict_each_other_is_one_line(
    results: tuple[Report, Evaluation], change: dict[str, Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report, evaluation = results
    content = {"report": report.to_dict(), "evaluation": evaluation.to_dict()}
    content["evaluation"]["activity"][0] |= change
    (tmp_path / "odd.json").write_text(json.dumps(content))
    assert main(["report", str(tmp_path / "odd.json"), "-o", str(tmp_path / "page.html")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sbc: ") and "odd.json" in err and err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
