"""Layers are replaced wherever they stand, and nothing else of the model changes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

brevitas = pytest.importorskip("brevitas.nn")

from integration_tests.models.cases import CASES  # noqa: E402
from integration_tests.models.networks import Case  # noqa: E402
from sbc_plugin.brevitas import quantize_layers, weight_quantizer  # noqa: E402
from sbc_plugin.core.quantization.grids import make_grid  # noqa: E402
from sbc_plugin.errors import SettingsError, UnsupportedModelError  # noqa: E402

INT3 = weight_quantizer("int3", scale="absmax")
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CELL_WEIGHTS = ("input_weights", "recurrent_weights")
QUANTISED = (brevitas.QuantLinear, brevitas.QuantConv1d, brevitas.QuantConv2d, brevitas.QuantConv3d)
# Those with layers that Brevitas has; a subclass with a forward of its own is none of them.
BARE = [name for name, case in CASES.items() if any(type(m) in PLAIN for m in case.model().modules())]


def rounded(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, PLAIN):
            flat = module.weight.data.flatten(1)
            module.weight.data = make_grid(flat, 3, scale="absmax").round(flat).view_as(module.weight)
        for name, parameter in module.named_parameters(recurse=False):
            if name in CELL_WEIGHTS:
                parameter.data = make_grid(parameter.data, 3, scale="absmax").round(parameter.data)
    return model


@pytest.mark.parametrize("case", [CASES[name] for name in BARE], ids=BARE)
def test_a_converted_model_is_the_model_with_rounded_weights(case: Case) -> None:
    model, x = case.model(), case.batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new, _ = quantize_layers(model, INT3)
    assert torch.equal(case.output(new, x), case.output(rounded(case.model()), x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, QUANTISED) for module in model.modules())
    replaced = {name for name, module in model.named_modules() if isinstance(module, PLAIN)}
    cells = {f"{name}_layer" for name, _ in model.named_parameters() if name.endswith(CELL_WEIGHTS)}
    assert {name for name, module in new.named_modules() if isinstance(module, QUANTISED)} == replaced | cells


def test_layers_get_quantizers_of_their_own() -> None:
    model = CASES["nested"].model()
    chosen = {"0.0": INT3, "1.2.0": weight_quantizer("int5")}
    new, skipped = quantize_layers(model, chosen)
    widths = {
        name: int(each.quant_weight().bit_width) for name, each in new.named_modules() if isinstance(each, QUANTISED)
    }
    assert widths == {"0.0": 3, "1.2.0": 5} and not skipped
    one, _ = quantize_layers(model, chosen, names=["0.0"])
    assert [name for name, each in one.named_modules() if isinstance(each, QUANTISED)] == ["0.0"]
    with pytest.raises(SettingsError, match="no layer 'typo'"):
        quantize_layers(model, {"typo": INT3})
    with pytest.raises(SettingsError, match="'int4' is no quantizer class"):
        quantize_layers(model, {"0.0": "int4"})  # type: ignore[dict-item]
    with pytest.raises(UnsupportedModelError, match="no layer that can be quantised"):
        quantize_layers(model, {})


def test_weights_of_cells_are_chosen_by_their_names() -> None:
    model = CASES["LIFRecurrentCell"].model()
    for chosen in ({"0.input_weights": INT3}, {"0": INT3}):
        new, skipped = quantize_layers(model, chosen)
        layers = [name for name, module in new.named_modules() if isinstance(module, QUANTISED)]
        assert layers == [f"0.{name}_layer" for name in CELL_WEIGHTS[: 1 if "0" not in chosen else 2]] and not skipped
    some, _ = quantize_layers(model, INT3, names=["0.recurrent_weights"])
    assert torch.equal(some[0].input_weights, model[0].input_weights)
    assert some[0].recurrent_weights.unique().numel() <= 7 * len(some[0].recurrent_weights)


def test_a_single_layer_is_replaced() -> None:
    layer = nn.Linear(4, 3)
    new, skipped = quantize_layers(layer, INT3)
    assert isinstance(new, brevitas.QuantLinear) and not skipped
    x = torch.randn(2, 4)
    torch.testing.assert_close(new(x), rounded(layer)(x), rtol=0, atol=0)


class Mine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_what_is_left_out_has_a_reason_and_still_works() -> None:
    model = nn.Sequential(
        *(nn.Linear(4, 4), Mine(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)),
        brevitas.QuantLinear(4, 4, True),
        nn.Unflatten(1, (4, 1)),
        nn.ConvTranspose1d(4, 4, 1),
    )
    model[3].weight = model[2].weight
    prune.l1_unstructured(model[4], "weight", 0.5)
    model[5].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="make it permanent"):
        quantize_layers(model, INT3)  # torch copies no module with a pruning hook
    new, skipped = quantize_layers(model, INT3, inplace=True)
    words = {"1": "subclass of Linear", "2": "shares", "3": "shares", "4": "pruning hook", "5": "hooks"}
    words |= {"6": "already", "8": "ConvTranspose1d"}
    assert set(skipped) == set(words)
    assert all(word in skipped[name] for name, word in words.items()), skipped
    assert isinstance(new[0], brevitas.QuantLinear) and isinstance(new[1], Mine) and new[2].weight is new[3].weight
    assert new(torch.rand(2, 4)).shape == (2, 4, 1)


def test_a_parametrised_weight_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    _, skipped = quantize_layers(model, INT3, inplace=True)
    assert list(skipped) == ["1"]


def test_settings_of_a_convolution_mode_type_and_bias_are_kept() -> None:
    convolution = nn.Conv2d(
        4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False, padding_mode="circular"
    )
    model = nn.Sequential(convolution.double().train())
    new, _ = quantize_layers(model, weight_quantizer("int8"))
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    new[0].weight_quant.disable_quant = True
    assert torch.equal(new(x), model(x)) and new[0].training and new[0].bias is None
    assert not quantize_layers(model.eval(), INT3)[0][0].training


def test_inplace_changes_the_model_itself() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    weight = model[0].weight
    assert quantize_layers(model, INT3, inplace=True)[0] is model and model[0].weight is weight
    assert isinstance(model[0], brevitas.QuantLinear)


def test_a_shared_module_is_replaced_at_both_places() -> None:
    layer = nn.Linear(3, 3)
    new, _ = quantize_layers(nn.Sequential(layer, nn.ReLU(), layer), INT3)
    assert new[0] is new[2] and isinstance(new[2], brevitas.QuantLinear)


def test_bad_input() -> None:
    with pytest.raises(SettingsError, match="weight_quantizer"):
        quantize_layers(nn.Linear(2, 2), "int4")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"no layer that can be quantised .*ConvTranspose1d"):
        quantize_layers(nn.Sequential(nn.ConvTranspose1d(1, 1, 1)), INT3)


def test_a_name_that_the_model_lacks_is_told() -> None:
    model = CASES["step"].model()
    with pytest.raises(SettingsError, match=r"no layer 'typo'; its layers are '0'"):
        quantize_layers(model, INT3, names=["0", "typo"])
