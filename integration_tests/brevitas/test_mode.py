"""``sbc_mode``: core's GPTQ on Hessians that are the same however the sequences are driven."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

brevitas = pytest.importorskip("brevitas.nn")

from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Int16Bias, Int32Bias  # noqa: E402

from integration_tests.models.cases import CASES  # noqa: E402
from integration_tests.models.networks import BOX, LIF, Case, over_time  # noqa: E402
from sbc_plugin import Calibration, calibrate  # noqa: E402
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer  # noqa: E402
from sbc_plugin.core.hessian import LayerHessian  # noqa: E402
from sbc_plugin.core.quantization.gptq import gptq  # noqa: E402
from sbc_plugin.core.quantization.grids import Grid, make_grid  # noqa: E402

NAMES = ["step", "conv", "loop, sum", "lift", "NIR graph", "own recurrence"]


def data_of(case: Case) -> list[Tensor]:
    return [case.batch(seed=seed) for seed in range(3)]


def quantise(model: nn.Module, data: list[Tensor], run: Callable[[Any, Tensor], Any], **settings: Any) -> sbc_mode:
    with torch.no_grad(), sbc_mode(model, **settings) as sbc:
        for _ in range(sbc.num_layers):
            for x in data:
                run(sbc.model, x)
            sbc.update()
    return sbc


def once(model: Any, x: Tensor) -> Any:
    return model(x)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.quant_weight().value.detach() for name, m in model.named_modules() if hasattr(m, "quant_weight")}


def codes(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.quant_weight().int() for name, m in model.named_modules() if hasattr(m, "quant_weight")}


def full_grid(shape: tuple[int, ...], flat: Tensor, bits: int, granularity: str) -> Grid:
    """A scale for every weight: a convolution's groups are input channels of one kernel position."""
    if not granularity.startswith("group") or len(shape) == 2:
        return make_grid(flat, bits, granularity=granularity)
    size, positions = int(granularity[6:]), shape[2] * shape[3]
    by_position = flat.reshape(shape[0], -1, size, positions).movedim(2, 3)
    scale = make_grid(by_position.reshape(-1, size), bits).scale.reshape(shape[0], -1, 1, positions)
    scale = scale.expand(-1, -1, size, -1).reshape(flat.shape)
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), bits, symmetric=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_integers_are_those_of_core_on_the_same_hessian(name: str, bits: int, granularity: str) -> None:
    case = CASES[name]
    model, data = case.model(), data_of(case)
    granularity = "group:1" if granularity == "group" else granularity  # divides the columns of every layer
    new, _ = quantize_layers(model, weight_quantizer(f"int{bits}", granularity))
    hessians = calibrate(model, data)
    quantise(new, data, once, order="one-shot")
    found, modules = weights(new), dict(model.named_modules())
    solved = []
    for joint, accumulator in hessians.items():
        members = [modules[part] for part in joint.split(" + ")]
        flat = [member.weight.detach().flatten(1) for member in members]
        grids = [full_grid(m.weight.shape, w, bits, granularity) for m, w in zip(members, flat, strict=True)]
        scale = torch.cat([g.of_columns(w.shape[1])[0].expand(w.shape) for g, w in zip(grids, flat, strict=True)], 1)
        grid = Grid(scale, torch.zeros_like(scale, dtype=torch.int32), bits, symmetric=True)
        wanted = gptq(torch.cat(flat, 1), LayerHessian(accumulator.hessian()), grid)
        for part, block in zip(joint.split(" + "), wanted.split([w.shape[1] for w in flat], 1), strict=True):
            assert torch.equal(found[part].flatten(1), block), part
            solved.append(part)
    assert sorted(solved) == sorted(found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_groups_of_several_columns(bits: int, kind: str) -> None:
    layer: nn.Module = nn.Linear(8, 5) if kind == "linear" else nn.Conv2d(8, 5, 3)
    model = norse.SequentialState(layer, norse.LIFBoxCell(BOX)).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (6, 3, 8) if kind == "linear" else (6, 3, 8, 4, 4)
    data = [(torch.rand(shape, generator=generator) < 0.4).float()]
    new, _ = quantize_layers(model, weight_quantizer(f"int{bits}", "group:4"))
    quantise(new, data, once)
    flat = layer.weight.detach().flatten(1)
    grid = full_grid(tuple(layer.weight.shape), flat, bits, "group:4")
    wanted = gptq(flat, LayerHessian(calibrate(model, data)["0"].hessian()), grid)
    assert torch.equal(weights(new)["0"].flatten(1), wanted)


def test_each_layer_sees_what_the_quantised_ones_before_it_send() -> None:
    case = CASES["step"]
    model, data = case.model(), data_of(case)
    quantizer = weight_quantizer("int2")
    new, _ = quantize_layers(model, quantizer)
    first, second = (name for name, m in model.named_modules() if isinstance(m, nn.Linear))
    dense = calibrate(model, data)[second].hessian()
    quantise(new, data, once)
    model.get_submodule(first).weight.data = weights(new)[first]
    hessian = calibrate(model, data)[second].hessian()
    assert not torch.equal(hessian, dense)
    flat = model.get_submodule(second).weight.detach()
    assert torch.equal(weights(new)[second], gptq(flat, LayerHessian(hessian), make_grid(flat, 2)))


class Stacked(nn.Module):
    """Two layers of neurons, in step mode (LIFCell) or in sequence mode (LIF)."""

    def __init__(self, neuron: Any = norse.LIFCell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.n, self.m = nn.Linear(6, 8), nn.Linear(8, 4), neuron(LIF), neuron(LIF)
        for layer in (self.a, self.b):
            layer.weight.data.mul_(6)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        first, second = state or (None, None)
        z, first = self.n(self.a(x), first)
        z, second = self.m(self.b(z), second)
        return z, (first, second)


class OwnLoop(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        outputs, state = [], None
        for step in x:
            z, state = super().forward(step, state)
            outputs.append(z)
        return torch.stack(outputs)


@pytest.mark.parametrize("order", ["sequential", "one-shot"])
def test_step_sequence_and_loop_give_identical_integers(order: str) -> None:
    generator = torch.Generator().manual_seed(3)
    data = [(torch.rand(7, 3, 6, generator=generator) < 0.5).float() for _ in range(3)]
    found = {}
    runs: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
        "sequence": (Stacked(norse.LIF), once, {}),
        "own loop": (OwnLoop(), once, {}),
        "driven over time": (Stacked(), once, {}),
        "external loop": (Stacked(), over_time, {}),
        "forward=": (Stacked(), once, {"forward": over_time}),
    }
    for name, (model, run, settings) in runs.items():
        new, _ = quantize_layers(model, weight_quantizer("int3"))
        sbc = quantise(new, data, run, order=order, **settings)
        assert set(sbc.solutions) == {"a", "b"} and not sbc.skipped
        found[name] = codes(new)
    for name, integers in found.items():
        assert all(torch.equal(integers[layer], found["sequence"][layer]) for layer in "ab"), name


def test_filters_start_anew_with_each_sequence() -> None:
    """Two sequences in a row are not one long sequence."""
    model, x = Stacked(), (torch.rand(8, 3, 6) < 0.5).float()
    apart, _ = quantize_layers(model, weight_quantizer("int8"))
    sbc = quantise(apart, [x[:4], x[4:]], over_time)
    halves = [calibrate(model, [half])["a"] for half in (x[:4], x[4:])]
    halves[0].merge(halves[1])
    flat = model.a.weight.detach()
    assert torch.equal(sbc.solutions["a"].weight, gptq(flat, LayerHessian(halves[0].hessian()), make_grid(flat, 8)))
    whole = gptq(flat, LayerHessian(calibrate(model, [x])["a"].hessian()), make_grid(flat, 8))
    assert not torch.equal(sbc.solutions["a"].weight, whole)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()
    ).eval()


def test_a_loop_written_for_images_works_with_m_of_one() -> None:
    model, images = plain(), [torch.randn(9, 2, 6, 6) for _ in range(2)]
    new, _ = quantize_layers(model, weight_quantizer("int3"))
    sbc = quantise(new, images, once)
    x = torch.cat(images)
    patches = torch.nn.functional.unfold(x, 3).mT.reshape(-1, 2, 9).movedim(1, 0).double()
    hessian = 2 * patches.mT @ patches / patches.shape[1]
    flat = model[0].weight.detach().flatten(1)
    wanted = gptq(flat, LayerHessian(hessian), make_grid(flat, 3))
    assert torch.equal(sbc.solutions["0"].weight, wanted)
    model[0].weight.data = wanted.view_as(model[0].weight)
    hidden = model[:4](x).detach().double()
    flat = model[4].weight.detach()
    wanted = gptq(flat, LayerHessian(2 * hidden.mT @ hidden / len(hidden)), make_grid(flat, 3))
    assert torch.equal(sbc.solutions["4"].weight, wanted)


def test_a_model_that_is_one_layer() -> None:
    layer, x = nn.Linear(4, 3), torch.randn(20, 4)
    new, _ = quantize_layers(layer, weight_quantizer("int3"))
    quantise(new, [x], once)
    flat = layer.weight.detach()
    wanted = gptq(flat, LayerHessian(2 * (x.T @ x).double() / 20), make_grid(flat, 3))
    assert torch.equal(new.quant_weight().value, wanted)


@pytest.mark.parametrize("name", ["int2", "int4", "ternary", "binary"])
@pytest.mark.parametrize("scale", ["absmax", "mse", "power_of_two"])
def test_weights_are_scale_times_integer(name: str, scale: str) -> None:
    model, x = plain(), torch.randn(9, 2, 6, 6)
    new, _ = quantize_layers(model, weight_quantizer(name, scale=scale))
    before = {layer: m.quant_weight().scale.clone() for layer, m in new.named_modules() if hasattr(m, "quant_weight")}
    quantise(new, [x], once)
    for layer, integers in codes(new).items():
        found = new.get_submodule(layer).quant_weight()
        assert torch.equal(found.value, found.scale * integers) and torch.equal(found.scale, before[layer])
        assert torch.equal(found.value, new.get_submodule(layer).weight)  # written back: the float weight is the same


def test_binary_weights_have_less_loss_than_their_signs() -> None:
    model, x = plain(), torch.randn(40, 2, 6, 6)
    new, _ = quantize_layers(model, weight_quantizer("binary"))
    signs = weights(new)["0"]
    quantise(new, [x], once)
    target, signed, ours = (nn.functional.conv2d(x, w, groups=2) for w in (model[0].weight, signs, weights(new)["0"]))
    assert (ours - target).square().sum() < (signed - target).square().sum()


def test_an_integer_in_the_middle_of_a_loop_is_the_dense_model_up_to_it() -> None:
    """A layer whose turn has not come computes with its dense weight, and all are quantised after the block."""
    case = CASES["step"]
    model, data = case.model(), data_of(case)
    new, _ = quantize_layers(model, weight_quantizer("int2"))
    rounded = case.output(new, data[0])
    with sbc_mode(new) as sbc:
        assert torch.equal(sbc.model(data[0]), case.output(model, data[0]))
    assert torch.equal(case.output(new, data[0]), rounded)


def test_settings_reach_the_solver() -> None:
    layer, x = nn.Linear(12, 6), torch.randn(40, 12) @ torch.randn(12, 12)
    hessian, flat = 2 * (x.T @ x).double() / 40, layer.weight.detach()
    for damping, act_order in ((0.01, False), (10.0, True)):
        new, _ = quantize_layers(layer, weight_quantizer("int2"))
        quantise(new, [x], once, damping=damping, act_order=act_order)
        order = "descending" if act_order else "given"
        wanted = gptq(flat, LayerHessian(hessian, damping=damping), make_grid(flat, 2), order=order)
        assert torch.equal(new.quant_weight().value, wanted)
        assert not torch.equal(wanted, gptq(flat, LayerHessian(hessian), make_grid(flat, 2)))
    new, _ = quantize_layers(layer, weight_quantizer("int2"))
    quantise(new, [x], once, dtype=torch.float32)
    assert torch.equal(new.quant_weight().value, gptq(flat, LayerHessian(hessian.float()), make_grid(flat, 2)))
    case = CASES["step"]
    new, _ = quantize_layers(case.model(), weight_quantizer("int8"))
    sbc = quantise(new, data_of(case), once, temporal=False, order="one-shot")
    hessians = calibrate(case.model(), data_of(case), calibration=Calibration(temporal=False))
    for name, solution in sbc.solutions.items():
        flat = case.model().get_submodule(name).weight.detach()
        assert torch.equal(solution.weight, gptq(flat, LayerHessian(hessians[name].hessian()), make_grid(flat, 8)))


def brevitas_chain(**last: Any) -> nn.Module:
    """Layers that hand values and scales on, as Brevitas' own flows build them."""
    torch.manual_seed(0)
    quantiser = weight_quantizer("int4")
    return nn.Sequential(
        brevitas.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True),
        brevitas.QuantLinear(8, 8, True, weight_quant=quantiser),
        brevitas.QuantReLU(return_quant_tensor=True),
        brevitas.QuantLinear(8, 4, True, weight_quant=quantiser, **last),
    ).eval()


