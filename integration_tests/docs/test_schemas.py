"""The schemas in docs/schemas are those of the code, and real outputs keep to them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nir
import numpy
import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from torch import nn

from integration_tests.docs import schemas
from integration_tests.models.nir_graphs import dense, lif
from sbc_plugin import Calibration, Prune, Quantize, Recipe
from sbc_plugin.cli.parser import main
from sbc_plugin.demo.run import Row
from sbc_plugin.errors import SettingsError
from sbc_plugin.nir import read


def fits(name: str, content: Any) -> bool:
    validator = Draft202012Validator(json.loads((schemas.FOLDER / f"{name}.json").read_text()))
    return bool(validator.is_valid(content))


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_committed_schemas_are_those_of_the_code(name: str) -> None:
    text = (schemas.FOLDER / f"{name}.json").read_text()
    assert text == schemas.text_of(name), "run python -m integration_tests.docs.schemas"
    Draft202012Validator.check_schema(json.loads(text))
    assert not fits(name, {"something": "else"})


def test_what_commands_print_and_write_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.chdir(tmp_path)
    nir.write("model.nir", dense(lif))
    x = (numpy.random.default_rng(0).random((20, 12, 5)) < 0.4).astype(numpy.uint8)
    numpy.savez("spikes.npz", x=x, labels=numpy.arange(12) % 4)

    def printed(*arguments: str) -> Any:
        assert main([*arguments, "--data", "spikes.npz", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert fits("inspect", printed("inspect", "model.nir"))
    layer = printed("inspect", "model.nir")["layers"][0]["name"]
    options = ["--sparsity", "0.5", "--tuning", "2", "--rule", f"{layer}: bits=4", "--report", "report.json"]
    result = printed("compress", "model.nir", *options, "-o", "small.nir")
    assert fits("compress", result) and fits("report", result["report"])
    assert fits("compress", json.loads(Path("report.json").read_text()))
    assert fits("recipe", yaml.safe_load(Path("report.recipe.yaml").read_text())) and result["report"]["recipe"]
    assert fits("compare", printed("compare", "model.nir", "small.nir"))
    timed = printed("compare", "model.nir", "small.nir", "--runtime")
    assert fits("compare", timed) and timed["runtime"]["dense"]["weights"] > 0
    again = printed("compress", "model.nir", "--recipe", "report.recipe.yaml", "-o", "again.nir")
    assert again["report"]["recipe"] == result["report"]["recipe"]

    small, second = read("small.nir").state_dict(), read("again.nir").state_dict()
    assert all(torch.equal(small[name], second[name]) for name in small)


def test_lines_of_the_demo_fit() -> None:
    line = {"seed": 0} | asdict(Row("90 %", "sbc", 0.9, 0.1, 1000.0, 100, 1.0))
    assert fits("demo", json.loads(json.dumps(line)))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(prune=Prune(0.5)),
        Recipe("rtn", quantize=Quantize(2, "group:4", "absmax", False), ignore=(nn.Linear, "*"), batch_first=False),
        Recipe(rules=(("a", (Prune(0), Quantize(8))), ("b", None)), backend="brevitas"),
        Recipe(prune=Prune(0.5), calibration=Calibration(tuning=(3, 0), device="cpu", memory=10**9, max_samples=1)),
    ],
)
def test_recipes_fit(recipe: Recipe) -> None:
    assert fits("recipe", json.loads(json.dumps(recipe.to_dict())))


@pytest.mark.parametrize(
    "content",
    [
        {"prun": {"sparsity": 0.5}},
        {"prune": {"pattern": "2:4"}},
        {"prune": {"sparsity": "0.5"}},
        {"prune": {"sparsity": 1}},
        {"prune": {"sparsity": 0.5, "solver": "best"}},
        {"quantize": {"bits": 9}},
        {"quantize": {"bits": 4.5}},
        {"quantize": {"bits": 4, "allocation": "lamp"}},
        {"prune": {"sparsity": 0.5}, "calibration": {"tuning": [1, 2, 3]}},
        {"prune": {"sparsity": 0.5}, "calibration": {"damping": -1}},
        {"prune": {"sparsity": 0.5}, "method": "best"},
        {"prune": {"sparsity": 0.5}, "ignore": "a"},
        {"prune": {"sparsity": 0.5}, "ignore": [1.5]},
        {"rules": [{"quantize": {"bits": 4}}]},
        {"prune": {"sparsity": 0.5}, "format": 2},
        [],
    ],
)
def test_schema_and_reader_refuse_the_same(content: Any) -> None:
    assert not fits("recipe", content)
    with pytest.raises(SettingsError):
        Recipe.from_dict(content)
