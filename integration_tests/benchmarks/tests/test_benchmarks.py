"""The benchmark itself: what it measures, that it goes on where it stopped, and a run of seconds from end to end."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from integration_tests.benchmarks import accuracy, plots, records, tables
from integration_tests.benchmarks.cases import CASES, budgets
from integration_tests.benchmarks.effort import measured
from integration_tests.benchmarks.methods import METHODS, Bench
from integration_tests.benchmarks.published import Published
from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.run import quick
from integration_tests.benchmarks.subjects import SUBJECTS
from sbc_plugin import Prune, Quantize, calibrate
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.obs import obs_mask
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import make_grid
from sbc_plugin.demo import digits, network

QUICK_METHODS = [method for method in METHODS if method != "tuned"]  # which takes a minute where others take seconds
DIGITS = quick(SUBJECTS["digits"], ("95 % sparse", "2 bits"), tested=60)


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return list(accuracy.lines(DIGITS, methods=QUICK_METHODS))


def test_a_run_has_a_line_for_every_method(lines: list[Line]) -> None:
    found = [(line["budget"], line["method"]) for line in lines]
    assert found == [
        ("-", "none"),
        *(("95 % sparse", method) for method in ("magnitude", "obc", "published", "sbc")),
        *(("2 bits", method) for method in ("rtn", "obc", "brevitas", "published", "sbc")),
    ]
    assert not [line for line in lines if "failed" in line]


def test_lines_keep_their_budget(lines: list[Line]) -> None:
    for line in lines:
        if line["budget"] == "95 % sparse":
            assert line["sparsity"] == pytest.approx(0.95, abs=1e-4) and line["bits"] == 32
        assert line["bits"] == (2 if line["budget"] == "2 bits" else 32)


def test_lines_tell_what_happened_to_the_spikes(lines: list[Line]) -> None:
    dense, *others = lines
    assert (dense["distance"], dense["rate_distance"], dense["seconds"]) == (0, 0, 0) and dense["accuracy"] > 0.9
    for line in others:
        assert 0 < line["distance"] < 1 and line["rate_distance"] > 0 and 0 <= line["dead"] < 1
        assert 0 < line["operations"] < dense["operations"] and line["energy"] < dense["energy"]
        assert 0 < line["packed_bytes"] < dense["packed_bytes"] / 5
        assert line["seconds"] > 0 and line["processor_seconds"] > 0
    by_method = {line["method"]: line for line in others if line["budget"] == "95 % sparse"}
    # Measured on 600 digits: 9.7, 69.7 and 84.5 %.
    assert by_method["magnitude"]["accuracy"] < by_method["obc"]["accuracy"] < by_method["sbc"]["accuracy"]


def test_tables_and_figures_are_made_of_lines(lines: list[Line], tmp_path: Path) -> None:
    table = tables.by_method(lines, ["-", "95 % sparse", "2 bits"])
    assert len(table.splitlines()) == 2 + len(lines)
    failed = [*lines, {"case": "digits", "seed": 0, "budget": "2:4", "method": "sbc", "failed": "no pattern"}]
    assert "fails: no pattern" in tables.by_method(failed, ["2:4"])
    path = plots.draw(failed, tmp_path / "figure.svg", "digits")
    assert plots.is_current(path, failed) and not plots.is_current(path, lines[:-1])
    assert not plots.is_current(tmp_path / "none.svg", lines)
    assert path.read_bytes() == plots.draw(failed, tmp_path / "again.svg", "digits").read_bytes()


def run(folder: Path, stop: int | None = None, mark: str = "one") -> list[tuple[str, str]]:
    """Keep lines of three budgets, stop before the one numbered ``stop``; what was measured."""
    measured: list[tuple[str, str]] = []

    def some(known: Callable[[Line], bool]) -> Iterator[Line]:
        for number, budget in enumerate("abc"):
            line = {"case": "case", "seed": 0, "budget": budget, "method": "sbc", "settings": mark}
            if number == stop:
                raise KeyboardInterrupt
            if not known(line):
                measured.append((budget, mark))
                yield line

    records.resume("case", some, folder)
    return measured


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=2)
    assert [line["budget"] for line in records.read("case", tmp_path)] == ["a", "b"]
    assert run(tmp_path) == [("c", "one")]
    assert run(tmp_path) == []
    assert "case" in (tmp_path / "environment.json").read_text()


def test_other_settings_are_measured_again_and_replace_the_line(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, mark="two") == [("a", "two"), ("b", "two"), ("c", "two")]
    assert [line["settings"] for line in records.read("case", tmp_path)] == ["two"] * 3


def test_settings_tell_budgets_methods_networks_and_data_apart() -> None:
    def marks(**changes: Any) -> set[str]:
        seen: set[str] = set()

        def known(line: Line) -> bool:
            seen.add(line["settings"])
            return True

        assert list(accuracy.lines(replace(DIGITS, **changes), known)) == []
        return seen

    first = marks()
    assert len(first) == 12 and first == marks()
    assert not first & marks(compared=49)
    assert not first & marks(trained=lambda seed: network.pretrained(1))
    case = replace(DIGITS.case, budgets=budgets((94,), (3,)))
    assert len(first & marks(case=case)) == 1  # the dense network's


def test_peak_memory_is_that_of_the_work() -> None:
    kept: list[Tensor] = []
    _, small = measured(lambda: None)
    if small.peak_bytes is None:
        pytest.skip("this system does not tell the high-water mark of a process")
    size = 200 * 2**20
    _, large = measured(lambda: int(torch.ones(size, dtype=torch.uint8)[0]))
    assert large.peak_bytes is not None
    assert small.peak_bytes < 0.1 * size and 0.9 * size < large.peak_bytes < 1.5 * size
    _, held = measured(lambda: kept.append(torch.ones(size // 2, dtype=torch.uint8)))
    assert held.peak_bytes is not None and held.peak_bytes < 0.8 * size  # the freed memory does not count


def test_published_is_greedy_obs_and_gptq_on_the_same_hessians() -> None:
    dense, data = network.pretrained(0), digits.load().calibration.subset(slice(0, 50)).batches(50)
    method = Published(dense, data)
    method.calibrate()
    method.order()
    hessians = {name: found.hessian() for name, found in calibrate(dense, data).items()}
    weights = {name: dense.get_submodule(name).weight.detach().flatten(1) for name in hessians}
    zeros = allocate_zeros(weights, 0.9)
    sparse = method.compress(Prune(0.9), None)
    joint = method.compress(Prune(0.9), Quantize(4))
    for name, weight in weights.items():
        mask = obs_mask(weight, LayerHessian(hessians[name]), zeros[name], step=None)
        expected = refit(weight, mask, LayerHessian(hessians[name]))
        assert torch.equal(sparse.get_submodule(name).weight.flatten(1), expected)
        grid = make_grid(expected, 4, scale="absmax", mask=mask)
        rounded = gptq(expected, LayerHessian(hessians[name]), grid, mask)
        assert torch.equal(joint.get_submodule(name).weight.flatten(1), rounded)
        assert torch.equal(dense.get_submodule(name).weight.flatten(1), weight)


def test_brevitas_row_sees_the_whole_sequence() -> None:
    bench = Bench(network.pretrained(0), digits.load().calibration.subset(slice(0, 50)).batches(50))
    budget = next(budget for budget in DIGITS.case.budgets if budget.quantize is not None)
    model, effort = METHODS["brevitas"].make(bench, budget)
    last = [module for module in model.modules() if hasattr(module, "quant_weight")][-1]
    assert last.quant_weight().int().unique().tolist() == [-1, 0, 1] and effort.seconds > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_subject(case: Any) -> None:
    titles = [budget.title for budget in SUBJECTS[case.name].case.budgets]
    assert len(set(titles)) == len(titles) and {"95 % sparse", "4 bits", "2 bits", "90 % sparse, 4 bits"} <= set(titles)


def test_a_limited_method_runs_on_its_seeds_only() -> None:
    limited = replace(DIGITS, limits={"published": (1,)})
    asked: list[Line] = []

    def known(line: Line) -> bool:
        asked.append(line)
        return True

    assert list(accuracy.lines(limited, known)) == []
    assert "published" not in {line["method"] for line in asked} and "sbc" in {line["method"] for line in asked}


def test_quick_run_keeps_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from integration_tests.benchmarks import run as command

    kept = records.RESULTS / "digits.jsonl"
    before = kept.stat().st_mtime_ns
    for name in ("set_num_threads", "set_flush_denormal"):  # of this whole process
        monkeypatch.setattr(torch, name, lambda value: None)
    monkeypatch.setattr(command, "quick", partial(quick, budgets=("95 % sparse",), tested=20))
    assert command.main(["digits", "--quick", "--methods", "magnitude", "--threads", "1"]) == 0
    assert "| 95 % sparse | magnitude |" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before


def test_cases_run_side_by_side_and_long_ones_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    from integration_tests.benchmarks import run as command

    called: list[list[str]] = []

    def called_with(arguments: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        called.append(arguments[1:])
        return subprocess.CompletedProcess(arguments, int("digits" in arguments))

    monkeypatch.setattr(command.subprocess, "run", called_with)
    monkeypatch.setattr(command.page, "write", lambda: called.append(["pages"]))
    for name in ("set_num_threads", "set_flush_denormal"):  # of this whole process
        monkeypatch.setattr(torch, name, lambda value: None)
    arguments = ["recurrent", "digits", "2fc-events", "--seeds", "0", "1", "--threads", "4"]
    assert command.main([*arguments, "--processes", "1", "--tables"]) == 0 and called == [["pages"]]
    called.clear()
    assert command.main([*arguments, "--processes", "2"]) == 1  # one of them failed
    *cases, pages = called
    assert pages == ["pages"] and {case[2] for case in cases} == {"recurrent", "digits", "2fc-events"}
    assert command.long_first(arguments[:3]) == ["2fc-events", "digits", "recurrent"]
    rest = ["--seeds", "0", "1", "--threads", "4", "--processes", "2", "--no-pages", "--threads", "2"]
    assert all(case[:2] == ["-m", "integration_tests.benchmarks.run"] and case[3:] == rest for case in cases)
