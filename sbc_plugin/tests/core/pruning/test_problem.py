"""What costs nothing to remove is given up before a solver looks at the rest."""

import pytest
import torch

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.prune import prune


@pytest.mark.parametrize("solver", ["magnitude", "obs", "admm", "hybrid"])
def test_weights_that_are_zero_already_are_the_first_zeros(solver: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 40, generator=generator, dtype=torch.float64) @ mixed
    weight = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    already = torch.rand(20, 40, generator=generator) < 0.3
    weight[already] = 0
    solution = prune(weight, LayerHessian(2 * x.T @ x / 500), 500, solver=solver)
    assert int((~solution.mask).sum()) == 500
    assert not solution.mask[already].any()
    assert not solution.weight[already].any()
