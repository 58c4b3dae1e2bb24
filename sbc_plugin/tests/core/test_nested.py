"""The order in which weights go: its masks are those of exact OBS, each within the one before; rows have limits."""

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning import nested
from sbc_plugin.core.pruning.nested import first_in_rows, removal_order
from sbc_plugin.core.pruning.obs import obs_mask


def problem(seed: int, rows: int = 5, columns: int = 7, groups: int = 1) -> tuple[Tensor, LayerHessian]:
    """A weight with zeros, and a Hessian with a dead column."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 40, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x[..., 2] = 0
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight[1, :3] = 0
    matrix = 2 * x.mT @ x / 40
    owner = torch.arange(rows) % groups
    return weight, LayerHessian(matrix[0] if groups == 1 else matrix, None if groups == 1 else owner)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [1, 2])
def test_masks_are_those_of_exact_obs(seed: int, groups: int) -> None:
    weight, hessian = problem(seed, groups=groups)
    order = removal_order(weight, hessian)
    assert order.flatten().sort().values.tolist() == list(range(weight.numel()))
    for zeros in range(weight.numel() + 1):
        assert torch.equal(order >= zeros, obs_mask(weight, hessian, zeros, step=1))


def test_a_large_layer_gives_up_all_weights_zeros_first(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(0, rows=20, columns=20)
    small = removal_order(weight, hessian)
    monkeypatch.setattr(nested, "is_small", lambda rows, columns: False)
    order = removal_order(weight, hessian)
    assert order.flatten().sort().values.tolist() == list(range(400))
    absent = int((weight == 0).sum())
    assert not (order[weight == 0] >= absent).any()
    assert ((small >= 200) == (order >= 200)).double().mean() > 0.8  # ADMM and OBS agree on most weights


@pytest.mark.parametrize("most", [1, 3, 7])
def test_rows_go_down_to_their_limit_first(most: int) -> None:
    weight, hessian = problem(1)
    order = removal_order(weight, hessian)
    limited = first_in_rows(order, most)
    assert limited.flatten().sort().values.tolist() == list(range(weight.numel()))
    left = (limited >= 5 * (7 - most)).sum(1)
    assert left.tolist() == [most] * 5
    for row in range(5):  # each row keeps its own order
        assert limited[row].argsort().tolist() == order[row].argsort().tolist()
