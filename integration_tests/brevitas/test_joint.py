"""``sbc_mode`` with a mask: the integers and scales of ``compress``, and zeros that stay."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

qnn = pytest.importorskip("brevitas.nn")

from brevitas.graph.gptq import gptq_mode  # noqa: E402

from integration_tests.models.cases import CASES  # noqa: E402
from integration_tests.models.one_shot import compress  # noqa: E402
from sbc_plugin import Calibration, Prune, Quantize, calibrate  # noqa: E402
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer  # noqa: E402
from sbc_plugin.core.hessian import LayerHessian  # noqa: E402
from sbc_plugin.core.pruning.refit import refit  # noqa: E402
from sbc_plugin.core.quantization.gptq import gptq  # noqa: E402
from sbc_plugin.core.quantization.grids import make_grid  # noqa: E402

NAMES = ["step", "conv", "loop, sum", "lift", "NIR graph", "own recurrence"]


def quantise(model: nn.Module, data: list[Tensor], **settings: Any) -> sbc_mode:
    with torch.no_grad(), sbc_mode(model, **settings) as sbc:
        for _ in range(sbc.num_layers):
            for x in data:
                sbc.model(x)
            sbc.update()
    return sbc


def quantised(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if hasattr(m, "quant_weight")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bits", "granularity", "scale"), [(4, "channel", "mse"), (3, "tensor", "power_of_two")])
def test_a_mask_gives_the_integers_and_scales_of_compress(name: str, bits: int, granularity: str, scale: str) -> None:
    case = CASES[name]
    model, data = case.model(), [case.batch(seed=seed) for seed in range(3)]
    quantize = Quantize(bits, granularity, scale)
    wanted, _ = compress(model, data, prune=Prune(0.5), quantize=quantize, backend="brevitas")
    sparse, _ = compress(model, data, prune=Prune(0.5))
    new, _ = quantize_layers(model, weight_quantizer(f"int{bits}", granularity, scale))
    masks = {layer: sparse.get_submodule(layer).weight != 0 for layer in quantised(wanted)}
    quantise(new, data, mask=masks, order="one-shot")
    check_equal(new, wanted)


@pytest.mark.parametrize("name", ["step", "own recurrence"])
def test_kept_zeros_give_those_of_compress_layer_by_layer(name: str) -> None:
    case = CASES[name]
    data = [case.batch(seed=seed) for seed in range(3)]
    sparse, _ = compress(case.model(), data, prune=Prune(0.5))
    settings = Calibration(order="sequential", alpha=0.0)  # the mode follows the layer's own target
    wanted, _ = compress(sparse, data, quantize=Quantize(4), calibration=settings, backend="brevitas")
    new, _ = quantize_layers(sparse, weight_quantizer("int4"))
    quantise(new, data, keep_zeros=True)
    check_equal(new, wanted)


def check_equal(new: nn.Module, wanted: nn.Module) -> None:
    for layer, module in quantised(wanted).items():
        theirs, ours = module.quant_weight(), new.get_submodule(layer).quant_weight()
        assert torch.equal(ours.int(), theirs.int()) and torch.equal(ours.scale, theirs.scale), layer
        assert int((ours.int() == 0).sum()) > 0


@pytest.mark.parametrize("how", ["mask", "keep_zeros"])
def test_zero_weights_stay_zero(how: str) -> None:
    case = CASES["conv"]
    model, data = case.model(), [case.batch()]
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(m.weight.shape, generator=generator) < 0.5
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    }
    if how == "keep_zeros":
        for name, mask in masks.items():
            model.get_submodule(name).weight.data.mul_(2 * mask)  # twice, for it to go on spiking
    new, _ = quantize_layers(model, weight_quantizer("int4"))
    quantise(new, data, **({"mask": masks} if how == "mask" else {"keep_zeros": True}))
    for name, mask in masks.items():
        value = new.get_submodule(name).quant_weight().value
        assert not value[~mask].any() and value[mask].any()


def test_a_layer_without_a_mask_keeps_its_own_grid() -> None:
    case = CASES["step"]
    model, data = case.model(), [case.batch()]
    new, _ = quantize_layers(model, weight_quantizer("int4"))
    names = list(quantised(new))
    quantise(new, data, mask={names[1]: torch.ones_like(new.get_submodule(names[1]).weight)}, order="one-shot")
    flat = model.get_submodule(names[0]).weight.detach()
    wanted = gptq(flat, LayerHessian(calibrate(model, data)[names[0]].hessian()), make_grid(flat, 4))
    assert torch.equal(new.get_submodule(names[0]).quant_weight().value, wanted)


def test_groups_of_a_convolution_keep_their_scales() -> None:
    """Brevitas groups input channels of one kernel position, core consecutive columns: core has no such grid."""
    case = CASES["conv"]
    model, data = case.model(), [case.batch()]
    new, _ = quantize_layers(model, weight_quantizer("int4", "group:1"))
    name, module = next(iter(quantised(new).items()))
    grid = module.quant_weight().scale.detach().clone()
    mask = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    sbc = quantise(new, data, mask={name: mask}, order="one-shot")
    flat, hessian = model.get_submodule(name).weight.detach().flatten(1), calibrate(model, data)[name].hessian()
    wanted = gptq(
        refit(flat, mask.flatten(1), LayerHessian(hessian)),
        LayerHessian(hessian),
        make_grid(flat, 4, granularity="group:1"),
        mask.flatten(1),
    )
    assert torch.equal(module.quant_weight().scale, grid)
    assert torch.equal(sbc.solutions[name].weight, wanted)


def test_contract_gptq_mode_brings_back_zeros() -> None:
    """Brevitas' ``gptq_mode`` pushes errors onto weights that are zero: a sparse layer does not stay sparse."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16), torch.randn(200, 32) @ torch.randn(32, 32)
    zero = torch.rand(16, 32) < 0.5
    layer.weight.data[zero] = 0.0
    new, _ = quantize_layers(nn.Sequential(layer), weight_quantizer("int4"))
    assert not new[0].quant_weight().value[zero].any()
    ours, _ = quantize_layers(nn.Sequential(layer), weight_quantizer("int4"))
    with torch.no_grad(), gptq_mode(new, use_quant_activations=False) as gptq_context:
        gptq_context.model(x)
        gptq_context.update()
    assert new[0].quant_weight().value[zero].any()
    quantise(ours, [x], keep_zeros=True)
    assert not ours[0].quant_weight().value[zero].any()
