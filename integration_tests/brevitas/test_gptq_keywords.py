"""The keywords of ``gptq_mode``: each does in ``sbc_mode`` what it says, or is refused before anything runs."""

import inspect
from functools import partial
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

qnn = pytest.importorskip("brevitas.nn")

from brevitas.graph.calibrate import calibration_mode  # noqa: E402
from brevitas.graph.gpfq import GPFQ  # noqa: E402
from brevitas.graph.gptq import GPTQ, gptq_mode  # noqa: E402
from brevitas.graph.gpxq import gpxq_mode  # noqa: E402
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int32Bias  # noqa: E402

import sbc_plugin  # noqa: E402
from integration_tests.models.networks import LIF  # noqa: E402
from sbc_plugin.brevitas import match_state, quantize_layers, sbc_mode, weight_quantizer  # noqa: E402
from sbc_plugin.errors import CheckpointError, SettingsError  # noqa: E402

pytestmark = pytest.mark.skipif(
    "dtype" not in inspect.signature(gptq_mode).parameters, reason="gptq_mode of Brevitas 0.12 solves in float32 alone"
)

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


class Net(nn.Module):
    """Two parallel layers behind the first, activations of three bits, a quantised bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        act = Int8ActPerTensorFloat.let(bit_width=3)
        settings = {"weight_quant": weight_quantizer("int3"), "bias_quant": Int32Bias, "bias": True}
        self.start = qnn.QuantIdentity(act, return_quant_tensor=True)
        self.a, self.b, self.c = (qnn.QuantLinear(8, 8, **settings) for _ in range(3))
        self.act = qnn.QuantReLU(act_quant=act, return_quant_tensor=True)
        self.add = qnn.QuantIdentity(act, return_quant_tensor=True)
        self.last = qnn.QuantLinear(8, 4, **settings)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(self.start(x)))
        result: Tensor = self.last(self.add(self.b(x) + self.c(x)))
        return result


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


def built() -> Net:
    model = Net().double().eval()
    with torch.no_grad(), calibration_mode(model):
        for x in data():
            model(x)
    model(data()[0])
    return model


def run(mode: Any, model: nn.Module, *args: Any, **settings: Any) -> Any:
    settings = {"dtype": torch.float64, "act_order": False} | settings
    with torch.no_grad(), mode(model, *args, **settings) as found:
        for _ in range(found.num_layers):
            for x in data():
                found.model(x)
            found.update()
    return found


def values(model: Any) -> dict[str, Tensor]:
    return {name: getattr(model, name).quant_weight().value.detach() for name in ("a", "b", "c", "last")}


def compare(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Both modes with the same settings: the same values in every layer."""
    modes = [run(mode, built(), **settings) for mode in (gptq_mode, sbc_mode)]
    wanted, found = (values(mode.model) for mode in modes)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **EXACT)
    assert modes[0].num_layers == modes[1].num_layers
    return modes[0], modes[1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"act_order": True},
        {"use_quant_activations": False},
        {"num_blocks": 1},
        {"num_blocks": 3},
        {"create_weight_orig": False},
        {"inplace": False},
        {"return_forward_output": True},
        {"gptq_class": GPTQ},
        {"device": "cpu"},
        {"device": "same"},
        {"group_of_parallel_layers": [["b", "c"]]},
        {"group_of_parallel_layers": [["c", "b"]], "use_quant_activations": False, "act_order": True},
    ],
    ids=str,
)
def test_a_keyword_does_what_it_does_in_gptq_mode(settings: dict[str, Any]) -> None:
    if settings.get("return_forward_output"):
        for model in (a := built(), b := built()):
            run(gptq_mode if model is a else sbc_mode, model, **settings)
        assert all(torch.allclose(values(a)[name], values(b)[name]) for name in values(a))
        return
    theirs, ours = compare(settings)
    buffers, states = ([m.model.state_dict() for m in (theirs, ours)] for _ in range(2))
    assert buffers[0].keys() == buffers[1].keys() == states[0].keys()
    kept = [name for name in buffers[0] if name.endswith("weight_orig")]
    assert len(kept) == 4 * settings.get("create_weight_orig", True)
    for name in kept:
        assert torch.equal(buffers[0][name], buffers[1][name])
        assert buffers[1][name].dtype == torch.float64 and buffers[1][name].device.type == "cpu"


def test_every_keyword_is_taken_in_the_same_order() -> None:
    for mode in (gptq_mode, gpxq_mode):
        names = [name for name in inspect.signature(mode.__init__).parameters if name != "self"]
        known = list(inspect.signature(sbc_mode.__init__).parameters)
        assert set(names) <= set(known)
    names = list(inspect.signature(gptq_mode.__init__).parameters)
    assert known[: len(names)] == names
    model = built()
    found = run(sbc_mode, model, [["b", "c"]], False, False, False)
    assert found.num_layers == 3 and found.model is not model
    assert found.options.use_quant_activations is False and not hasattr(found.model.a, "weight_orig")


def test_not_in_place_leaves_the_model() -> None:
    model = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = run(sbc_mode, model, inplace=False)
    assert found.model is not model and not torch.equal(found.model.a.weight, model.a.weight)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_original_weight_of_an_earlier_pass_stays_and_is_used_without_quantisation() -> None:
    model = built()
    dense = model.a.weight.detach().clone()
    run(sbc_mode, model)
    run(sbc_mode, model, act_order=True)
    assert torch.equal(model.a.weight_orig, dense)
    model.a.weight_quant.disable_quant = True
    assert torch.equal(model.a.quant_weight(), dense)


