"""GPTQ against elimination with the explicit inverse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import Grid, make_grid, round_to_nearest
from sbc_plugin.errors import CalibrationError, SettingsError, SingularHessianError
from sbc_plugin.tests.oracles import gptq_by_elimination

ROWS, COLUMNS = 6, 20
SILENT = [4, 11]
# Values are on the grid, so one flipped rounding shows as a whole step, about 0.1; below that only the product rounds.
EXACT: dict[str, Any] = {"atol": 1e-9, "rtol": 0}


def samples_of(seed: int = 0, columns: int = COLUMNS, silent: bool = True) -> Tensor:
    """Correlated inputs (n, columns), as filtered spike trains are; some of them never spike."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    mixed = sources @ torch.randn(5, columns, generator=generator, dtype=torch.float64)
    samples = mixed + 0.5 * torch.randn(200, columns, generator=generator, dtype=torch.float64)
    if silent:
        samples[:, SILENT] = 0.0
    return samples


def hessian_of(seed: int = 0, **settings: Any) -> Tensor:
    samples = samples_of(seed, **settings)
    return 2 * samples.T @ samples / len(samples)


def weight_of(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def mask_of(weight: Tensor, kept: float = 0.6) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(8)) < kept


def levels_of(grid: Grid, columns: int = COLUMNS) -> Callable[[int, int], Tensor]:
    scale, zero_point = (part.expand(ROWS, columns) for part in grid.of_columns(columns))
    codes = torch.arange(grid.code_range[0], grid.code_range[1] + 1)
    return lambda row, column: (codes - zero_point[row, column]) * scale[row, column]


