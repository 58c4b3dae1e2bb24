"""Memory that is planned: what does not fit is gathered in blocks, and the result is the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import nn

from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.calibration import blocks
from sbc_plugin.calibration.blocks import blocks_of
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.core.costs import hessian_memory

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


def test_a_layer_that_an_earlier_round_silenced_keeps_its_budget(
    model: nn.Module, data: list[torch.Tensor], one_layer_at_a_time: list[int]
) -> None:
    small, _ = compress(model, data, prune=Prune(0.97, rounds=3, allocation="uniform"), calibration=ONE_SHOT)
    weights = [parameter for parameter in small.parameters() if parameter.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.97 * sum(weight.numel() for weight in weights))


def test_blocks_hold_as_much_as_there_is_room_for(model: nn.Module, data: list[torch.Tensor]) -> None:
    layers, _ = Runner.of(model, data[0]).find_layers(data[0])
    assert [len(block) for block in blocks_of(layers, None)] == [3]
    assert [len(block) for block in blocks_of(layers, 0)] == [1, 1, 1]
    enough = next(room for room in range(0, 10**12, 10**7) if len(blocks_of(layers, room)) == 1)
    assert len(blocks_of(layers, enough - 10**7)) > 1
    assert hessian_memory(20, 2) == 2 * 20 * 20 * 8
