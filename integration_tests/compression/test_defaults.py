"""What a call that leaves settings open does: the combination that measured best, or the solvers alone."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models import one_shot
from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX
from integration_tests.strangers.test_bad_input import Unchanged
from sbc_plugin import Calibration, Prune, Quantize, Report, compress
from sbc_plugin import norse as library
from sbc_plugin.calibration import counting
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression import plan as defaults
from sbc_plugin.compression.trial import tried

GONE = Prune(0.8)
BITS = Quantize(3)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "TUNING_STEPS", 4)
    monkeypatch.setattr(defaults, "SCALE_STEPS", 3)
    monkeypatch.setattr(counting, "LITTLE", -1.0)  # all of them, however little is expected to be lost


def made(name: str = "step", how: Callable[..., Any] = compress, **settings: Any) -> tuple[list[Tensor], Report]:
    case = CASES[name]
    model, report = how(case.model(), [case.batch(seed=seed) for seed in (1, 2)], forward=case.forward, **settings)
    return list(model.parameters()), report


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["step", "conv", "LIFRecurrentCell"])
@pytest.mark.parametrize("quantize", [None, BITS])
def test_pruning_takes_silent_weights_first_and_steps(name: str, quantize: Quantize | None) -> None:
    found, report = made(name, prune=GONE, quantize=quantize)
    filled = {
        "prune": Prune(0.8, silent_first=True, rounds=1),
        "calibration": Calibration(tuning=4, outputs="classes"),
    }
    assert {key: report.settings[key] for key in filled} == filled
    expected, told = made(name, quantize=quantize, **filled)
    assert equal(found, expected)
    assert [row.loss for row in report.layers] == [row.loss for row in told.layers]
    assert not equal(found, made(name, one_shot.compress, prune=GONE, quantize=quantize)[0])


def test_quantising_takes_its_own_number_of_steps() -> None:
    found, report = made(quantize=BITS)
    assert report.settings["calibration"] == Calibration(tuning=3, outputs="classes")
    assert equal(found, made(quantize=BITS, calibration=Calibration(tuning=3))[0])


@pytest.mark.parametrize(
    ("method", "prune", "quantize", "steps"),
    [
        ("sbc", GONE, None, 4),
        ("sbc", GONE, Quantize(3, scale="power_of_two"), 4),
        ("sbc", None, BITS, 3),
        ("sbc", None, Quantize(4), 0),
        ("sbc", Prune(0.0), BITS, 3),
        ("sbc", Prune(0.0), None, 0),
        ("sbc", None, Quantize(3, scale="power_of_two"), 0),
        ("sbc", Prune(0.8, refit=False), BITS, 0),
        ("obc", GONE, None, 0),
        ("magnitude", GONE, BITS, 0),
        ("rtn", None, BITS, 0),
    ],
)
def test_steps_are_taken_where_something_may_move(
    method: str, prune: Prune | None, quantize: Quantize | None, steps: int
) -> None:
    assert defaults.steps_for(method, prune, quantize) == steps
    _, report = made(method=method, prune=prune, quantize=quantize)
    assert report.settings["calibration"].tuning == steps


@pytest.mark.parametrize(
    ("prune", "steps", "rounds", "silent_first"),
    [
        (Prune(0.8), 4, 1, True),
        (Prune(0.8), 0, 1, False),
        (Prune(0.8, rounds=3, silent_first=False), 4, 3, False),
        (Prune(0.8, rounds=2), 4, 2, True),
        (Prune(0.5, pattern="2:4"), 4, 1, False),
        (Prune(0.5, pattern="block:2"), 4, 1, False),
    ],
)
def test_what_is_left_open_is_filled_in(prune: Prune, steps: int, rounds: int, silent_first: bool) -> None:
    filled = defaults.filled(prune, steps)
    assert (filled.rounds, filled.silent_first) == (rounds, silent_first)
    assert (filled.sparsity, filled.pattern) == (prune.sparsity, prune.pattern)


class Detached(nn.Module):
    """Gives spikes that no gradient comes through."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(nn.Linear(5, 6), norse.LIFBoxCell(BOX), nn.Linear(6, 4), norse.LIFBoxCell(BOX))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.net(x, state)


def unlearnable() -> nn.Module:
    model = Detached()
    model.net[1].p = model.net[3].p = BOX._replace(method="heaviside")
    return model


def spoilt() -> nn.Module:
    """A step changes a tensor that the backward pass needs."""
    model = Detached()
    model.net[1].register_forward_hook(lambda module, inputs, output: (output[0].exp().sub_(1), output[1]))
    plain = model.net[2].forward
    model.net[2].forward = lambda x: plain(x.mul_(1))
    return model


@pytest.mark.parametrize(("make", "reason"), [(unlearnable, "no gradient reaches a weight"), (spoilt, "inplace")])
@pytest.mark.parametrize("inplace", [True, False])
def test_without_gradients_the_solvers_do_alone_and_that_is_told(
    make: Callable[[], nn.Module], reason: str, inplace: bool
) -> None:
    x, models = CASES["step"].batch()[..., :5], []
    for how in (compress, one_shot.compress):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_().mul_(5.0)
        small, report = how(model, [x], prune=Prune(0.5), inplace=inplace)
        models.append((small, report))
    (small, told), (expected, alone) = models
    assert equal(list(small.parameters()), list(expected.parameters()))
    assert "not tuned" in told.skipped["tuning"] and reason in told.skipped["tuning"]
    assert told.settings == alone.settings and "tuning" not in alone.skipped
    assert all(parameter.requires_grad and parameter.grad is None for parameter in small.parameters())


def test_looking_for_gradients_leaves_everything_as_it_was() -> None:
    case = CASES["conv"]
    model = case.model().train()
    layers, _ = library.find_layers(model, case.batch(), case.forward)
    next(model.parameters()).requires_grad_(False).grad = torch.ones_like(next(model.parameters()))
    picture, flags = Unchanged(model), [(p.requires_grad, p.grad) for p in model.parameters()]
    assert (
        tried(Runner.of(model, case.batch(), case.forward), layers, case.batch(), Calibration(outputs="classes")).reason
        == ""
    )
    picture.check()
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == flags and model.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it_the_same_steps_are_taken(context: Callable[[], Any]) -> None:
    expected, _ = made("conv", prune=GONE, quantize=BITS)
    with context():
        found, report = made("conv", prune=GONE, quantize=BITS)
    assert report.settings["calibration"].tuning == 4
    assert equal(found, expected)
