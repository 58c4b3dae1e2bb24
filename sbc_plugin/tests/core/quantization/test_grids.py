"""Grids: which values exist, where they lie, and that the chosen scales are the promised ones."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.quantization import grids as module
from sbc_plugin.core.quantization.grids import Grid, make_grid, round_to_nearest
from sbc_plugin.errors import SettingsError

GRANULARITIES = ["tensor", "channel", "group:4"]
SCALES = ["absmax", "mse", "power_of_two"]


def weight_of(rows: int = 6, columns: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) + 0.3
    weight[0, 0] = 9.0  # an outlier, so that shrinking pays
    return weight.to(dtype)


def square_error(weight: Tensor, grid: Grid) -> Tensor:
    return (weight - grid.round(weight)).square().reshape(*grid.scale.shape, -1).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rounding_takes_the_nearest_of_all_grid_values(bits: int, granularity: str, symmetric: bool) -> None:
    weight = weight_of()
    grid = make_grid(weight, bits, granularity=granularity, symmetric=symmetric)
    scale, zero_point = (part.expand(6, 16) for part in grid.of_columns(16))
    low, high = grid.code_range
    levels = (torch.arange(low, high + 1) - zero_point[..., None]) * scale[..., None]
    nearest = levels.gather(-1, (levels - weight[..., None]).abs().argmin(-1, keepdim=True)).squeeze(-1)
    # Exact: the same product of the same code and scale.
    assert torch.equal(grid.round(weight), nearest)
    assert torch.equal(grid.codes(nearest), grid.codes(weight))
    assert (levels == 0).any(-1).all()


@pytest.mark.parametrize(
    ("symmetric", "narrow", "expected"),
    [(True, True, [(-1, 1), (-127, 127)]), (True, False, [(-2, 1), (-128, 127)]), (False, True, [(0, 3), (0, 255)])],
)
def test_code_range(symmetric: bool, narrow: bool, expected: list[tuple[int, int]]) -> None:
    grids = [make_grid(weight_of(), bits, symmetric=symmetric, narrow=narrow) for bits in (2, 8)]
    assert [grid.code_range for grid in grids] == expected


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_absmax_is_the_smallest_symmetric_scale_that_clips_nothing(granularity: str, narrow: bool) -> None:
    weight = weight_of()
    grid = make_grid(weight, 3, granularity=granularity, scale="absmax", narrow=narrow)
    low, high = grid.code_range
    exact = (weight / grid.of_columns(16)[0]).reshape(*grid.scale.shape, -1)
    slack = torch.minimum(high - exact.amax(-1), exact.amin(-1) - low)
    assert_close(slack, torch.zeros_like(slack), atol=1e-12, rtol=0)  # one division of numbers below 4


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_asymmetric_codes_reach_both_ends_and_zero(granularity: str) -> None:
    weight = weight_of()
    grid = make_grid(weight, 4, granularity=granularity, scale="absmax", symmetric=False)
    blocks = weight.reshape(*grid.scale.shape, -1)
    spread = blocks.amax(-1).clamp(min=0) - blocks.amin(-1).clamp(max=0)
    assert_close(grid.scale, spread / 15, atol=0, rtol=1e-14)
    assert torch.equal(grid.round(torch.zeros_like(weight)), torch.zeros_like(weight))
    # The zero point is rounded to a code, so the ends may clip by half a step, as much as rounding moves any weight.
    step = grid.of_columns(16)[0]
    assert ((weight - grid.round(weight)).abs() <= step / 2 * (1 + 1e-12)).all()


@pytest.mark.parametrize("one_sided", [weight_of().abs(), -weight_of().abs()])
def test_asymmetric_spends_no_code_on_a_side_without_weights(one_sided: Tensor) -> None:
    grid = make_grid(one_sided, 2, symmetric=False)
    assert set(grid.zero_point.flatten().tolist()) == {0 if one_sided.sum() > 0 else 3}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_scale_is_no_worse_than_any_of_a_fine_scan(bits: int, granularity: str, symmetric: bool) -> None:
    weight = weight_of()
    absmax = make_grid(weight, bits, granularity=granularity, scale="absmax", symmetric=symmetric)
    found = square_error(weight, make_grid(weight, bits, granularity=granularity, symmetric=symmetric))
    start = square_error(weight, absmax)
    assert (found <= start).all() and found.sum() < start.sum()
    scan = [
        square_error(weight, Grid(absmax.scale * factor, absmax.zero_point, bits, symmetric))
        for factor in torch.linspace(0.02, 1.0, 1000, dtype=torch.float64)
    ]
    # The error has many local minima in the scale, and the search is as fine as 1 %; in 16 weights one code counts.
    assert (found <= 1.02 * torch.stack(scan).amin(0) + 1e-12).all()


def test_mse_scale_follows_the_hessian_diagonal() -> None:
    weight = weight_of()
    importance = torch.ones(16, dtype=torch.float64)
    importance[0] = 0.0  # the outlier's input is silent
    plain, weighed = make_grid(weight, 3), make_grid(weight, 3, hessian_diag=importance)
    errors = [((weight - grid.round(weight)).square() * importance).sum(1) for grid in (weighed, plain)]
    assert errors[0][0] < errors[1][0]
    by_row = make_grid(weight, 3, hessian_diag=importance.expand(6, 16))
    assert torch.equal(by_row.scale, weighed.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_power_of_two_is_the_next_above_absmax(symmetric: bool) -> None:
    weight = torch.tensor([[0.75, -3.0], [0.76, 3.01], [-6.0, 0.1], [7e-3, 1e-3]], dtype=torch.float64)
    absmax = make_grid(weight, 3, scale="absmax", symmetric=symmetric)
    grid = make_grid(weight, 3, scale="power_of_two", symmetric=symmetric)
    assert grid.power_of_two and not absmax.power_of_two
    assert torch.equal(torch.frexp(grid.scale).mantissa, torch.full((4, 1), 0.5, dtype=torch.float64))
    assert ((grid.scale >= absmax.scale) & (grid.scale < 2 * absmax.scale)).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_of_zeros_have_a_harmless_scale(dtype: torch.dtype, symmetric: bool, scale: str) -> None:
    weight = weight_of(dtype=dtype)
    weight[1], weight[2, :] = 0.0, 1e-38
    grid = make_grid(weight, 4, scale=scale, symmetric=symmetric)
    assert grid.scale[1:3].tolist() == [[1.0], [1.0]]
    assert grid.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rounded = grid.round(weight)
    assert rounded.dtype == dtype and rounded.isfinite().all() and (rounded[1:3] == 0).all()


def test_masked_weights_have_no_say_and_become_zero() -> None:
    weight = weight_of()
    mask = weight != 9.0
    without = weight.where(mask, 0.0)
    for scale in SCALES:
        grid = make_grid(weight, 3, scale=scale, mask=mask)
        assert torch.equal(grid.scale, make_grid(without, 3, scale=scale).scale)
        assert torch.equal(round_to_nearest(weight, grid, mask), grid.round(without))


def test_bfloat16_weights_find_their_codes_again() -> None:
    weight = weight_of(dtype=torch.bfloat16)
    for symmetric in (True, False):
        grid = make_grid(weight, 8, symmetric=symmetric)
        assert torch.equal(grid.codes(grid.round(weight)), grid.codes(weight))


def test_arguments_stay_unchanged() -> None:
    weight, mask, importance = weight_of(), weight_of() > 0, torch.ones(16, dtype=torch.float64)
    before = weight.clone(), mask.clone(), importance.clone()
    grid = make_grid(weight, 2, mask=mask, hessian_diag=importance, symmetric=False)
    round_to_nearest(weight, grid, mask)
    assert all(torch.equal(old, new) for old, new in zip(before, (weight, mask, importance), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits=1.*2 to 8"),
        ({"bits": 9}, "bits=9"),
        ({"bits": 4.0}, "bits=4.0.*whole"),
        ({"granularity": "row"}, "'row'.*group:32"),
        ({"granularity": "group:x"}, "'group:x'"),
        ({"granularity": "group:0"}, "'group:0'"),
        ({"granularity": "group:5"}, "5 does not divide 16 columns"),
        ({"scale": "max"}, "'max'.*mse"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_grid(weight_of(), **{"bits": 4, **settings})  # type: ignore[arg-type]


def test_a_weight_with_nan_is_refused() -> None:
    with pytest.raises(SettingsError, match="NaN or infinity"):
        make_grid(weight_of() * float("nan"), 4)


def test_a_grid_of_groups_fits_only_its_columns() -> None:
    grid = make_grid(weight_of(), 4, granularity="group:4")
    with pytest.raises(SettingsError, match=r"4 column groups.*15 columns"):
        grid.round(weight_of(columns=15))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_parts_get_the_scales_that_each_would_get_alone(granularity: str, scale: str, symmetric: bool) -> None:
    weight, importance = weight_of(), torch.linspace(0.1, 2.0, 16, dtype=torch.float64)
    mask = weight < 2.0
    grid = make_grid(
        weight, 3, granularity=granularity, scale=scale, symmetric=symmetric, mask=mask, hessian_diag=importance,
        parts=[4, 12],
    )  # fmt: skip
    alone = [
        make_grid(part, 3, granularity=granularity, scale=scale, symmetric=symmetric, mask=kept, hessian_diag=diagonal)
        for part, kept, diagonal in zip(*(t.split([4, 12], -1) for t in (weight, mask, importance)), strict=True)
    ]
    expected = torch.cat([part.round(w) for part, w in zip(alone, weight.split([4, 12], 1), strict=True)], 1)
    assert torch.equal(grid.round(weight), expected)
    assert torch.equal(grid.round(grid.round(weight)), expected)
    whole = make_grid(weight, 3, granularity=granularity, scale=scale, symmetric=symmetric, mask=mask)
    one = make_grid(weight, 3, granularity=granularity, scale=scale, symmetric=symmetric, mask=mask, parts=[16])
    assert torch.equal(one.scale, whole.scale)


def test_a_grid_of_parts_fits_only_its_columns() -> None:
    grid = make_grid(weight_of(), 4, parts=[4, 12])
    with pytest.raises(SettingsError, match="made for 16 columns, not for 18"):
        grid.round(weight_of(columns=18))
    with pytest.raises(SettingsError, match="8 does not divide 4 columns"):
        make_grid(weight_of(), 4, granularity="group:8", parts=[4, 12])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
def test_leaving_out_zeros_changes_no_scale(
    granularity: str, symmetric: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = weight_of(6, 64)
    mask = (
        torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
        < torch.tensor([0, 0.02, 0.1, 0.2, 0.3, 0.3])[:, None]
    )
    importance = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    chosen = {"granularity": granularity, "symmetric": symmetric, "hessian_diag": importance if weighted else None}
    expected = make_grid(weight, 3, mask=mask, **chosen)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "SPARSE_COLUMNS", 0)
    found = make_grid(weight, 3, mask=mask, **chosen)  # type: ignore[arg-type]
    assert_close(found.scale, expected.scale, rtol=1e-12, atol=0)
    assert torch.equal(found.zero_point, expected.zero_point)
