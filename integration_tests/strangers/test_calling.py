"""Models that take time in every usual way: the default forward is the one that a user would write by hand."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.networks import BOX, LI, LIF
from sbc_plugin import Calibration, Prune, accuracy, calibrate, compare, compress, evaluate, inspect
from sbc_plugin.errors import CalibrationError, UnsupportedModelError
from sbc_plugin.norse import default_forward, is_step_model, record_states

T, B, N = 7, 5, 6
HALF, QUICK = Prune(0.5), Calibration(tuning=0)


class Network(nn.Module):
    """Two layers of neurons and a readout; subclasses say how time passes through it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(N, 8), norse.LIFBoxCell(BOX)
        self.fc2, self.lif2 = nn.Linear(8, 4), norse.LIFCell(LIF)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(4)

    def step(self, x: Tensor, s1: Any = None, s2: Any = None) -> tuple[Tensor, Any, Any]:
        z, s1 = self.lif1(self.fc1(x), s1)
        z, s2 = self.lif2(self.fc2(z), s2)
        return z, s1, s2

    def sequence(self, x: Tensor) -> Tensor:
        """(T, B, N) to (T, B, 4)."""
        s1 = s2 = None
        outputs = []
        for step in x:
            z, s1, s2 = self.step(step, s1, s2)
            outputs.append(z)
        return torch.stack(outputs)


class HiddenState(Network):
    def forward(self, x: Tensor, memory: Any = None) -> Any:
        z, *memory = self.step(x, *(memory or (None, None)))
        return z, memory


class StateFirst(Network):
    """The state has to be given."""

    def forward(self, x: Tensor, hidden: Any) -> Any:
        z, *hidden = self.step(x, *(hidden or (None, None)))
        return z, hidden


class TwoStates(Network):
    def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> Any:
        return self.step(x, mem1, mem2)


class TwoOutputs(Network):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        z, *state = self.step(x, *(state or (None, None)))
        return z, 2 * z, state


class Detached(Network):
    """Copies of states go on, as in truncated backpropagation."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        z, *state = self.step(x, *(state or (None, None)))
        return z, [type(s)(*(value.detach().clone() for value in s)) for s in state]


class WholeWithState(Network):
    """A whole sequence, and a state that nobody has to give."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.sequence(x), state


class BatchFirst(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x.transpose(0, 1)).transpose(0, 1)


class BatchFirstSum(Network):
    def forward(self, images: Tensor) -> Tensor:
        return self.sequence(images.transpose(0, 1)).sum(0)


class BatchFirstTimeLast(Network):
    """(B, T, N) to (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x.transpose(0, 1)).permute(1, 2, 0)


class FixedLength(Network):
    """Takes sequences of T steps and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(T, 1, N))

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x + self.position)


class FixedLengthBatchFirst(FixedLength):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class FixedBatch(Network):
    """Takes B sequences and no other number of them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x + torch.zeros(1, B, N))


class StillImage(Network):
    """(B, N), shown for T steps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x.expand(T, *x.shape)).mean(0)


