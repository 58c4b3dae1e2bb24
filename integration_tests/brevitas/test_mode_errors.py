"""What ``sbc_mode`` refuses, and that nothing of it is left behind on any exit."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

brevitas = pytest.importorskip("brevitas.nn")
from brevitas.quant import (  # noqa: E402
    Int8AccumulatorAwareWeightQuant,
    Int8WeightNormL2PerChannelFixedPoint,
    Int8WeightPerChannelFloat,
)

from integration_tests.models.cases import CASES  # noqa: E402
from integration_tests.models.networks import LIF  # noqa: E402
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer  # noqa: E402
from sbc_plugin.errors import (  # noqa: E402
    CalibrationError,
    CompressionError,
    GridMovedError,
    SettingsError,
    UnsupportedModelError,
)


def model_of(name: str = "step", quantizer: Any = None) -> nn.Module:
    return quantize_layers(CASES[name].model(), weight_quantizer("int4") if quantizer is None else quantizer)[0]


def hooks(model: nn.Module) -> list[str]:
    return [
        f"{name}: {key}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if (key.endswith("hooks") and value) or key in ("forward", "activation")
    ]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hooks, patched attributes and enabled quantizers are the same after the block, whatever it raised."""
    before, activations = hooks(model), {id(m): getattr(m, "activation", None) for m in model.modules()}
    try:
        yield
    finally:
        assert hooks(model) == before
        assert all(getattr(m, "activation", None) == activations[id(m)] for m in model.modules())
        assert all(m.weight_quant.is_quant_enabled for m in model.modules() if hasattr(m, "weight_quant"))


@pytest.mark.parametrize("how", ["normal", "error in the loop", "error in the model", "nothing done"])
@pytest.mark.parametrize("name", ["step", "loop, sum", "LIFRecurrent", "NIR graph"])
def test_nothing_is_left_behind(name: str, how: str) -> None:
    model, x = model_of(name), CASES[name].batch()
    expected = pytest.raises((ZeroDivisionError, CompressionError)) if "error" in how else nullcontext()
    with untouched(model), expected, sbc_mode(model) as sbc:
        if how != "nothing done":
            sbc.model(x)
        if how == "error in the loop":
            raise ZeroDivisionError
        if how == "error in the model":
            sbc.model(x * float("nan"))
        if how == "normal":
            sbc.update()
    CASES[name].output(model, x)


@pytest.mark.parametrize("quantizer", [Int8WeightNormL2PerChannelFixedPoint, Int8AccumulatorAwareWeightQuant])
def test_a_quantizer_that_cannot_hold_what_it_rounds_to_is_refused(quantizer: Any) -> None:
    """One divides by the norm of each row, the other needs to know how the input is quantised."""
    model = model_of(quantizer=quantizer)
    refused = pytest.raises((GridMovedError, UnsupportedModelError), match=r"layer '0': .*quantizer de(rives|pends)")
    with untouched(model), refused, sbc_mode(model):
        pass


@pytest.mark.parametrize("how", ["nothing done", "error in the loop", "refused later"])
def test_a_quantizer_whose_layer_got_no_new_weight_follows_its_weight_again(how: str) -> None:
    model = model_of(quantizer=Int8WeightPerChannelFloat)
    if how == "refused later":
        model[2].weight_quant = model_of(quantizer=Int8WeightNormL2PerChannelFixedPoint)[2].weight_quant
    before = [(m.weight_quant.quant_injector, m.weight_quant.tensor_quant) for m in (model[0], model[2])]
    expected = nullcontext() if how == "nothing done" else pytest.raises((ZeroDivisionError, GridMovedError))
    with untouched(model), expected, sbc_mode(model):
        if how == "error in the loop":
            raise ZeroDivisionError
    assert before == [(m.weight_quant.quant_injector, m.weight_quant.tensor_quant) for m in (model[0], model[2])]


def test_a_moved_scale_is_seen_after_write_back() -> None:
    model, x = model_of(), CASES["step"].batch()
    layer: Any = model[0]
    before = layer.weight.detach().clone()
    with pytest.raises(GridMovedError, match=r"layer '0': .*of 30 weights have other codes"), sbc_mode(model) as sbc:
        sbc.model(x)
        layer.weight_quant.tensor_quant.scaling_impl.value.data.mul_(3)
        sbc.update()
    assert torch.equal(layer.weight, before)


def test_no_data() -> None:
    model, x = model_of(), CASES["step"].batch()
    with pytest.raises(CalibrationError, match="before any data"), sbc_mode(model) as sbc:
        sbc.update()
    with pytest.raises(CalibrationError, match="no data since"), sbc_mode(model) as sbc:
        sbc.model(x)
        sbc.update()
        sbc.update()