def test_a_block_that_fails_leaves_no_original_weight() -> None:
    model = built()
    with pytest.raises(ZeroDivisionError), sbc_mode(model) as sbc:
        sbc.model(data()[0])
        sbc.update()
        raise ZeroDivisionError
    assert hasattr(model.a, "weight_orig") and not hasattr(model.last, "weight_orig")


@pytest.mark.parametrize("use", [True, False])
def test_activations_are_quantised_inside_the_block_if_they_are_to_be_used(use: bool) -> None:
    model = built()
    x = data()[0]
    with torch.no_grad(), sbc_mode(model, use_quant_activations=use) as sbc:
        found = sbc.model(x)
        assert model.act.act_quant.is_quant_enabled == use
        sbc.update()
        assert model.a.bias_quant.is_quant_enabled == use and not model.last.bias_quant.is_quant_enabled
    assert model.act.act_quant.is_quant_enabled and model.a.bias_quant.is_quant_enabled
    dense = built()
    with torch.no_grad():
        hidden = nn.functional.linear(dense.start(x).value if use else x, dense.a.weight, dense.a.bias)
        hidden = dense.act(hidden).value if use else hidden.relu()
        both = sum(nn.functional.linear(hidden, layer.weight, layer.bias) for layer in (dense.b, dense.c))
        both = dense.add(both).value if use else both
        wanted = nn.functional.linear(both, dense.last.weight, dense.last.bias)
    torch.testing.assert_close(found, wanted)


def test_outputs_are_returned_unless_they_are_not_wanted() -> None:
    with sbc_mode(built()) as sbc:
        assert sbc.model(data()[0]).shape == (64, 4)
    with sbc_mode(built(), return_forward_output=False) as sbc:
        assert sbc.model(data()[0]) is None


def test_groups_in_a_spiking_network() -> None:
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(6, 8), norse.LIFCell(LIF), nn.Linear(8, 4), norse.LIFCell(LIF)).eval()
    with torch.no_grad():
        [layer.weight.mul_(6) for layer in (model[0], model[2])]
    x = (torch.rand(7, 5, 6) < 0.5).float()
    new, _ = quantize_layers(model, weight_quantizer("int3"))
    with sbc_mode(new, group_of_parallel_layers=[["0", "2"]]) as sbc:
        assert sbc.num_layers == 1
        sbc.model(x)
        sbc.update()
    other, _ = quantize_layers(model, weight_quantizer("int3"))
    with sbc_mode(other, order="one-shot") as sbc:
        sbc.model(x)
        sbc.update()
        sbc.update()
    assert torch.equal(new[0].weight, other[0].weight) and torch.equal(new[2].weight, other[2].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gptq_class": GPFQ}, "gptq_class='GPFQ'"),
        ({"gptq_class": type("Own", (GPTQ,), {})}, "gptq_class='Own'"),
        ({"gptq_class": partial(GPTQ)}, "gptq_class="),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"max_accumulator_bit_width": 16}, "max_accumulator_bit_width=16.*a2gptq_mode"),
        ({"max_accumulator_tile_size": 8}, "max_accumulator_tile_size=8"),
        ({"a2q_layer_filter_fnc": bool}, "a2q_layer_filter_fnc"),
        ({"group_of_parallel_layers": ["a"]}, "list of lists"),
        ({"group_of_parallel_layers": [["a", "b"], ["b"]]}, "'b' twice"),
        ({"group_of_parallel_layers": [["a", "act"]]}, "'act', which is no quantised layer; they are 'a', 'b'"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
    ],
    ids=str,
)
def test_what_is_refused_is_refused_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    model = built()
    with pytest.raises(SettingsError, match=message):
        sbc_mode(model, **settings).__enter__()
    assert "forward" not in vars(model) and model.a.weight_quant.is_quant_enabled
    assert not hasattr(model.a, "weight_orig")


def test_a_state_loads_into_a_model_that_was_built_anew(tmp_path: Any) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Linear(6, 8), norse.LIFCell(LIF), nn.Linear(8, 4), norse.LIFCell(LIF)
        quantizer = {"0": Int8WeightPerChannelFloat, "2": weight_quantizer("int4")}
        return quantize_layers(norse.SequentialState(*layers).eval(), quantizer)[0]

    model, x = fresh(), (torch.rand(7, 5, 6) < 0.5).float() * 6
    with sbc_mode(model) as sbc:
        for _ in range(2):
            sbc.model(x)
            sbc.update()
    assert list(sbc.notes) == ["0"]
    wanted = [model[number].quant_weight().value for number in (0, 2)]
    with pytest.raises(RuntimeError, match="weight_orig"):
        fresh().load_state_dict(model.state_dict())
    by_torch = match_state(fresh(), model.state_dict())
    by_torch.load_state_dict(model.state_dict())
    sbc_plugin.save(tmp_path / "model.sbc", model)
    with pytest.raises(CheckpointError):
        sbc_plugin.load(tmp_path / "model.sbc", fresh())
    tensors = sbc_plugin.load(tmp_path / "model.sbc").tensors
    by_us, _ = sbc_plugin.load(tmp_path / "model.sbc", match_state(fresh(), tensors))
    for loaded in (by_torch, by_us):
        found = [loaded.get_submodule(number).quant_weight().value for number in "02"]
        assert all(map(torch.equal, found, wanted))
