"""Coordinate descent on codes against trying every value in every place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization import coordinate_descent
from sbc_plugin.core.quantization.coordinate_descent import descend
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid, make_grid, round_to_nearest
from sbc_plugin.errors import SettingsError
from sbc_plugin.tests.oracles import descent_by_trying

ROWS, COLUMNS, SILENT = 6, 14, [4, 11]


def hessian_of(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    """Of correlated inputs, two of which never spike."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    samples = sources @ torch.randn(5, columns, generator=generator, dtype=torch.float64)
    samples += 0.5 * torch.randn(200, columns, generator=generator, dtype=torch.float64)
    samples[:, SILENT] = 0.0
    return 2 * samples.T @ samples / len(samples)


def weight_of(columns: int = COLUMNS) -> Tensor:
    return torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def mask_of(weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(8)) < 0.6


def levels_of(grid: Grid) -> Callable[[int, int], Tensor]:
    scale, zero_point = (part.expand(ROWS, COLUMNS) for part in grid.of_columns(COLUMNS))
    codes = torch.arange(grid.code_range[0], grid.code_range[1] + 1)
    return lambda row, column: (codes - zero_point[row, column]) * scale[row, column]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:7"])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True)])
def test_equals_trying_every_value(bits: int, symmetric: bool, granularity: str, masked: bool) -> None:
    weight, hessian = weight_of(), hessian_of()
    mask = mask_of(weight) if masked else None
    grid = make_grid(weight, bits, granularity=granularity, symmetric=symmetric, mask=mask)
    start = round_to_nearest(weight, grid, mask)
    solution = descend(weight, start, LayerHessian(hessian), grid, mask, block=5)
    expected = descent_by_trying(weight, start, hessian, levels_of(grid), mask)
    # Values are on the grid, so one other code shows as a whole step, above 0.1.
    assert_close(solution.weight, expected, atol=1e-9, rtol=0)
    assert solution.loss == pytest.approx(LayerHessian(hessian).loss(weight, expected), rel=1e-12)
    assert not torch.equal(solution.weight, start)


@pytest.mark.parametrize("owners", [None, [1, 0, 0, 1, 0, 1]])
def test_groups_of_rows_are_solved_apart(owners: list[int] | None) -> None:
    weight, hessian = weight_of(), torch.stack([hessian_of(0), hessian_of(1)])
    grid = make_grid(weight, 3)
    start = round_to_nearest(weight, grid)
    solution = descend(weight, start, LayerHessian(hessian, None if owners is None else torch.tensor(owners)), grid)
    expected = descent_by_trying(weight, start, hessian, levels_of(grid), groups=owners)
    assert_close(solution.weight, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("damping", [0.01, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lowers_the_loss_that_gptq_leaves_in_every_row(bits: int, damping: float) -> None:
    weight, hessian = weight_of(150), hessian_of(columns=150)
    grid, mask = make_grid(weight, bits), mask_of(weight)
    start = gptq(weight, LayerHessian(hessian, damping=damping), grid, mask)
    new = descend(weight, start, LayerHessian(hessian, damping=damping), grid, mask).weight
    losses = [LayerHessian(LayerHessian(hessian, damping=damping).damped()).quadratic(weight - q) for q in (start, new)]
    assert (losses[1] <= losses[0] * (1 + 1e-12)).all() and losses[1].sum() < losses[0].sum()
    once_more = descend(weight, new, LayerHessian(hessian, damping=damping), grid, mask, sweeps=100).weight
    assert torch.equal(descend(weight, once_more, LayerHessian(hessian, damping=damping), grid, mask).weight, once_more)


def test_blocks_change_nothing_and_no_sweep_is_the_start() -> None:
    weight, hessian = weight_of(150), hessian_of(columns=150)
    grid = make_grid(weight, 4)
    start = round_to_nearest(weight, grid)
    found = [descend(weight, start, LayerHessian(hessian), grid, block=block).weight for block in (1, 7, 1000)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    assert torch.equal(descend(weight, start, LayerHessian(hessian), grid, sweeps=0).weight, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_silent_columns_stay_and_all_is_on_the_grid(dtype: torch.dtype) -> None:
    weight, hessian = weight_of().to(dtype), hessian_of().float()
    grid, mask = make_grid(weight, 3, symmetric=False), mask_of(weight)
    start = round_to_nearest(weight, grid, mask)
    solution = descend(weight, start, LayerHessian(hessian), grid, mask)
    assert (solution.weight[~mask] == 0).all() and torch.equal(solution.mask, mask)
    assert torch.equal(solution.weight[:, SILENT], start[:, SILENT])
    assert solution.weight.dtype == dtype and torch.equal(grid.round(solution.weight), solution.weight)


def test_arguments_stay_unchanged() -> None:
    weight, hessian = weight_of(), hessian_of()
    grid, mask = make_grid(weight, 2), mask_of(weight)
    arguments = weight, hessian, mask, round_to_nearest(weight, grid, mask)
    before = [argument.clone() for argument in arguments]
    descend(weight, arguments[3], LayerHessian(hessian), grid, mask)
    assert all(torch.equal(old, new) for old, new in zip(before, arguments, strict=True))


def test_bad_settings_are_named() -> None:
    weight, grid = weight_of(), make_grid(weight_of(), 3)
    with pytest.raises(SettingsError, match="sweeps=-1"):
        descend(weight, weight, LayerHessian(hessian_of()), grid, sweeps=-1)
    with pytest.raises(SettingsError, match="block=0"):
        descend(weight, weight, LayerHessian(hessian_of()), grid, block=0)


@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_gradient_that_follows_the_codes_gives_the_same_codes(
    bits: int, masked: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinate_descent, "FOLLOWED", 0)
    weight, hessian = weight_of(), hessian_of()
    mask = mask_of(weight) if masked else None
    grid = make_grid(weight, bits, mask=mask)
    start = round_to_nearest(weight, grid, mask)
    solution = descend(weight, start, LayerHessian(hessian), grid, mask, block=block)
    assert_close(solution.weight, descent_by_trying(weight, start, hessian, levels_of(grid), mask), atol=1e-9, rtol=0)


def test_wide_layers_end_where_no_single_code_can_do_better() -> None:
    columns = coordinate_descent.FOLLOWED + 8
    weight, hessian = weight_of(columns), hessian_of(columns=columns)
    grid = make_grid(weight, 3)
    solution = descend(weight, round_to_nearest(weight, grid), LayerHessian(hessian), grid, sweeps=200)
    damped = LayerHessian(hessian).damped()
    gradient = (weight - solution.weight) @ damped
    best = grid.codes(solution.weight + gradient / damped.diagonal())
    moves = best != grid.codes(solution.weight)
    moves[:, SILENT] = False
    assert not moves.any()