@pytest.mark.parametrize("order", ["descending", "given"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:5"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_elimination(symmetric: bool, granularity: str, masked: bool, order: str) -> None:
    weight, hessian = weight_of(), hessian_of()
    mask = mask_of(weight) if masked else None
    grid = make_grid(weight, 3, granularity=granularity, symmetric=symmetric, mask=mask)
    new = gptq(weight, LayerHessian(hessian), grid, mask, block=7, order=order)
    expected = gptq_by_elimination(weight, hessian, levels_of(grid), mask, order=order)
    assert_close(new, expected, **EXACT)
    assert LayerHessian(hessian).loss(weight, new) == pytest.approx(
        LayerHessian(hessian).loss(weight, expected), rel=1e-12
    )


@pytest.mark.parametrize("owners", [None, [1, 0, 0, 1, 0, 1]])
@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_rows_are_solved_apart(masked: bool, owners: list[int] | None) -> None:
    weight = weight_of()
    hessian = torch.stack([hessian_of(0), hessian_of(1, silent=False)])
    mask = mask_of(weight) if masked else None
    grid = make_grid(weight, 3, mask=mask)
    groups = None if owners is None else torch.tensor(owners)
    new = gptq(weight, LayerHessian(hessian, groups), grid, mask, block=7)
    expected = gptq_by_elimination(weight, hessian, levels_of(grid), mask, groups=owners)
    assert_close(new, expected, **EXACT)


def test_a_group_without_rows_is_no_problem() -> None:
    weight, hessian = weight_of(), torch.stack([hessian_of(0), hessian_of(1)])
    grid = make_grid(weight, 3)
    new = gptq(weight, LayerHessian(hessian, torch.ones(ROWS, dtype=torch.long)), grid)
    assert torch.equal(new, gptq(weight, LayerHessian(hessian[1]), grid))


@pytest.mark.parametrize("block", [1, 7, 128])
def test_blocks_change_nothing(block: int) -> None:
    weight, hessian = weight_of(columns=150), hessian_of(columns=150)
    grid, mask = make_grid(weight, 4), mask_of(weight)
    whole = gptq(weight, LayerHessian(hessian), grid, mask, block=1000)
    assert torch.equal(gptq(weight, LayerHessian(hessian), grid, mask, block=block), whole)


def test_the_order_of_the_columns_is_by_descending_diagonal() -> None:
    weight, hessian = weight_of(), hessian_of(silent=False)
    sequence = hessian.diagonal().argsort(descending=True)
    grid = make_grid(weight, 3, granularity="tensor")
    sorted_by_hand = gptq(weight[:, sequence], LayerHessian(hessian[sequence][:, sequence]), grid, order="given")
    assert torch.equal(gptq(weight, LayerHessian(hessian), grid)[:, sequence], sorted_by_hand)
    assert not torch.equal(
        gptq(weight, LayerHessian(hessian), grid, order="given"), gptq(weight, LayerHessian(hessian), grid)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:5"])
def test_every_weight_is_on_the_grid_and_zeros_stay(granularity: str, dtype: torch.dtype) -> None:
    weight, hessian = weight_of().to(dtype), hessian_of()
    mask = mask_of(weight)
    grid = make_grid(weight, 2, granularity=granularity, mask=mask, symmetric=False)
    for h in (hessian, hessian.float()):
        new = gptq(weight, LayerHessian(h), grid, mask)
        assert new.dtype == dtype and (new[~mask] == 0).all()
        assert torch.equal(grid.round(new), new)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scale", ["absmax", "mse", "power_of_two"])
def test_loses_less_than_rounding_on_correlated_inputs(scale: str, bits: int) -> None:
    weight, hessian = weight_of(rows=32), hessian_of()
    for mask in (None, mask_of(weight)):
        grid = make_grid(weight, bits, scale=scale, mask=mask)
        losses = [
            LayerHessian(hessian).loss(weight, solve(weight, grid, mask))
            for solve in (lambda w, g, m: gptq(w, LayerHessian(hessian), g, m), round_to_nearest)
        ]
        assert losses[0] < losses[1]


def test_equals_rounding_where_inputs_are_uncorrelated() -> None:
    weight, grid = weight_of(), make_grid(weight_of(), 3)
    new = gptq(weight, LayerHessian(torch.eye(COLUMNS, dtype=torch.float64)), grid)
    assert torch.equal(new, round_to_nearest(weight, grid))


def test_silent_columns_are_rounded_to_nearest_and_change_nobody() -> None:
    weight, hessian = weight_of(), hessian_of()
    grid, mask = make_grid(weight, 3), mask_of(weight)
    new = gptq(weight, LayerHessian(hessian), grid, mask)
    assert torch.equal(new[:, SILENT], round_to_nearest(weight, grid, mask)[:, SILENT])
    other = weight.clone()
    other[:, SILENT] *= 3
    active = [column for column in range(COLUMNS) if column not in SILENT]
    assert torch.equal(gptq(other, LayerHessian(hessian), grid, mask)[:, active], new[:, active])


def test_a_silent_layer_is_rounded_to_nearest() -> None:
    weight, grid = weight_of(), make_grid(weight_of(), 3)
    silence = torch.zeros(COLUMNS, COLUMNS, dtype=torch.float64)
    new = gptq(weight, LayerHessian(silence), grid)
    assert torch.equal(new, round_to_nearest(weight, grid)) and LayerHessian(silence).loss(weight, new) == 0


def test_rows_of_zeros_stay_zero() -> None:
    weight = weight_of()
    weight[2] = 0
    assert (gptq(weight, LayerHessian(hessian_of()), make_grid(weight, 2))[2] == 0).all()


def test_arguments_stay_unchanged() -> None:
    weight, hessian = weight_of(), hessian_of()
    arguments = weight, hessian, mask_of(weight), torch.zeros(ROWS, dtype=torch.long)
    before = [argument.clone() for argument in arguments]
    grid = make_grid(weight, 3)
    scale = grid.scale.clone()
    gptq(weight, LayerHessian(hessian, arguments[3]), grid, arguments[2])
    assert all(torch.equal(old, new) for old, new in zip(before, arguments, strict=True))
    assert torch.equal(grid.scale, scale)


def test_a_parameter_leaves_no_graph() -> None:
    weight = torch.nn.Parameter(weight_of())
    grid = make_grid(weight, 3)
    assert not any(found.requires_grad for found in (grid.scale, gptq(weight, LayerHessian(hessian_of()), grid)))


def test_bad_input_is_named() -> None:
    weight, hessian = weight_of(), hessian_of()
    grid = make_grid(weight, 3)
    with pytest.raises(SettingsError, match=r"'ascending'.*descending"):
        gptq(weight, LayerHessian(hessian), grid, order="ascending")
    with pytest.raises(SettingsError, match="block=0"):
        gptq(weight, LayerHessian(hessian), grid, block=0)
    with pytest.raises(CalibrationError, match="19 columns, weight has 20"):
        gptq(weight, LayerHessian(hessian[1:, 1:]), grid)
    with pytest.raises(SingularHessianError, match=r"18 columns.*damping=-0.5"):
        gptq(weight, LayerHessian(hessian, damping=-0.5), grid)
    with pytest.raises(SingularHessianError, match="NaN"):
        gptq(weight, LayerHessian(hessian * float("nan")), grid)
