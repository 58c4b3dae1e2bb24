"""Layers share a budget of bits: never more of it than there is, and no other sharing loses less."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import sbc_plugin
from integration_tests.models.cases import CASES
from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Prune, Quantize, Report, save
from sbc_plugin.compression import budgets as bits
from sbc_plugin.core.packing import TRIT
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.errors import CalibrationError

NAMES = ("step", "nested", "conv", "LIFRecurrentCell", "SEW")


def mixed(count: int, **settings: Any) -> Quantize:
    return Quantize(count, allocation="loss", **settings)


def made(name: str, quantize: Quantize | None, **settings: Any) -> tuple[nn.Module, Report]:
    case = CASES[name]
    data = [case.batch(seed=seed) for seed in (1, 2)]
    return compress(case.model(), data, quantize=quantize, forward=case.forward, **settings)


def weights_of(model: nn.Module, report: Report) -> dict[str, torch.Tensor]:
    """Name -> (rows, columns), of layers that are a module with a weight."""
    known = dict(model.named_parameters())
    names = [row.name for row in report.layers if f"{row.name}.weight" in known]
    return {name: known[f"{name}.weight"].detach().flatten(1) for name in names}


def kept_of(report: Report) -> dict[str, int]:
    """Name -> how many weights are not zero."""
    return {row.name: round(row.rows * row.columns * (1 - row.sparsity)) for row in report.layers}


def spent(report: Report, quantize: Quantize, kept: dict[str, int]) -> float:
    """Bits of all codes, three values taken for the cheapest; at least what they are."""
    cost = {width: float(width) for width in range(2, 9)} | ({2: TRIT} if quantize.symmetric else {})
    return sum(cost[row.bits] * kept[row.name] for row in report.layers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_budget_holds_and_nothing_is_worse_than_all_alike(name: str, count: int, granularity: str) -> None:
    quantize = mixed(count, granularity=granularity)
    model, report = made(name, quantize)
    kept = {row.name: row.rows * row.columns for row in report.layers}
    assert spent(report, quantize, kept) <= count * sum(kept.values())
    widths = {row.name: row.bits for row in report.layers}
    for layer, weight in weights_of(model, report).items():
        for values in weight if granularity == "channel" else [weight]:
            assert len(values.unique()) <= 2 ** widths[layer] - 1
    _, alike = made(name, Quantize(count, granularity=granularity))
    assert sum(row.loss for row in report.layers) <= sum(row.loss for row in alike.layers) * (1 + 1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["sbc", "obc", "rtn"])
def test_no_other_sharing_loses_less(symmetric: bool, method: str) -> None:
    """Every combination of grids that the budget allows, each layer solved by a call with that grid for all."""
    quantize = mixed(3, symmetric=symmetric)
    grids = bits.options(quantize)
    alike = [made("nested", sbc_plugin.Quantize(g.bits, symmetric=g.symmetric), method=method)[1] for g, _ in grids]
    losses = [[report.layers[layer].loss for report in alike] for layer in range(3)]
    sizes = [row.rows * row.columns for row in alike[0].layers]
    allowed = [
        chosen
        for chosen in product(range(len(grids)), repeat=3)
        if sum(grids[g][1] * size for g, size in zip(chosen, sizes, strict=True)) <= 3 * sum(sizes)
    ]
    best = min(allowed, key=lambda chosen: sum(losses[layer][g] for layer, g in enumerate(chosen)))
    _, report = made("nested", quantize, method=method)
    assert [row.bits for row in report.layers] == [grids[g][0].bits for g in best]
    assert [row.loss for row in report.layers] == pytest.approx([losses[layer][g] for layer, g in enumerate(best)])


@pytest.mark.parametrize("name", ["step", "conv", "LIFRecurrentCell"])
@pytest.mark.parametrize("calibration", [Calibration(tuning=0), Calibration(order="sequential"), Calibration(tuning=4)])
def test_pruned_weights_take_no_bits(name: str, calibration: Calibration) -> None:
    quantize = mixed(3)
    _, report = made(name, quantize, prune=Prune(0.5), calibration=calibration)
    kept = kept_of(made(name, None, prune=Prune(0.5), calibration=calibration)[1])
    assert spent(report, quantize, kept) <= 3 * sum(kept.values())
    assert report.sparsity >= 0.5 - 0.5 / sum(row.rows * row.columns for row in report.layers)


def test_baselines_share_the_bits_of_what_they_keep() -> None:
    _, report = made("conv", mixed(3), prune=Prune(0.5), method="magnitude")
    _, pruned = made("conv", None, prune=Prune(0.5), method="magnitude")
    kept = kept_of(pruned)
    assert spent(report, mixed(3), kept) <= 3 * sum(kept.values())
    assert report.sparsity >= pruned.sparsity


def test_codes_in_a_file_take_no_more_than_the_budget(tmp_path: Any) -> None:
    """Scales come on top, as they do where all layers have the same bits."""
    model, report = made("SEW", mixed(2, granularity="tensor"))
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    size = sum(packed_bytes(weight) for weight in weights)
    assert len({row.bits for row in report.layers}) > 1
    assert size <= sum(2 * weight.numel() / 8 + 1 + 4 for weight in weights)
    save(tmp_path / "small.safetensors", model, report)
    back, told = sbc_plugin.load(tmp_path / "small.safetensors", CASES["SEW"].model())
    assert told is not None and told.settings["quantize"] == mixed(2, granularity="tensor")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_tuning_moves_scales_and_no_codes() -> None:
    model, report = made("conv", mixed(3))
    tuned, same = made("conv", mixed(3), calibration=Calibration(tuning=4))
    assert [row.bits for row in same.layers] == [row.bits for row in report.layers]
    signs = zip(weights_of(model, report).values(), weights_of(tuned, same).values(), strict=True)
    assert all(torch.equal(a.sign(), b.sign()) for a, b in signs)


def test_a_layer_that_hears_nothing_is_told_and_the_model_stays() -> None:
    case = CASES["step"]
    model = case.model()
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(CalibrationError, match=r"layer '0'.*stayed silent"):
        compress(model, [torch.zeros_like(case.batch())], quantize=mixed(3), inplace=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["step", "conv", "loop, sum"])
def test_brevitas_holds_layers_of_different_bits(name: str) -> None:
    pytest.importorskip("brevitas.nn")
    plain, report = made(name, mixed(3))
    model, same = made(name, mixed(3), backend="brevitas")
    assert [row.bits for row in same.layers] == [row.bits for row in report.layers]
    found: dict[str, Any] = {part: each for part, each in model.named_modules() if hasattr(each, "quant_weight")}
    widths = {part: row.bits for row in report.layers for part in row.name.split(" + ")}
    assert {part: int(module.quant_weight().bit_width) for part, module in found.items()} == widths
    for part, module in found.items():
        assert torch.equal(module.quant_weight().value, plain.get_submodule(part).weight)
