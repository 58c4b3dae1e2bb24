"""What a callback and the log are told while a network is compressed."""

import logging

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.calibration.progress import Progress
from sbc_plugin.errors import SettingsError


def model() -> nn.Module:
    torch.manual_seed(0)
    made = norse.SequentialState(nn.Linear(6, 12), norse.LIFBoxCell(), nn.Linear(12, 3), norse.LICell())
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 10
    return made


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [4 * (torch.rand(10, 16, 6, generator=generator) < 0.5).float() for _ in range(3)]


GIVEN = {
    "one shot": ({"prune": Prune(0.5), "calibration": Calibration(tuning=0)}, ["calibrating", "compressing"]),
    "tuned": (
        {"prune": Prune(0.5), "calibration": Calibration(tuning=4)}, ["calibrating", "compressing", "tuning"],
    ),
    "both": (
        {"prune": Prune(0.5), "quantize": Quantize(4), "calibration": Calibration(tuning=0)},
        ["calibrating", "compressing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_a_callback_is_told_of_each_stage(name: str) -> None:
    given, expected = GIVEN[name]
    told: list[Progress] = []
    _, report = compress(model(), data(), progress=told.append, **given)  # type: ignore[arg-type]
    begun = [each for each in told if each.done == 0]
    assert [each.stage for each in begun] == expected
    assert [each.number for each in begun] == list(range(1, len(expected) + 1))
    assert {each.stages for each in told} == {len(expected)}
    for stage, total in (("calibrating", 3), ("compressing", 2), ("tuning", 4)):
        first = [
            each.done for each in told if each.stage == stage and each.number == [*expected, stage].index(stage) + 1
        ]
        assert first == (list(range(total + 1)) if stage in expected else [])
    seconds = [each.seconds for each in told]
    assert seconds == sorted(seconds) and seconds[-1] <= report.seconds
    assert told[-1].remaining == 0 and all(each.remaining is not None for each in told[1:])
    _, other = compress(model(), data(), **given)  # type: ignore[arg-type]
    assert other.layers[0].loss == report.layers[0].loss


def test_what_a_callback_raises_ends_the_compression_and_leaves_the_model() -> None:
    dense = model()
    before = [weight.clone() for weight in dense.parameters()]

    def stop(progress: Progress) -> None:
        if progress.stage == "compressing" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(dense, data(), prune=Prune(0.5), inplace=True, progress=stop)
    assert all(torch.equal(one, other) for one, other in zip(before, dense.parameters(), strict=True))


def test_stages_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sbc_plugin"):
        compress(model(), data(), prune=Prune(0.5), calibration=Calibration(tuning=0))
    lines = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert lines[0].startswith("stage 1 of 2, calibrating: 0 of 3")
    assert lines[1].startswith("stage 2 of 2, compressing: 0 of 2")


@pytest.mark.parametrize("progress", ["yes", 3, [1]])
def test_what_is_no_function_is_refused(progress: object) -> None:
    with pytest.raises(SettingsError, match="progress="):
        compress(model(), data(), prune=Prune(0.5), progress=progress)  # type: ignore[arg-type]
