"""``sweep`` measures every combination from one calibration, and goes on where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from integration_tests.compression.test_search import NAME, ONE_SHOT, Counted, batches, labelled, zeros
from integration_tests.models.cases import CASES
from sbc_plugin import Prune, Quantize, SweepTable, compare, compress, sweep
from sbc_plugin.errors import CalibrationError, CheckpointError, SettingsError
from sbc_plugin.evaluation.series_page import sweep_page

ASKED: dict[str, Any] = {"sparsities": (0.5, 0.8), "bits": [3, 8]}


def test_every_row_is_what_compress_and_compare_say() -> None:
    model, data = CASES[NAME].model(), Counted(batches())
    test = labelled(model)
    found = sweep(model, data, **ASKED, test_data=test, **ONE_SHOT)
    assert data.passes == 1
    for row, (sparsity, bits) in zip(found.points, [(0.5, 3), (0.5, 8), (0.8, 3), (0.8, 8)], strict=True):
        small, _ = compress(model, batches(), prune=Prune(sparsity), quantize=Quantize(bits), **ONE_SHOT)
        cost = compare(model, small, test).compressed
        right = [CASES[NAME].output(small, x).sum(0).argmax(1) == y for x, y in test]
        accuracy = sum(int(each.sum()) for each in right) / sum(map(len, right))
        assert (row.sparsity, row.bits, row.packed_bytes) == (sparsity, bits, cost.packed_bytes)
        assert row.operations == cost.operations.acs + cost.operations.macs
        assert row.accuracy == pytest.approx(accuracy) and row.drop == pytest.approx(100 * (1 - accuracy))
        assert row.low is not None and row.high is not None and row.low <= row.drop <= row.high
    best = found.pareto()
    everything = [found.dense, *found.points]
    for row in everything:
        beaten = any(
            other.packed_bytes <= row.packed_bytes and other.accuracy >= row.accuracy
            and (other.packed_bytes, other.accuracy) != (row.packed_bytes, row.accuracy) for other in everything
        )  # fmt: skip
        assert beaten or any((b.packed_bytes, b.accuracy) == (row.packed_bytes, row.accuracy) for b in best)
        assert not (beaten and row in best)
    assert SweepTable.from_dict(json.loads(found.to_json())) == found
    assert sweep_page(found, "<b>").count("<svg") == 2 and "<b>" not in sweep_page(found, "<b>")
    assert len(str(found).splitlines()) == 7


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_an_interrupted_sweep_gives_the_same_table(tmp_path: Path, torn: int) -> None:
    model, path = CASES[NAME].model(), tmp_path / "table.jsonl"
    calls: list[float] = []

    def evaluate(network: nn.Module) -> float:
        calls.append(zeros(network))
        return calls[-1]

    def done() -> SweepTable:
        return sweep(model, batches(), **ASKED, evaluate=evaluate, path=path, **ONE_SHOT)

    whole = done()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5 and len(calls) == 5
    path.write_bytes(b"".join(lines[:3]) + lines[3][:torn])
    again = done()
    assert len(calls) == 5 + 1 + 2  # the dense network, and the two that were missing

    def without_time(table: SweepTable) -> list[dict[str, Any]]:
        return [{name: value for name, value in vars(row).items() if name != "seconds"} for row in table.points]

    assert without_time(again) == without_time(whole) and again.points[0] == whole.points[0]
    assert [json.loads(line)["bits"] for line in path.read_text().splitlines()] == [None, 3, 8, 3, 8]
    data = Counted(batches())
    sweep(model, data, **ASKED, evaluate=evaluate, path=path, **ONE_SHOT)
    assert data.passes == 0  # nothing to calibrate for


def test_rows_of_other_settings_stay_and_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    model = CASES[NAME].model()
    sweep(model, batches(), bits=[8], evaluate=zeros, path=path, **ONE_SHOT)
    sweep(model, batches(), bits=[8], evaluate=zeros, path=path, method="rtn", **ONE_SHOT)
    sweep(CASES[NAME].model(seed=1), batches(), bits=[8], evaluate=zeros, path=path, **ONE_SHOT)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6 and len({row["settings"] for row in rows}) == 3


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes", '{"sparsity": 0.5}\n', "[]\n", "\n", '{"settings": 1}\n{}'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"table.jsonl, line 1"):
        sweep(CASES[NAME].model(), batches(), bits=[8], evaluate=zeros, path=path, **ONE_SHOT)
    assert path.read_text() == content


def test_what_cannot_be_swept_is_refused() -> None:
    model = CASES[NAME].model()
    with pytest.raises(SettingsError, match="nothing to sweep"):
        sweep(model, batches(), evaluate=zeros)
    with pytest.raises(SettingsError, match=r"sparsity=1\.5"):
        sweep(model, batches(), evaluate=zeros, sparsities=[0.5, 1.5])
    with pytest.raises(SettingsError, match="lists of numbers"):
        sweep(model, batches(), evaluate=zeros, bits=4)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="nothing says how good"):
        sweep(model, batches(), bits=[8])
    with pytest.raises(CalibrationError, match="holds no labels"):
        sweep(model, batches(), bits=[8], test_data=batches())
