"""The sequential target against least squares, and the settings that reach a layer's solver."""

import pytest
import torch
from torch import Tensor

from sbc_plugin.compression.layer import check_active, sequential_target
from sbc_plugin.errors import CalibrationError


def drifted(groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(groups)
    dense = torch.rand(groups, 200, 6, generator=generator, dtype=torch.float64)
    now = dense + 0.3 * torch.randn(groups, 200, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4 * groups, 6, generator=generator, dtype=torch.float64)
    hessian = 2 * now.mT @ now / 200
    drift = 2 * now.mT @ (dense - now) / 200
    return dense, now, weight, hessian, drift


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("groups", [1, 3])
def test_target_is_the_least_squares_fit_of_the_mixed_membrane(alpha: float, groups: int) -> None:
    dense, now, weight, hessian, drift = drifted(groups)
    owner = torch.arange(groups).repeat_interleave(4)
    new = sequential_target(weight, hessian, drift, alpha, 0.0, owner)
    for row, group in enumerate(owner.tolist()):
        mixed = (alpha * dense[group] + (1 - alpha) * now[group]) @ weight[row]
        best = torch.linalg.lstsq(now[group], mixed[:, None]).solution[:, 0]
        torch.testing.assert_close(new[row], best, rtol=1e-9, atol=1e-9)  # two float64 solvers, condition about 10


def test_one_hessian_is_a_group_of_its_own() -> None:
    _, _, weight, hessian, drift = drifted(1)
    alone = sequential_target(weight, hessian[0], drift[0], 0.5, 0.01, None)
    grouped = sequential_target(weight, hessian, drift, 0.5, 0.01, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(alone, grouped)


def test_a_weight_that_is_zero_stays_zero() -> None:
    _, _, weight, hessian, drift = drifted(1)
    weight[0, 2] = 0
    new = sequential_target(weight, hessian[0], drift[0], 1.0, 0.01, None)
    assert new[0, 2] == 0
    assert (new[1:] != weight[1:]).all()


def test_silence_is_refused() -> None:
    with pytest.raises(CalibrationError, match="silent on all calibration data"):
        check_active(torch.zeros(3, 3))
