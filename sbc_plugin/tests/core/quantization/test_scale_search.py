"""Scales by the layer's loss against a loop over factors and rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization import scale_search
from sbc_plugin.core.quantization.coordinate_descent import descend
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid, make_grid
from sbc_plugin.core.quantization.scale_search import FACTORS, least_loss_grid, quantise
from sbc_plugin.tests.core.quantization.test_coordinate_descent import COLUMNS, ROWS, hessian_of, mask_of, weight_of

OWNERS = torch.tensor([1, 0, 0, 1, 0, 1])


def losses_by_factor(weight: Tensor, hessian: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
    """Damped loss (factors, rows) after GPTQ, one factor after the other."""
    found = []
    for factor in FACTORS:
        new = gptq(weight, LayerHessian(hessian, OWNERS), replace(grid, scale=grid.scale * factor), mask)
        found.append(LayerHessian(LayerHessian(hessian, damping=0.01).damped(), OWNERS).quadratic(weight - new))
    return torch.stack(found)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("granularity", ["channel", "group:7", "tensor"])
@pytest.mark.parametrize("bits", [2, 4])
def test_takes_the_factor_of_least_loss(bits: int, granularity: str, masked: bool) -> None:
    weight, hessian = weight_of(), torch.stack([hessian_of(0), hessian_of(1)])
    mask, gain = mask_of(weight) if masked else None, torch.linspace(0.1, 3.0, ROWS, dtype=torch.float64)
    grid = make_grid(weight, bits, granularity=granularity, mask=mask)
    loss = losses_by_factor(weight, hessian, grid, mask)
    if granularity == "tensor":
        loss = (loss * gain.square()).sum(1, keepdim=True)
    expected = grid.scale * torch.tensor(FACTORS, dtype=torch.float64)[loss.argmin(0)][:, None]
    found = least_loss_grid(weight, LayerHessian(hessian, OWNERS), grid, mask, row_scale=gain)
    assert torch.equal(found.scale, expected)  # exact: the same product
    assert not torch.equal(found.scale, grid.scale)


def test_copies_solved_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = weight_of(), hessian_of()
    grid = make_grid(weight, 3)
    together = least_loss_grid(weight, LayerHessian(hessian), grid).scale
    monkeypatch.setattr(scale_search, "CHUNK", 2 * weight.numel())
    assert torch.equal(least_loss_grid(weight, LayerHessian(hessian), grid).scale, together)


@pytest.mark.parametrize(("affordable", "least", "most"), [(1, 1, 1), (2, 1, 2), (9, 6, 9), (1000, 25, 25)])
def test_large_layers_try_fewer_factors_and_always_their_own(
    monkeypatch: pytest.MonkeyPatch, affordable: int, least: int, most: int
) -> None:
    work = ROWS * COLUMNS**2
    monkeypatch.setattr(scale_search, "WORK", affordable * work)
    chosen = scale_search._affordable(FACTORS, work)
    assert chosen[0] == 1 and least <= len(chosen) <= most and set(chosen) <= set(FACTORS)
    grid = make_grid(weight_of(), 2)
    found = least_loss_grid(weight_of(), LayerHessian(hessian_of()), grid).scale
    assert torch.equal(found, grid.scale) == (affordable == 1)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loses_no_more_than_gptq_on_the_grid_of_least_weight_error(bits: int, granularity: str) -> None:
    weight, hessian = weight_of(), hessian_of()
    matrix = LayerHessian(hessian, damping=0.01).damped()
    plain = gptq(weight, LayerHessian(hessian), make_grid(weight, bits, granularity=granularity))
    new = quantise(weight, LayerHessian(hessian), bits, granularity=granularity).weight
    losses = [LayerHessian(matrix).quadratic(weight - q) for q in (plain, new)]
    assert losses[1].sum() < losses[0].sum()
    if granularity == "channel":
        assert (losses[1] <= losses[0]).all()


@pytest.mark.parametrize("scale", ["absmax", "power_of_two"])
def test_scales_that_were_asked_for_stay(scale: str) -> None:
    weight, hessian = weight_of(), hessian_of()
    grid = make_grid(weight, 3, scale=scale)
    expected = descend(weight, gptq(weight, LayerHessian(hessian), grid), LayerHessian(hessian), grid).weight
    assert torch.equal(quantise(weight, LayerHessian(hessian), 3, scale=scale).weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_have_levels_of_their_own_and_zeros_stay(dtype: torch.dtype) -> None:
    weight, parts = weight_of(), [4, 10]
    weight[:, 4:] *= 30
    weight, mask = weight.to(dtype), mask_of(weight)
    solution = quantise(weight, LayerHessian(hessian_of()), 3, mask=mask, parts=parts)
    assert solution.weight.dtype == dtype and (solution.weight[~mask] == 0).all()
    for part in solution.weight.split(parts, 1):
        assert max(len(row.abs().unique()) for row in part) <= 4  # 0 to 3 times the scale
        assert (part != 0).any(1).sum() >= 5  # at a shared scale all of the first part would round to zero


def test_a_row_of_zeros_stays() -> None:
    weight = weight_of()
    weight[2] = 0
    assert (quantise(weight, LayerHessian(hessian_of()), 2).weight[2] == 0).all()


def test_arguments_stay_unchanged() -> None:
    weight, hessian = weight_of(), hessian_of()
    arguments = weight, hessian, mask_of(weight)
    before = [argument.clone() for argument in arguments]
    quantise(weight, LayerHessian(hessian), 3, mask=arguments[2])
    assert all(torch.equal(old, new) for old, new in zip(before, arguments, strict=True))
