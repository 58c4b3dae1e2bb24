"""Memory that is planned: what does not fit is gathered in blocks, and the result is the same."""

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import nn

from integration_tests.benchmarks.effort import measured
from sbc_plugin import Calibration, Prune, Quantize, Report, compress
from sbc_plugin.calibration import blocks, counting
from sbc_plugin.calibration.blocks import blocks_of
from sbc_plugin.calibration.counting import FREE, LITTLE, MOST, PRODUCT, Cost, affordable
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression import run, stage, trial
from sbc_plugin.compression.trial import tried
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.costs import hessian_memory
from sbc_plugin.settings import TUNED_SEQUENCES

ONE_SHOT = Calibration(tuning=0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((12, 20), (20, 16), (16, 5)):
        linear = nn.Linear(inputs, outputs, bias=False)
        linear.weight.data *= 25
        layers += [linear, LIFBoxCell()]
    return SequentialState(*layers)


@pytest.fixture
def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.rand(15, 6, 12, generator=generator) < 0.3).float() for _ in range(3)]
    for batch in batches:
        batch[..., 3] = 0  # an input that never spikes
    return batches


@pytest.fixture
def one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if memory were that tight; how many layers each pass gathers."""
    seen: list[int] = []
    gather = blocks.gather

    def noted(runner: Any, layers: Any, *given: Any) -> Any:
        seen.append(len(layers))
        return gather(runner, layers, *given)

    monkeypatch.setattr(blocks, "gather", noted)
    monkeypatch.setattr(blocks, "memory_left", lambda limit: 0)
    return seen


JOBS: dict[str, dict[str, Any]] = {
    "pruned": {"prune": Prune(0.6), "calibration": ONE_SHOT},
    "silent first": {"prune": Prune(0.7, silent_first=True), "calibration": ONE_SHOT},
    "joint": {"prune": Prune(0.5), "quantize": Quantize(3), "calibration": ONE_SHOT},
    "zeros by loss": {"prune": Prune(0.5, allocation="loss"), "calibration": ONE_SHOT},
    "bits by loss": {"quantize": Quantize(3, allocation="loss"), "calibration": ONE_SHOT},
    "in rounds": {"prune": Prune(0.8, rounds=2), "calibration": ONE_SHOT},
    "few samples": {"prune": Prune(0.5), "calibration": replace(ONE_SHOT, max_samples=20)},
    "sequential": {"prune": Prune(0.5, silent_first=True), "calibration": replace(ONE_SHOT, order="sequential")},
    "tuned": {"prune": Prune(0.6), "calibration": Calibration(tuning=3)},
    "magnitude": {"prune": Prune(0.5), "method": "magnitude"},
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_blocks_give_the_same_bits(
    job: dict[str, Any], model: nn.Module, data: list[torch.Tensor], request: pytest.FixtureRequest
) -> None:
    wanted, report = compress(model, data, **job)
    passes = request.getfixturevalue("one_layer_at_a_time")
    found, other = compress(model, data, **job)
    assert set(passes) <= {1}
    for name, weight in wanted.state_dict().items():
        assert torch.equal(weight, found.state_dict()[name]), name
    for row, again in zip(report.layers, other.layers, strict=True):
        assert replace(row, seconds=0.0) == replace(again, seconds=0.0)
    assert report.skipped == other.skipped


def test_a_pass_a_block_is_all_that_a_compression_takes(
    model: nn.Module, data: list[torch.Tensor], one_layer_at_a_time: list[int]
) -> None:
    compress(model, data, prune=Prune(0.6), calibration=ONE_SHOT)
    assert one_layer_at_a_time == [1, 1, 1]


def test_blocks_read_data_again_that_come_once(
    model: nn.Module, data: list[torch.Tensor], one_layer_at_a_time: list[int]
) -> None:
    wanted, _ = compress(model, data, prune=Prune(0.6), calibration=ONE_SHOT)
    found, _ = compress(model, iter(data), prune=Prune(0.6), calibration=ONE_SHOT)
    assert one_layer_at_a_time == [1] * 6
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))


def test_a_layer_that_an_earlier_round_silenced_keeps_its_budget(
    model: nn.Module, data: list[torch.Tensor], one_layer_at_a_time: list[int]
) -> None:
    small, _ = compress(model, data, prune=Prune(0.97, rounds=3, allocation="uniform"), calibration=ONE_SHOT)
    weights = [parameter for parameter in small.parameters() if parameter.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.97 * sum(weight.numel() for weight in weights))


def test_the_hessians_of_one_round_make_room_for_those_of_the_next(
    model: nn.Module, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, _ = Runner.of(model, data[0]).find_layers(data[0])
    enough = next(room for room in range(0, 10**10, 1000) if len(blocks_of(layers, room)) == 1)
    passes: list[int] = []

    def left(limit: int | None) -> int:
        held = [each.sum_xx.nbytes for each in gc.get_objects() if type(each) is HessianAccumulator]
        return enough - sum(held)

    def noted(runner: Any, layers: Any, *given: Any) -> Any:
        passes.append(len(layers))
        return gather(runner, layers, *given)

    job: dict[str, Any] = {"prune": Prune(0.8, rounds=2), "calibration": ONE_SHOT}
    wanted, _ = compress(model, data, **job)
    gather = stage.gather
    monkeypatch.setattr(blocks, "memory_left", left)
    for module in (stage, blocks):
        monkeypatch.setattr(module, "gather", noted)
    found, _ = compress(model, data, **job)
    assert passes == [3, 3]
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))


def test_blocks_hold_as_much_as_there_is_room_for(model: nn.Module, data: list[torch.Tensor]) -> None:
    layers, _ = Runner.of(model, data[0]).find_layers(data[0])
    assert [len(block) for block in blocks_of(layers, None)] == [3]
    assert [len(block) for block in blocks_of(layers, 0)] == [1, 1, 1]
    enough = next(room for room in range(0, 10**12, 10**7) if len(blocks_of(layers, room)) == 1)
    assert len(blocks_of(layers, enough - 10**7)) > 1
    assert hessian_memory(20, 2) == 2 * 20 * 20 * 8


def _peak(batches: int, left: int, tuning: int) -> int:
    """Bytes above what was resident, of a compression of data that come once."""
    torch.manual_seed(0)
    linear = nn.Linear(400, 20, bias=False)
    linear.weight.data *= 10
    network = SequentialState(linear, LIFBoxCell())

    def drawn() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        for _ in range(batches):
            yield (torch.rand(10, 16, 400, generator=generator) < 0.3).float()

    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    calibration = Calibration(tuning=tuning, memory=resident + left)
    _, effort = measured(lambda: compress(network, drawn(), prune=Prune(0.5), calibration=calibration, progress=False))
    if effort.peak_bytes is None:
        pytest.skip("this system does not tell the peak of a process")
    return effort.peak_bytes


@pytest.mark.parametrize("tuning", [0, 5])
def test_peak_memory_does_not_grow_with_the_number_of_batches(tuning: int) -> None:
    left = 160 * 2**20  # of which an eighth may be batches, and another what the model did on them
    _peak(10, left, tuning)  # what is loaded once
    few, many = _peak(10, left, tuning), _peak(1000, left, tuning)
    data = 1000 * 10 * 16 * 400 * 4
    assert many - few < data / 2, f"{few / 2**20:.0f} MiB with 10 batches, {many / 2**20:.0f} with 1,000"


def test_pieces_of_tuning_are_as_large_as_memory_allows(
    model: nn.Module, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner.of(model, data[0])
    layers, _ = runner.find_layers(data[0])
    whole = tried(runner, layers, data[0], Calibration(outputs="classes"))
    assert (whole.reason, whole.pieces) == ("", TUNED_SEQUENCES) and whole.step.products > whole.forward.products > 0
    monkeypatch.setattr(trial, "memory_left", lambda limit: 10**6)
    kept = next(room for room in range(1000, 10**6, 1000) if _pieces(room, runner, layers, data, monkeypatch) >= 1)
    assert _pieces(4 * kept, runner, layers, data, monkeypatch) in (4, 5)
    monkeypatch.setattr(trial, "memory_left", lambda limit: 10)
    small, report = compress(model, data, prune=Prune(0.5))
    assert "on one sequence takes" in report.skipped["tuning"] and "10 bytes are left" in report.skipped["tuning"]
    alone, _ = compress(model, data, prune=Prune(0.5, silent_first=False), calibration=ONE_SHOT)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), alone.parameters(), strict=True))


def _pieces(room: int, runner: Any, layers: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(trial, "memory_left", lambda limit: room)
    found = tried(runner, layers, data[0], Calibration(outputs="classes"))
    return 0 if found.reason else found.pieces


def test_steps_are_left_out_where_they_take_much_longer_than_all_else() -> None:
    def afforded(products: float) -> int:
        return affordable(200, Cost(products=products), 0.0)

    seconds = 1 / PRODUCT
    assert [afforded(part * FREE * seconds / 200) for part in (0.5, 0.99, 1.01, 2.01, 4.01)] == [200, 200, 100, 50, 0]
    long = Cost(products=100 * MOST * seconds / 200)  # as long as MOST times a one shot of 100 s
    assert [affordable(200, long, 101.0, lost) for lost in (None, 0.5, LITTLE / 2)] == [200, 200, 100]


def test_tuning_that_is_left_out_is_told(
    model: nn.Module, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "FREE", 0.0)
    monkeypatch.setattr(counting, "MOST", 0.0)
    _, report = compress(model, data, prune=Prune(0.9))
    assert report.settings["calibration"].tuning == 0
    assert "longer" in report.skipped["tuning"] and "Calibration(tuning=200)" in report.skipped["tuning"]
    _, asked = compress(model, data, prune=Prune(0.9), calibration=Calibration(tuning=2))
    assert asked.settings["calibration"].tuning == 2 and "longer" not in asked.skipped.get("tuning", "")


@pytest.mark.parametrize("job", ["joint", "sequential", "tuned", "magnitude"])
def test_the_seconds_of_the_stages_add_up(job: str, model: nn.Module, data: list[torch.Tensor]) -> None:
    _, report = compress(model, data, **JOBS[job])
    assert sum(report.stages.values()) == pytest.approx(report.seconds, abs=1e-3)
    assert {"model", "calibration", "solving"} <= report.stages.keys() and min(report.stages.values()) >= 0
    assert ("tuning" in report.stages) and f"model {report.stages['model']:.1f}" in str(report)
    assert Report.from_dict(report.to_dict()).stages == report.stages


@pytest.mark.parametrize("lost", [0.03, 0.3])
def test_steps_that_do_not_pay_are_told_as_such(
    lost: float, model: nn.Module, data: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "expected_losses", lambda source, aims: torch.full((18,), lost))
    monkeypatch.setattr(counting, "MOST_FOR_LITTLE", 0.0)
    _, report = compress(model, data, prune=Prune(0.5))
    few = lost < counting.LITTLE
    assert (report.settings["calibration"].tuning == 0) == few
    assert ("longer than all else" in report.skipped.get("tuning", "")) == few
