"""What a report warns of, each kind by several members, and that healthy data and networks bring no warning."""

import logging
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin import Calibration, Prune, Report, calibrate, compress
from sbc_plugin.calibration.driver import drive_steps
from sbc_plugin.calibration.seen_data import SeenData
from sbc_plugin.demo import digits, network
from sbc_plugin.norse import default_forward

STEPS, SEQUENCES, INPUTS, CLASSES = 12, 48, 6, 3


def model(readout: nn.Module | None = None, scale: float = 3.0) -> nn.Module:
    torch.manual_seed(0)
    parameters = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3))
    cells = norse.LIFBoxCell(parameters), readout or norse.LIFBoxCell(parameters)
    made = norse.SequentialState(nn.Linear(INPUTS, 20), cells[0], nn.Linear(20, CLASSES), cells[1])
    with torch.no_grad():
        for weight in made.parameters():
            weight *= scale
    return made


def spikes(sequences: int = SEQUENCES, seed: int = 1, steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, sequences, INPUTS, generator=generator) < 0.4).float()


def labels(sequences: int = SEQUENCES, classes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    return torch.tensor(classes)[torch.arange(sequences) % len(classes)]


def warned(data: list[Any], of: nn.Module | None = None, **given: Any) -> dict[str, str]:
    calibration = Calibration(tuning=0)
    _, report = compress(of or model(norse.LICell()), data, prune=Prune(0.5), calibration=calibration, **given)
    assert Report.from_dict(report.to_dict()).warnings == report.warnings
    for name, text in report.warnings.items():
        assert f"warning: {name}: {text}" in str(report)
    return report.warnings


HEALTHY: dict[str, Callable[[], list[Any]]] = {
    "unlabelled": lambda: [spikes()],
    "labelled": lambda: [(spikes(), labels())],
    "batches": lambda: [(spikes(24, seed), labels(24)) for seed in range(3)],
    "a remainder": lambda: [spikes(40, 1), spikes(40, 2), spikes(7, 3)],
    "other lengths": lambda: [spikes(24, 1, 12), spikes(24, 2, 9), spikes(24, 3, 14)],
    "the longest last": lambda: [spikes(24, 1, 9), spikes(24, 2, 9), spikes(24, 3, 14)],
    "some twice": lambda: [torch.cat([spikes(40), spikes(40)[:, :8]], 1)],
    "labels in some batches": lambda: [(spikes(24), labels(24, (0, 1))), (spikes(24, 2), None)],
    "numbers to fit": lambda: [(spikes(), torch.rand(SEQUENCES, CLASSES))],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_data_brings_no_warning(name: str) -> None:
    assert warned(HEALTHY[name]()) == {}


def test_the_demo_brings_no_warning() -> None:
    data = digits.load().calibration.batches(100)
    assert warned(data, network.pretrained(0)) == {}


@pytest.mark.parametrize("count", [1, 8, 31])
def test_few_sequences(count: int) -> None:
    assert f"{count} sequences are few" in warned([spikes(count)])["calibration data"]


@pytest.mark.parametrize("limit", [1, 5])
def test_fewer_samples_than_inputs(limit: int) -> None:
    _, report = compress(model(), [spikes()], prune=Prune(0.5), calibration=Calibration(tuning=0, max_samples=limit))
    assert {name for name in report.warnings if name != "calibration data"} >= {"0", "2"}
    assert f"{limit} samples for {INPUTS} inputs" in report.warnings["0"]


ALIKE: dict[str, Callable[[], list[Any]]] = {
    "one, again and again": lambda: [spikes(1).expand(-1, SEQUENCES, -1)],
    "a few, again and again": lambda: [spikes(8).repeat(1, 6, 1)],
    "each batch the same": lambda: [spikes(20)] * 3,
    "a little noise": lambda: [spikes(1) + 1e-3 * torch.randn(STEPS, SEQUENCES, INPUTS)],
    "a small signal": lambda: [5 + 0.05 * spikes()],
}


@pytest.mark.parametrize("name", ALIKE)
def test_sequences_that_are_alike(name: str) -> None:
    said = warned(ALIKE[name]())["calibration data"]
    assert "differ from each other" in said or "almost the same" in said


MISSING: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "one": (lambda: [(spikes(), labels(classes=(0, 2)))], "1 of 3 classes have no sequence: 1"),
    "the last": (lambda: [(spikes(), labels(classes=(0, 1)))], "1 of 3 classes have no sequence: 2"),
    "all but one": (lambda: [{"x": spikes(), "y": labels(classes=(1,))}], "2 of 3 classes have no sequence: 0, 2"),
    "of several batches": (
        lambda: [(spikes(24, seed), labels(24, (2,))) for seed in range(2)], "2 of 3 classes have no sequence: 0, 1",
    ),
    "more than outputs": (lambda: [(spikes(), labels(classes=(0, 1, 7)))], "labels go from 0 to 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_classes_without_a_sequence(name: str) -> None:
    data, expected = MISSING[name]
    assert expected in warned(data())["calibration data"]


def tied(model: nn.Module, batch: Any) -> Tensor:
    """Scores that are the same for all classes."""
    return drive_steps(model, batch) * 0


def silent_readout() -> nn.Module:
    made = model()
    with torch.no_grad():
        made[2].weight.abs_().neg_()
        made[2].bias.zero_()
    return made


TIES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "constant scores": (lambda: model(norse.LICell()), {"forward": tied}),
    "a silent readout": (silent_readout, {}),
    "few steps, so few counts": (model, {"forward": lambda model, x: drive_steps(model, x)[:1]}),
}


@pytest.mark.parametrize("name", TIES)
def test_ties_in_the_readout(name: str) -> None:
    make, given = TIES[name]
    assert "the same largest output" in warned([spikes()], make(), **given)["output"]


def test_silent_and_saturated_neurons() -> None:
    assert "no neuron spikes" in warned([spikes()], silent_readout())["3"]
    loud = model()
    with torch.no_grad():
        loud[0].weight.abs_()
        loud[0].bias.fill_(50.0)
    assert "spike at each step" in warned([spikes()], loud)["1"]


@pytest.mark.parametrize("lengths", [(40, 40, 7), (40, 7), (12, 12, 12, 3)])
def test_batches_that_look_batch_first(lengths: tuple[int, ...]) -> None:
    said = warned([spikes(36, seed, steps) for seed, steps in enumerate(lengths)])["calibration data"]
    assert "batch_first=True" in said and f"all batches have 36 sequences, and {lengths[0]} steps" in said


def test_another_number_of_labels_than_sequences() -> None:
    assert "another number of labels" in warned([(spikes(), labels(7))])["calibration data"]


def test_data_that_can_be_read_once_is_read_once() -> None:
    data = [spikes(20)] * 3
    assert warned(iter(data)) == warned(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["magnitude", "sbc", "obc"])
def test_data_is_warned_of_where_something_follows_from_it(method: str) -> None:
    few = [(spikes(4), labels(4, (0, 1)))]
    assert ("calibration data" in warned(few, method=method)) == (method != "magnitude")


def test_a_network_is_warned_of_by_any_method() -> None:
    silent = model(norse.LICell(), scale=0.01)
    assert "1" in warned([spikes()], of=silent, method="magnitude")


def test_given_statistics_read_nothing_more() -> None:
    class Counted(list[Any]):
        passes = 0

        def __iter__(self) -> Any:
            Counted.passes += 1
            return super().__iter__()

    data, dense = Counted([(spikes(), labels(classes=(0, 2)))]), model(norse.LICell())
    statistics = calibrate(dense, data)
    Counted.passes = 0
    compress(dense, data, prune=Prune(0.5), calibration=Calibration(tuning=0), statistics=statistics)
    given = Counted.passes
    compress(dense, data, prune=Prune(0.5), calibration=Calibration(tuning=0))
    assert given <= Counted.passes - given


def test_a_resumed_run_warns_alike(tmp_path: Any) -> None:
    data = [(spikes(8).repeat(1, 6, 1), labels(classes=(0, 2)))]
    first = warned(data, checkpoint=tmp_path / "job")
    assert first and warned(data, checkpoint=tmp_path / "job") == first == warned(data)


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sbc_plugin"):
        warned([spikes(8)])
    assert any("8 sequences are few" in record.message for record in caplog.records)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64, torch.int64])
def test_sequences_are_told_apart_in_every_type(dtype: torch.dtype) -> None:
    x = spikes()
    seen = SeenData([x.to(dtype), torch.ones(0)], default_forward(model(), x))
    notes = seen.notes()
    assert notes.sequences == SEQUENCES and len(notes.different) == len({row.numpy().tobytes() for row in x.unbind(1)})
    mean = x.double().mean(1, keepdim=True)
    assert notes.spread == pytest.approx(float((x.double() - mean).square().sum() / x.double().square().sum()))
