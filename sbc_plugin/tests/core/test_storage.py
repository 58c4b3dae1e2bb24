"""Packed weights: the grid is found from the values, the shortest form is taken, and every bit comes back."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sbc_plugin.core import packing, storage
from sbc_plugin.core.packing import TRIT
from sbc_plugin.core.quantization.grids import make_grid, round_to_nearest
from sbc_plugin.core.storage import PackedWeight, pack, packed_bytes, unpack
from sbc_plugin.errors import CheckpointError


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mask(like: Tensor, density: float, seed: int = 1) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) < density


def quantised(weight: Tensor, bits: int, kept: Tensor | None = None, **settings: Any) -> Tensor:
    return round_to_nearest(weight, make_grid(weight, bits, mask=kept, **settings), kept)


def packed(weight: Tensor) -> PackedWeight:
    """The form, after the weight came back equal in every bit and the size was as foretold."""
    found = pack(weight)
    assert found is not None
    form, data = found
    back = unpack(form, data)
    assert back.dtype == weight.dtype and back.shape == weight.shape
    assert torch.equal(back.view(torch.uint8), weight.contiguous().view(torch.uint8))
    assert len(data) == form.size == packed_bytes(weight) < weight.numel() * weight.element_size()
    return form


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:20"])
@pytest.mark.parametrize("scale", ["mse", "power_of_two"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_grid_of_ours_is_found(
    bits: int, granularity: str, scale: str, symmetric: bool, dtype: torch.dtype
) -> None:
    if granularity == "group:20" and bits == 8 and dtype == torch.float64:
        pytest.skip("20 values in 255 steps leave too many scales to try; such a weight stays as it is")
    weight = drawn(20, 300, seed=bits, dtype=dtype)
    form = packed(quantised(weight, bits, granularity=granularity, scale=scale, symmetric=symmetric))
    scales = {"tensor": 1, "channel": 20, "group:20": 300}[granularity]
    # never longer than the grid as it was made: codes of its bits, its scales, a byte a zero point
    made = -(-weight.numel() * bits // 8) + scales * (form.scale_dtype.itemsize + (not symmetric))
    assert form.bits >= 1 or form.kept <= 1  # two bits and a power of two left a single value, which needs no scale
    if granularity != "group:20" or scale == "mse":  # of groups whose scales have something in common one scale is made
        assert form.size <= made
    if scale == "mse":  # scales of any size have nothing in common, those that are powers of two may be one
        assert form.scales == scales


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4])
def test_short_floats_hold_products_of_float32_scales(dtype: torch.dtype, bits: int) -> None:
    weight = quantised(drawn(12, 256), bits).to(dtype)
    form = packed(weight)
    assert form.bits == {2: TRIT}.get(bits, bits) and form.scale_dtype == torch.float32


def test_scales_of_double_precision_behind_single_precision_weights() -> None:
    weight = quantised(drawn(12, 256, dtype=torch.float64), 8).float()
    assert packed(weight).scale_dtype == torch.float64  # no float32 scale gives all products


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("bits", [None, 4])
def test_zeros_are_left_out_where_that_is_shorter(density: float, bits: int | None) -> None:
    weight = drawn(50, 400)
    kept = mask(weight, density)
    weight = weight.where(kept, 0.0) if bits is None else quantised(weight, bits, kept)
    form, count = packed(weight), int(weight.count_nonzero())
    assert form.kept == count and form.bits == (bits or 0)
    assert form.places == ("mask" if density == 0.5 else "gaps")
    code = bits or 32
    by_mask = (weight.numel() + code * count) / 8 + (4 * 50 if bits else 0)
    assert form.size <= by_mask + 1 < weight.numel() * code / 8 + 1
    # A gap costs its geometric distribution's entropy at least, and less than 0.8 bits more in fields of one width.
    p = torch.tensor(count / weight.numel(), dtype=torch.float64)
    entropy = float(-(p.log2() + (1 - p) / p * (1 - p).log2()))
    spent = (form.size * 8 - (32 * 50 if bits else 0)) / count - code
    assert density == 0.5 or entropy - 0.2 < spent < entropy + 0.8


@pytest.mark.parametrize("columns", [5, 7, 300])
@pytest.mark.parametrize("values", [(-1, 0, 1), (0, 1, 2), (-2, -1, 0)])
def test_three_values_take_a_fifth_of_a_byte(values: tuple[int, ...], columns: int) -> None:
    codes = torch.tensor(values)[torch.randint(3, (20, columns), generator=torch.Generator().manual_seed(columns))]
    form = packed(codes * (1 + drawn(20, 1).abs()))
    assert form.bits == TRIT and form.size <= -(-20 * columns // 5) + 20 * 5


def test_convolutions_are_packed_by_output_channel() -> None:
    weight = drawn(8, 6, 5, 5)
    assert packed(quantised(weight.flatten(1), 4).view_as(weight)).scales == 8


def test_a_trained_weight_lies_on_no_grid() -> None:
    for weight in (drawn(20, 300), drawn(20, 7), drawn(3, 2)):
        assert pack(weight) is None and packed_bytes(weight) == weight.numel() * 4


@pytest.mark.parametrize("weight", [torch.ones(7, dtype=torch.float32), torch.ones(4, 4, dtype=torch.int64),
                                    torch.ones(0, 4), torch.full((4, 4), torch.nan)])  # fmt: skip
def test_what_is_no_weight_is_left_as_it_is(weight: Tensor) -> None:
    assert pack(weight) is None and packed_bytes(weight) == weight.numel() * weight.element_size()


def test_a_negative_zero_stays_negative() -> None:
    weight = torch.zeros(8, 16)
    weight[0, 0], weight[3, 5] = -0.0, 1.5
    form = packed(weight)
    assert form.kept == 2 and form.bits == 0


def test_a_few_lone_values_are_no_grid() -> None:
    """Blocks with one value each have a scale each, and codes for it: longer than the values themselves."""
    weight = torch.zeros(38, 38)
    weight[torch.arange(38), torch.arange(38)] = drawn(38)
    form = packed(weight)
    assert form.bits == 0 and form.size < 38 * 4 + 38 * 38 // 8


def test_rows_of_zeros_need_no_scale_of_their_own() -> None:
    assert packed(torch.zeros(3, 40)).kept == 0
    weight = quantised(drawn(6, 40), 4)
    weight[2] = 0
    assert packed(weight).bits == 4


def test_a_row_whose_smallest_code_is_not_one() -> None:
    # 0.1 is no float: each product is rounded, and the scale is found only from all of them
    codes = torch.tensor([[3.0, 5.0, -7.0, 6.0]]).repeat(1, 9)
    form = packed(codes * torch.tensor(0.1))
    assert (form.bits, form.zero) == (4, 7)


@pytest.mark.parametrize("change", [{"kept": 5000}, {"size": 3}, {"scales": 7}, {"shape": (2, 2)}])
def test_bytes_of_another_form_are_refused(change: dict[str, Any]) -> None:
    weight = drawn(50, 40)
    found = pack(quantised(weight, 4, mask(weight, 0.1)))
    assert found is not None and found[0].places == "gaps"
    with pytest.raises(CheckpointError, match="the file is damaged"):
        unpack(replace(found[0], **change), found[1])


@pytest.mark.parametrize("bits", [None, 1, 3, TRIT, 8])
@pytest.mark.parametrize("density", [1.0, 0.6, 0.1, 0.02])
def test_weights_are_unpacked_in_parts(bits: Any, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones, of which a part is much smaller than the whole."""
    monkeypatch.setattr(packing, "CHUNK", 64)
    monkeypatch.setattr(storage, "PART", 40)
    codes = torch.randint(
        0, 3 if bits == TRIT else 2 ** int(bits or 8), (31, 67), generator=torch.Generator().manual_seed(0)
    )
    weight = drawn(31, 67) if bits is None else (codes - 1) * 0.5
    weight = weight.where(mask(weight, density), 0.0)
    if bits is not None or density < 1:
        packed(weight)


def test_forms_that_do_not_fit_their_bytes_are_refused() -> None:
    weight = drawn(16, 32).where(mask(drawn(16, 32), 0.6), 0.0)
    found = pack(weight)
    assert found is not None and found[0].places == "mask"
    form, data = found
    others: list[dict[str, Any]] = [
        {"kept": form.kept + 1}, {"kept": form.kept - 1}, {"kept": 513}, {"kept": -1}, {"size": form.size - 1},
        {"shape": (16, 31)}, {"shape": (2**20, 2**20)}, {"places": "all", "kept": 512},
        {"bits": 4}, {"bits": 4, "scales": 0}, {"bits": 4, "scales": 5}, {"dtype": torch.float64},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(CheckpointError, match=r"damaged"):
            unpack(replace(form, **other), data)