@pytest.mark.parametrize("last", [{}, {"bias_quant": Int32Bias}, {"bias_quant": Int16Bias}], ids=str)
def test_values_with_scales_between_layers_and_quantised_biases(last: Any) -> None:
    """The codes are those of a twin that hands plain tensors on, its bias in floating point."""
    x, found = torch.randn(64, 8), []
    for settings in (last, {}):
        model: Any = brevitas_chain(**settings)
        if not settings:
            model[0].return_quant_tensor = model[2].return_quant_tensor = not last
        model(x)
        with torch.no_grad(), sbc_mode(model) as sbc:
            for _ in range(sbc.num_layers):
                sbc.model(x)
                sbc.update()
        found.append([model[number].quant_weight().int() for number in (1, 3)])
        assert model[3].bias_quant.is_quant_enabled == bool(settings) and model(x) is not None
    assert all(map(torch.equal, *found))


def test_layers_of_brevitas_that_are_left_to_their_own_rounding_are_told() -> None:
    torch.manual_seed(0)
    quantiser = weight_quantizer("int4")
    model = nn.Sequential(
        brevitas.QuantConv2d(3, 4, 3, weight_quant=quantiser),
        brevitas.QuantConvTranspose2d(4, 4, 3, weight_quant=quantiser),
        brevitas.QuantConv2d(4, 4, 3, weight_quant=quantiser),
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    model(x)
    with torch.no_grad(), pytest.warns(UserWarning, match="layer '1': QuantConvT"), sbc_mode(model) as sbc:
        for _ in range(sbc.num_layers):
            sbc.model(x)
            sbc.update()
    reason = "QuantConvTranspose2d has no matrix form here; its weight is rounded by its own quantizer"
    assert sbc.skipped == {"1": reason}


class Behind(nn.Module):
    """A quantised Linear behind a layer of another kind."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, brevitas.QuantLinear(8, 4, True, weight_quant=weight_quantizer("int4"))

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        result: Tensor = self.last(found[0] if isinstance(found, tuple) else found)
        return result


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (lambda: brevitas.QuantLSTM(8, 8, weight_quant=Int8WeightPerTensorFloat), 8),
        (lambda: brevitas.QuantRNN(8, 8, weight_quant=Int8WeightPerTensorFloat), 2),
        (lambda: brevitas.QuantEmbedding(10, 8, weight_quant=Int8WeightPerTensorFloat), 1),
    ],
    ids=["LSTM", "RNN", "Embedding"],
)
def test_recurrent_layers_and_embeddings_are_left_out_and_told(layer: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    model = Behind(layer()).eval()
    x = torch.randint(0, 10, (8, 5)) if left == 1 else torch.randn(5, 8, 8)
    model(x)
    before = {name: value.clone() for name, value in model.layer.state_dict().items()}
    with torch.no_grad(), pytest.warns(UserWarning, match="sbc_mode leaves out layer 'layer"), sbc_mode(model) as sbc:
        assert sbc.num_layers == 1 and len(sbc.skipped) == left
        sbc.model(x)
        sbc.update()
    assert list(sbc.solutions) == ["last"] and len(sbc.skipped) == left
    assert all("no matrix form" in reason for reason in sbc.skipped.values())
    assert all(torch.equal(value, before[name]) for name, value in model.layer.state_dict().items())
