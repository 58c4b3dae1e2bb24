"""Bad input: the error names what is wrong and what to do, and the model is as it was, hooks included."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX, LIF, B, T
from sbc_plugin import Calibration, Prune, Quantize, calibrate, compress
from sbc_plugin.errors import CalibrationError, CompressionError, SettingsError, UnsupportedModelError
from sbc_plugin.norse import record_states

HALF = Prune(0.5)


def net() -> nn.Module:
    return CASES["step"].model().train()


def data() -> Tensor:
    return CASES["step"].batch()


class Unchanged:
    """A picture of a model: weights, modes, hooks, steps, gradients' flags and torch's random state."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.picture = model, self.take(model)

    @staticmethod
    def take(model: nn.Module) -> list[Any]:
        tensors = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
        picture: list[Any] = [(t.detach().clone(), t.requires_grad, id(t)) for t in tensors[:-1]]
        for module in model.modules():
            hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
            picture.append((module.training, hooks, "activation" in vars(module), vars(module).get("activation")))
        return [*picture, tensors[-1]]

    def check(self) -> None:
        for before, after in zip(self.picture, self.take(self.model), strict=True):
            if isinstance(before, tuple) and isinstance(before[0], Tensor):
                assert torch.equal(torch.nan_to_num(before[0]), torch.nan_to_num(after[0])) and before[1:] == after[1:]
            elif isinstance(before, Tensor):
                assert torch.equal(before, after)
            else:
                assert before == after


def refused(error: type[Exception], message: str, model: nn.Module, batches: Any, **settings: Any) -> None:
    """compress raises `error` with `message`, in place and not, in both orders, and changes nothing."""
    picture = Unchanged(model)
    settings = {"prune": HALF} | settings
    calibrations = (
        [settings.pop("calibration")] if "calibration" in settings else [Calibration(), Calibration("sequential")]
    )
    for calibration in calibrations:
        for inplace in (False, True):
            given = batches() if callable(batches) else batches
            with pytest.raises(error, match=message):
                compress(model, given, inplace=inplace, calibration=calibration, progress=False, **settings)
            picture.check()


def test_no_batches() -> None:
    refused(CalibrationError, "calibration_data holds no batch; give at least one", net(), [])
    refused(CalibrationError, "calibration_data holds no batch", net(), lambda: iter([]))


def test_an_iterator_that_is_used_up() -> None:
    used = iter([data()])
    compress(net(), used, prune=HALF)
    refused(CalibrationError, "holds no batch; give at least one, or a fresh iterator", net(), used)


@pytest.mark.parametrize("bad", [3.0, None, 7])
def test_calibration_data_that_is_no_iterable(bad: Any) -> None:
    refused(CalibrationError, "calibration_data is no iterable of batches", net(), bad)


def test_a_bare_tensor_is_no_iterable_of_batches() -> None:
    """Its items would be taken for batches, one time step each."""
    refused(CalibrationError, r"calibration_data is one tensor .* give \[tensor\]", net(), data())


@pytest.mark.parametrize("batch", ["text", {"a": 1}, (), {}, [None]])
def test_a_batch_without_an_input(batch: Any) -> None:
    refused(CalibrationError, "holds no input tensor; give the tensor, a tuple, list or dict", net(), [batch])


@pytest.mark.parametrize("shape", [(5,), (T, 5)])
def test_wrong_rank_for_a_step_model(shape: tuple[int, ...]) -> None:
    refused(CalibrationError, r"a step model is driven over \(T, B, ...\)", net(), [torch.ones(shape)])


def test_wrong_number_of_features() -> None:
    refused(
        CalibrationError,
        r"layer '0': input has shape \(2, 7\), the layer takes 5 features",
        net(),
        [torch.ones(T, 2, 7)],
    )
    conv = CASES["conv"].model()
    refused(CalibrationError, r"layer '0': input .* the layer takes 2 channels", conv, [torch.ones(T, B, 3, 6, 6)])
    lift = CASES["lift"].model()
    refused(CalibrationError, r"layer '0.lifted_module': input .* takes 2 channels", lift, [torch.ones(T, B, 3, 6, 6)])
    recurrent = CASES["LSNNRecurrentCell"].model()
    refused(
        CalibrationError, r"layer '0': input has shape .* the cell takes 5 features", recurrent, [torch.ones(T, B, 4)]
    )


def test_a_later_batch_that_does_not_fit() -> None:
    refused(
        CalibrationError, r"layer '0': input has 7 features, the layer takes 5", net(), [data(), torch.ones(T, 2, 7)]
    )
    refused(CalibrationError, r"a step model is driven over", net(), [data(), torch.ones(T, 5)])


def test_a_batch_of_no_sequences_or_no_steps() -> None:
    for shape in ((T, 0, 5), (0, B, 5)):
        refused(
            CalibrationError,
            r"batch 0: the input has shape .* no (sequences|steps|elements)",
            net(),
            [torch.ones(shape)],
        )


def test_one_step() -> None:
    refused(CalibrationError, r"batch 0: sequences of one step \(T = 1\)", net(), [data()[:1]])
    refused(CalibrationError, r"batch 1: sequences of one step \(T = 1\)", net(), [data(), data()[:1]])
    compress(net(), [data()[:1]], prune=HALF, calibration=Calibration(temporal=False))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_the_data(value: float) -> None:
    broken = data()
    broken[2, 1, 3] = value
    refused(
        CalibrationError,
        "batch 1: the input holds NaN or infinity; clean the calibration data",
        net(),
        [data(), broken],
    )
    with pytest.raises(CalibrationError, match="batch 0: the input holds NaN"):
        calibrate(net(), [broken])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_in_weights(value: float) -> None:
    model = net()
    model[2].weight.data[1, 2] = value  # type: ignore[index, union-attr]
    refused(CalibrationError, "layer '2': the weight holds NaN or infinity; repair the model first", model, [data()])