def test_silent_data_bad_data_and_single_steps() -> None:
    model, x = model_of(), CASES["step"].batch()
    with pytest.raises(CalibrationError, match=r"layer '0': .*silent"), sbc_mode(model) as sbc:
        sbc.model(torch.zeros_like(x))
        sbc.update()
    with pytest.raises(CalibrationError, match="NaN"), sbc_mode(model) as sbc:
        sbc.model(x * float("inf"))
    with pytest.raises(CalibrationError, match="T = 1"), sbc_mode(model) as sbc:
        sbc.model(x[0], None)
        sbc.update()
    with pytest.raises(CalibrationError, match="without an input"), sbc_mode(model) as sbc:
        sbc.model()


def test_a_state_that_belongs_to_no_sequence() -> None:
    model, x = model_of(), CASES["step"].batch()
    _, state = model(x[0], None)
    with pytest.raises(CalibrationError, match="state None"), sbc_mode(model) as sbc:
        sbc.model(x[0], state)
    sequence, _ = quantize_layers(norse.SequentialState(nn.Linear(5, 4), norse.LIF(LIF)), weight_quantizer("int4"))
    _, state = sequence(x)
    with pytest.raises(CalibrationError, match="whole sequences"), sbc_mode(sequence) as sbc:
        sbc.model(x)
        sbc.model(x, state)


def test_masks_that_do_not_fit() -> None:
    model = model_of()
    with pytest.raises(SettingsError, match=r"'fc', which is no quantised layer; they are '0'"):
        sbc_mode(model, mask={"fc": torch.ones(1)}).__enter__()
    with pytest.raises(SettingsError, match=r"layer '0': mask of shape \(2,\)"):
        sbc_mode(model, mask={"0": torch.ones(2)}).__enter__()
    binary = model_of(quantizer=weight_quantizer("binary"))
    with pytest.raises(SettingsError, match="never zero"):
        sbc_mode(binary, keep_zeros=True).__enter__()


def test_settings() -> None:
    with pytest.raises(SettingsError, match="damping"):
        sbc_mode(model_of(), damping=-1.0)
    with pytest.raises(SettingsError, match=r"torch.float64 or torch.float32"):
        sbc_mode(model_of(), dtype=torch.float16)
    with pytest.raises(SettingsError, match="order"):
        sbc_mode(model_of(), order="random")
    with pytest.raises(UnsupportedModelError, match="quantize_layers"), sbc_mode(CASES["step"].model()):
        pass
    used = sbc_mode(model_of())
    with used:
        pass
    with pytest.raises(SettingsError, match="make a new one"), used:
        pass


def test_pruning_hooks_are_refused() -> None:
    model = model_of()
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UnsupportedModelError, match=r"layer '0': .*keep_zeros=True"), sbc_mode(model):
        pass


def test_a_layer_that_never_runs_is_told() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.lif = nn.Linear(5, 4), nn.Linear(5, 4), norse.LIFCell(LIF)

        def forward(self, x: Tensor, state: Any = None) -> Any:
            return self.lif(3 * self.used(x), state)

    model, _ = quantize_layers(Spare(), weight_quantizer("int4"))
    with sbc_mode(model) as sbc:
        for _ in range(sbc.num_layers):
            sbc.model(CASES["step"].batch())
            sbc.update()
    assert sbc.skipped == {"spare": "never called"} and list(sbc.solutions) == ["used"]


def test_layers_solved_together_need_the_same_bits() -> None:
    model, x = model_of("own recurrence"), CASES["own recurrence"].batch()
    other, _ = quantize_layers(CASES["own recurrence"].model(), weight_quantizer("int8"))
    model.w_rec = other.w_rec
    with pytest.raises(SettingsError, match="'w_in', 'w_rec' feed one neuron"), sbc_mode(model) as sbc:
        sbc.model(x)
        sbc.update()


def test_only_one_of_two_weights_is_quantised() -> None:
    """The other part of a joint problem stays as it is, so the quantised columns are solved among themselves."""
    model, x = model_of("own recurrence"), CASES["own recurrence"].batch()
    plain = CASES["own recurrence"].model()
    model.w_rec = plain.w_rec
    with sbc_mode(model) as sbc:
        assert sbc.num_layers == 1
        sbc.model(x)
        sbc.update()
    assert torch.equal(model.w_rec.weight, CASES["own recurrence"].model().w_rec.weight)
    assert torch.equal(model.w_in.quant_weight().value, model.w_in.weight)


def test_a_bad_batch_counts_for_nothing() -> None:
    x = CASES["step"].batch()
    bad = torch.full_like(x, torch.nan)
    with sbc_mode(model_of()) as sbc:
        for batch in (x, bad, x):
            with pytest.raises(CalibrationError, match="batch 1") if batch is bad else nullcontext():
                sbc.model(batch)
        sbc._recorder.finish()
        assert sbc._recorder.sequences == 2
        assert next(iter(sbc._recorder.statistics.values())).sequences == 2 * x.shape[1]
