"""``sbc search`` and ``sbc sweep`` on a small network, with their files, pages and errors."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy
import pytest
import torch

from integration_tests.docs.test_schemas import fits
from integration_tests.models.nir_graphs import dense, lif
from sbc_plugin import SearchReport
from sbc_plugin.cli.parser import main
from sbc_plugin.cli.series_options import bits_of, sparsities_of
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.errors import SettingsError
from sbc_plugin.nir import read

FILES = ["model.nir", "--data", "spikes.npz", "--test", "spikes.npz"]
FAST = ["--tuning", "0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nir.write("model.nir", dense(lif))
    x = (numpy.random.default_rng(0).random((20, 12, 5)) < 0.4).astype(numpy.uint8)
    numpy.savez("spikes.npz", x=x, labels=numpy.arange(12) % 4)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_search_writes_a_network_a_page_and_the_recipe_that_makes_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["search", *FILES, *FAST, "--max-drop", "60"]
    result = printed(capsys, *command, "-o", "small.nir", "--report", "page.html")
    assert fits("search", result) and len(result["points"]) == 7
    assert SearchReport.from_dict(result).best is not None
    page = Path("page.html").read_text()
    assert (
        result["answer"].partition(";")[0] in page and page.count("<svg") >= 2 and "http" not in page.split("<svg")[0]
    )
    files = ["model.nir", "--data", "spikes.npz"]
    assert main(["compress", *files, "--recipe", "page.recipe.yaml", "-o", "again.nir"]) == 0
    first, second = read("small.nir").state_dict(), read("again.nir").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert main([*command, "--over", "bits", "-o", "bits.nir"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("written: bits.nir") and "bits: " in lines[-3]


def test_a_search_over_sizes_keeps_within_a_chip(capsys: pytest.CaptureFixture[str]) -> None:
    Path("chip.yaml").write_text("bits: [4]\nfan_in: 3\nfactor: 2\n")
    command = ["search", *FILES, *FAST, "--over", "size", "--chip", "chip.yaml", "--max-drop", "60"]
    result = printed(capsys, *command, "-o", "small.nir", "--report", "page.html")
    assert fits("search", result)
    found = SearchReport.from_dict(result)
    assert found.best is not None and found.best.factor is not None and found.report is not None
    assert found.best.packed_bytes <= found.dense.packed_bytes / found.best.factor
    assert {layer.bits for layer in found.report.layers} == {4}
    weights = [each for each in read("small.nir").parameters() if each.dim() > 1]
    assert weights and all(int((weight != 0).sum(1).max()) <= 3 for weight in weights)
    page = Path("page.html").read_text()
    assert f"chosen 1 / {found.best.factor:g}" in page


@pytest.mark.parametrize("options", [["--budget", "6x"], ["--budget", "60"], ["--chip", "chip.yaml"]])
def test_a_budget_of_compress_is_met_in_the_file(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("chip.yaml").write_text("bits: [2, 8]\nsize: 50\n")
    result = printed(capsys, "compress", "model.nir", "--data", "spikes.npz", *FAST, *options, "-o", "small.nir")
    weights = [each.detach() for each in read("small.nir").parameters() if each.dim() > 1]
    dense_bytes = sum(packed_bytes(each) for each in read("model.nir").parameters() if each.dim() > 1)
    limit = {"6x": dense_bytes / 6, "60": 60, "chip.yaml": 50}[options[1]]
    assert 0.8 * limit < sum(packed_bytes(weight) for weight in weights) <= limit
    note = result["report"]["skipped"]["budget"]
    assert "asked for" in note and "delivered" in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1"], "is too small"),
        (["--budget", "soon"], "size='soon'"),
        (["--budget", "6x", "--budget-energy", "1 nJ"], "exclude each other"),
        (["--budget", "6x", "--sparsity", "0.5"], "leave one of the two out"),
        (["--chip", "none.yaml"], "none.yaml"),
        (["--chip", "model.nir"], "model.nir"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "model.nir", "--data", "spikes.npz", *FAST, *options, "-o", "small.nir"]) == 1
    assert message in capsys.readouterr().err and not Path("small.nir").exists()


def test_a_sweep_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *FILES, *FAST, "--sparsity", "0.5,0.8", "--bits", "4,8", "-o", "table.jsonl"]
    result = printed(capsys, *command, "--report", "page.html")
    assert fits("sweep", result)
    assert [(row["sparsity"], row["bits"]) for row in result["points"]] == [(0.5, 4), (0.5, 8), (0.8, 4), (0.8, 8)]
    rows = [json.loads(line) for line in Path("table.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(fits("sweep-line", row) for row in rows)
    assert Path("page.html").read_text().count("<svg") == 2
    before = Path("table.jsonl").read_text()
    assert printed(capsys, *command) == result and Path("table.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", *FILES, "--sparsity", "0.5", "-o", "o.nir"], "is what is searched"),
        (["search", *FILES, "--over", "size", "--budget", "9x", "-o", "o.nir"], "--budget is what is searched"),
        (["search", *FILES, "--over", "size", "--bits", "4", "-o", "o.nir"], "leave one of the two out"),
        (["search", *FILES, "--pattern", "2:4", "-o", "o.nir"], "fixes the sparsity"),
        (["search", *FILES, "--max-drop", "-1", "-o", "o.nir"], "max_drop=-1.0"),
        (["search", *FILES, "-o", "o.txt"], "its name ends in"),
        (["search", *FILES, "-o", "o.onnx"], "holds integers"),
        (["sweep", *FILES, "-o", "t.jsonl"], "nothing to sweep"),
        (["sweep", *FILES, "--bits", "4", "-o", "t.csv"], "its name ends in .jsonl"),
        (["sweep", *FILES, "--bits", "x", "-o", "t.jsonl"], "is no list of numbers"),
        (["sweep", *FILES, "--bits", "9", "-o", "t.jsonl"], "bits=9"),
        (["sweep", *FILES, "--sparsity", "0.5:2", "-o", "t.jsonl"], "is no range"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["model.nir", "spikes.npz"]


def test_ranges_leave_weights_in_equal_factors() -> None:
    values = sparsities_of("0.5:0.98:5")
    ratios = [(1 - b) / (1 - a) for a, b in pairwise(values)]
    assert len(values) == 5 and ratios == pytest.approx([(0.02 / 0.5) ** 0.25] * 4, rel=1e-2)
    assert sparsities_of("0.5:0.98")[0] == 0.5 and sparsities_of("0.5:0.98")[-1] == 0.98
    for text in ("", "0.5:", "0.9:0.5", "0.5:0.9:1", "0.5:0.9:2.5", "0.5:0.9:1e9", "nan", "a:b", "1:2:3:4"):
        with pytest.raises(SettingsError):
            sparsities_of(text)
    for text in ("", "4.5", "1e99999999", "inf"):
        with pytest.raises(SettingsError):
            bits_of(text)