def test_nan_that_the_network_makes_itself() -> None:
    model = net()
    model[0].bias.data[0] = float("nan")  # type: ignore[index, union-attr]
    compress(model, [data()], prune=HALF)  # a membrane of nan never spikes; nothing of it reaches a weight's input
    leaky = norse.SequentialState(nn.Linear(5, 4), norse.LICell(), nn.Linear(4, 3), norse.LIFBoxCell(BOX))
    leaky[0].bias.data[0] = float("nan")
    refused(CalibrationError, "layer '2': the input holds NaN or infinity", leaky, [data()])


def test_a_silent_layer() -> None:
    model = net()
    model[0].weight.data.fill_(-1.0), model[0].bias.data.zero_()  # type: ignore[index, union-attr]
    refused(CalibrationError, "layer '2': its input stayed silent on all calibration data", model, [data()])
    refused(CalibrationError, "layer '0': its input stayed silent", net(), [torch.zeros(T, B, 5)])


def test_a_silent_third_layer_leaves_the_first_two_alone() -> None:
    model = norse.SequentialState(
        nn.Linear(5, 6),
        norse.LIFBoxCell(BOX),
        nn.Linear(6, 4),
        norse.LIFBoxCell(BOX),
        nn.Linear(4, 2),
        norse.LIFCell(LIF),
    )
    model[0].weight.data.fill_(2.0), model[2].weight.data.fill_(-1.0)
    model[2].bias.data.zero_()
    refused(CalibrationError, "layer '4': its input stayed silent", model, [data()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune": None}, r"nothing to do: give prune=Prune\(sparsity\), quantize=Quantize\(bits\), or both"),
        ({"method": "magic"}, "method='magic' is unknown; use one of 'sbc', 'obc', 'magnitude', 'rtn'"),
        ({"prune": 0.5}, r"prune=0.5 is no Prune; use prune=Prune\("),
        ({"quantize": 4}, r"quantize=4 is no Quantize; use quantize=Quantize\("),
        ({"calibration": 0.01}, r"calibration=0.01 is no Calibration"),
        ({"prune": Prune(0.5, "4:8")}, "pattern '4:8' fits no layer of the model"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    refused(SettingsError, message, net(), [data()], **settings)


def test_ranges_of_settings() -> None:
    for make in (lambda: Prune(1.0), lambda: Prune(-0.1), lambda: Quantize(1), lambda: Quantize(9)):
        with pytest.raises(SettingsError):
            make()


def test_a_solver_that_fails_at_the_second_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from sbc_plugin.compression import layer as solving

    original, calls = solving.prune_layer, []

    def failing(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) % 2 == 0:
            raise CompressionError("out of luck")
        return original(*arguments, **settings)

    monkeypatch.setattr(solving, "prune_layer", failing)
    refused(CompressionError, "layer '2': out of luck", net(), [data()])


@pytest.mark.parametrize("call", [0, 1, 9])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_users_forward(error: type[BaseException], call: int) -> None:
    """Raised again as it is: in discovery, in calibration, and half way through a sequence."""

    def forward() -> Callable[..., Any]:
        calls: list[int] = []

        def run(model: nn.Module, batch: Tensor) -> None:
            state = None
            for step in batch:
                _, state = model(step, state)
                calls.append(1)
                if len(calls) > call:
                    raise error("the user's own")

        return run

    for calibration in (Calibration(), Calibration("sequential")):
        for inplace in (False, True):
            model = net()
            picture = Unchanged(model)
            with pytest.raises(error, match="the user's own"):
                compress(model, [data()], prune=HALF, calibration=calibration, forward=forward(), inplace=inplace)
            picture.check()


def test_record_states_of_bad_input() -> None:
    with pytest.raises(CalibrationError, match=r"a step model is driven over \(T, B, ...\)"):
        record_states(net(), torch.ones(5))


def test_parametrised_and_pruned_weights() -> None:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[index, no-untyped-call]
    refused(UnsupportedModelError, "layer '0': its weight is computed by .*prune.remove", model, [data()])
    model = net()
    parametrizations.weight_norm(model[2])  # type: ignore[index]
    refused(UnsupportedModelError, "layer '2': its weight is computed by .*remove_parametrizations", model, [data()])
    recurrent = CASES["LIFRecurrentCell"].model()
    prune.random_unstructured(recurrent[0], "recurrent_weights", 0.5)  # type: ignore[index, no-untyped-call]
    refused(UnsupportedModelError, "layer '0': its recurrent_weights is computed by", recurrent, [data()])


def test_a_model_that_keeps_tensors_of_a_graph_is_copied_without_the_graph() -> None:
    """As training leaves it, where forward writes what it saw into an attribute."""
    model = net()
    model.kept = [model[0].weight * 2]  # type: ignore[index, operator, assignment]
    small, _ = compress(model, [data()], prune=HALF)
    assert model.kept[0].requires_grad and not small.kept[0].requires_grad  # type: ignore[index, union-attr]
    assert torch.equal(model.kept[0], small.kept[0])  # type: ignore[index, arg-type]


class Locked(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Locked":
        raise RuntimeError("it holds a lock")


def test_a_module_that_cannot_be_copied_is_named() -> None:
    model: Any = net()
    model[0] = Locked(model[0].in_features, model[0].out_features)
    with torch.no_grad():
        model[0].weight.mul_(4)
    with pytest.raises(UnsupportedModelError, match=r"SequentialState cannot be copied: it holds a lock.*inplace=True"):
        compress(model, [data()], prune=HALF)
    compress(model, [data()], prune=HALF, inplace=True)
