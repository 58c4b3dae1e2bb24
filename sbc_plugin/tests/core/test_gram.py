"""Half of a symmetric product is computed; the numbers are those of the whole."""

import pytest
import torch

from sbc_plugin.core.accumulators import SYMMETRIC, HessianAccumulator, gram
from sbc_plugin.errors import CalibrationError


@pytest.mark.parametrize("columns", [7, SYMMETRIC - 1, SYMMETRIC, SYMMETRIC + 3, 2 * SYMMETRIC + 1])
@pytest.mark.parametrize("groups", [(), (2,)])
def test_the_product_is_that_of_float64(columns: int, groups: tuple[int, ...]) -> None:
    samples = torch.randn(*groups, 9, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    product = gram(samples)
    torch.testing.assert_close(product, torch.einsum("...ni,...nj->...ij", samples, samples))
    assert torch.equal(product, product.mT)


@pytest.mark.parametrize("columns", [3, SYMMETRIC + 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_value_that_no_sum_can_hold_is_seen_wherever_it_stands(columns: int, value: float) -> None:
    samples = torch.ones(4, columns)
    samples[2, columns - 1] = value
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        HessianAccumulator(columns).add(samples)