class StillImageOfSteps(Network):
    """(B, N), shown for T steps, to (B, T, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x.expand(T, *x.shape)).transpose(0, 1)


class MixesTime(FixedLengthBatchFirst):
    """(B, T, N): each step of the neurons sees all steps of the input."""

    def mixed(self, x: Tensor) -> Tensor:
        """(T, B, N)."""
        attended = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return attended.transpose(0, 1) + self.position

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(self.mixed(x)).transpose(0, 1)


class Windows(Network):
    """Average over windows of three steps: the output is shorter than the input."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.sequence(x)
        return z[: len(z) // 3 * 3].unflatten(0, (-1, 3)).mean(1)


class Recorded(Network):
    """Leaves what it saw in attributes, and throws away what lay there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.old, self.table = [torch.ones(2)], {"a": torch.ones(2)}
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        z = self.sequence(x)
        self.seen.append(z)
        self.last, self.new = z, (z, 1)
        self.old.clear()
        self.table["a"] = z
        return z


class OfLightning(nn.Module):
    """A training wrapper whose forward passes everything on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = HiddenState()

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.net(*args, **named)


Run = Callable[[Any, Tensor], Tensor]


def whole(model: Any, x: Tensor) -> Tensor:
    result: Tensor = getattr(model, "net", model).sequence(x)
    return result


def batch_first(model: Any, x: Tensor) -> Tensor:
    return whole(model, x.transpose(0, 1))


# How the model takes its data, and what the right forward gives, (T, B, C) or (B, C).
MODELS: dict[type[nn.Module], tuple[str, Run]] = {
    HiddenState: ("step", whole),
    StateFirst: ("step", whole),
    TwoStates: ("step", whole),
    TwoOutputs: ("step", whole),
    Detached: ("step", whole),
    OfLightning: ("step", whole),
    WholeWithState: ("time first", whole),
    FixedLength: ("time first", whole),
    FixedBatch: ("time first", whole),
    Windows: ("time first", lambda model, x: whole(model, x)[: T // 3 * 3].unflatten(0, (-1, 3)).mean(1)),
    Recorded: ("time first", whole),
    BatchFirst: ("batch first", batch_first),
    BatchFirstTimeLast: ("batch first", batch_first),
    FixedLengthBatchFirst: ("batch first", batch_first),
    BatchFirstSum: ("batch first", lambda model, x: batch_first(model, x).sum(0)),
    StillImage: ("still", lambda model, x: whole(model, x.expand(T, *x.shape)).mean(0)),
    StillImageOfSteps: ("still", lambda model, x: whole(model, x.expand(T, *x.shape))),
    MixesTime: ("batch first", lambda model, x: whole(model, model.mixed(x))),
}


def data(takes: str, sequences: int = B) -> Tensor:
    """Random spikes (T, B, N), or as the model takes them."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(T, sequences, N, generator=generator) < 0.5).float()
    return {"batch first": x.transpose(0, 1), "still": x[0]}.get(takes, x)


@pytest.mark.parametrize("kind", MODELS)
def test_the_default_forward_is_that_of_hand(kind: type[nn.Module]) -> None:
    takes, right = MODELS[kind]
    model, x = kind(), data(takes)
    found = default_forward(model, x)(model, x)
    found = found[0] if isinstance(found, tuple) else found
    assert torch.equal(found, right(model, x)) and found.any()
    assert is_step_model(model, x) == (takes == "step")


@pytest.mark.parametrize("kind", MODELS)
def test_hessians_tuned_weights_and_counts_are_those_of_the_forward_of_hand(kind: type[nn.Module]) -> None:
    takes, right = MODELS[kind]
    model, x = kind(), data(takes)
    found, expected = calibrate(model, [x]), calibrate(model, [x], forward=right)
    assert found.keys() == expected.keys() and len(found) == 2
    for name in found:
        assert found[name].count == expected[name].count
        torch.testing.assert_close(found[name].hessian(), expected[name].hessian())
    settings = Calibration(tuning=3)
    small, report = compress(model, [x], prune=HALF, calibration=settings)
    other, _ = compress(model, [x], prune=HALF, calibration=settings, forward=right)
    for mine, theirs in zip(small.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert {layer.sequences for layer in report.layers} == {B}
    assert compare(model, small, [x]).sequences == B and inspect(model, [x]).seconds is not None


@pytest.mark.parametrize("kind", [HiddenState, WholeWithState, BatchFirst, BatchFirstSum])
def test_batch_first_data_is_that_with_its_axes_swapped(kind: type[nn.Module]) -> None:
    takes, _ = MODELS[kind]
    model, x, labels = kind(), data("step"), torch.arange(B) % 4
    swapped = x.transpose(0, 1)
    native = swapped if takes == "batch first" else x
    expected, _ = compress(model, [(native, labels)], prune=HALF, calibration=QUICK)
    for given, batch_first in ((x, False), (swapped, True)):
        small, _ = compress(model, [(given, labels)], prune=HALF, calibration=QUICK, batch_first=batch_first)
        for mine, theirs in zip(small.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        batches = [(given, labels)]
        right = accuracy(model, [(native, labels)])
        assert accuracy(model, batches, batch_first=batch_first) == right
        assert evaluate(model, small, batches, batch_first=batch_first).accuracy_dense == right
        assert compare(model, small, batches, batch_first=batch_first).sequences == B


@pytest.mark.parametrize("kind", [HiddenState, WholeWithState, BatchFirst])
@pytest.mark.parametrize("late", [False, True])
def test_labels_tell_swapped_axes(kind: type[nn.Module], late: bool) -> None:
    """Also where only the last batch, which is shorter, shows it."""
    model, first = kind(), "batch first" if kind is BatchFirst else "step"
    wrong = data("step" if first == "batch first" else "batch first")
    square = data(first, sequences=T)
    batches = [(square, torch.zeros(T, dtype=torch.long))] if late else []
    batches.append((wrong, torch.zeros(B, dtype=torch.long)))
    advice = rf"batch {int(late)}: .*{B} labels.*batch_first={kind is not BatchFirst}"
    before = [parameter.clone() for parameter in model.parameters()]
    for call in (
        lambda: compress(model, batches, prune=HALF, inplace=True),
        lambda: accuracy(model, batches),
        lambda: compare(model, model, batches),
        lambda: calibrate(model, batches),
    ):
        with pytest.raises(CalibrationError, match=advice):
            call()
    assert all(map(torch.equal, model.parameters(), before))


class KeepsItsState(Network):
    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Any, Any] = (None, None)

    def forward(self, x: Tensor) -> Tensor:
        z, *state = self.step(x, *self.state)
        self.state = (state[0], state[1])
        return z


class KeepsItsStateOverSequences(KeepsItsState):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(KeepsItsStateOverSequences, self).forward(step) for step in x])


@pytest.mark.parametrize("kind", [KeepsItsState, KeepsItsStateOverSequences])
def test_states_kept_in_the_model_are_refused_and_a_forward_helps(kind: Any) -> None:
    model, x = kind(), data("step")
    with pytest.raises(UnsupportedModelError, match=r"keeps the states of its neurons \(lif1, lif2\).*reset"):
        compress(model, [x], prune=HALF)
    assert model.state == (None, None)

    def run(model: Any, batch: Tensor) -> Tensor:
        model.state = (None, None)
        return torch.stack([KeepsItsState.forward(model, step) for step in batch])

    found, expected = calibrate(model, [x], forward=run), calibrate(HiddenState(), [x])
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(mine.hessian(), theirs.hessian())


def test_what_calls_leave_in_attributes_is_put_back() -> None:
    model = Recorded()
    default_forward(model, data("step"))
    assert model.seen == [] and model.last is None and not hasattr(model, "new")
    assert torch.equal(model.old[0], torch.ones(2)) and torch.equal(model.table["a"], torch.ones(2))


class OneStep(Network):
    """Forgets its state: nothing says what a step is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]


def test_a_model_of_single_steps_is_told_of_forward() -> None:
    with pytest.raises(CalibrationError, match=r"one step \(T = 1\).* pass `forward`"):
        compress(OneStep(), [data("step")], prune=HALF)


def test_every_layers_output_is_returned() -> None:
    """``return_hidden=True`` of Norse: the model's output is the last of the list."""

    def layers() -> list[nn.Module]:
        network = Network()
        return [network.fc1, network.lif1, network.fc2, network.lif2, norse.LICell(LI)]

    x = data("step")
    plain = norse.SequentialState(*layers())
    hidden = norse.SequentialState(*layers(), return_hidden=True)
    assert torch.equal(default_forward(hidden, x)(hidden, x), default_forward(plain, x)(plain, x))
    found, _ = compress(hidden, [x], prune=HALF, calibration=Calibration(tuning=3))
    expected, _ = compress(plain, [x], prune=HALF, calibration=Calibration(tuning=3))
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def inner_compiled(model: Any) -> Any:
    model.fc1 = torch.compile(model.fc1, backend="eager")
    return model


@pytest.mark.parametrize("wrap", [compiled, inner_compiled, nn.DataParallel], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("kind", [HiddenState, BatchFirst])
def test_wrappers_change_nothing(wrap: Callable[[nn.Module], nn.Module], kind: type[nn.Module]) -> None:
    x = data(MODELS[kind][0])
    expected, report = compress(kind(), [x], prune=HALF, calibration=QUICK)
    wrapped = wrap(kind())
    small, found = compress(wrapped, [x], prune=HALF, calibration=QUICK)
    assert all(map(torch.equal, small.parameters(), expected.parameters()))
    if wrap is not inner_compiled:
        assert type(small) is kind and [layer.name for layer in found.layers] == [r.name for r in report.layers]
    assert compare(wrapped, small, [x]).sequences == B
    records = record_states(small, x)
    assert {record.spikes.shape[:2] for record in records.values()} == {(T, B)}
    compress(wrapped, [x], prune=HALF, calibration=QUICK, inplace=True)
    assert all(map(torch.equal, wrapped.parameters(), expected.parameters()))
