import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning import obs
from sbc_plugin.core.pruning.obs import eliminate, obs_mask
from sbc_plugin.core.pruning.problem import pose
from sbc_plugin.errors import SettingsError, SingularHessianError
from sbc_plugin.tests.oracles import eliminate_by_lstsq


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated samples X, a weight (rows, columns), and the Hessian of ``|X w - X w'|^2 = 1/2 e^T H e``."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    samples = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) @ mix
    return samples, torch.randn(rows, columns, generator=generator, dtype=torch.float64), 2 * samples.T @ samples


def start(hessian: Tensor, rows: int) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian)).expand(rows, -1, -1).clone()


@pytest.mark.parametrize("columns", [1, 5, 23])  # within one panel, and over several with columns dropped
def test_one_weight_a_step_is_exhaustive_elimination(columns: int) -> None:
    samples, weight, hessian = layer(3, columns)
    order, loss = eliminate(weight, start(hessian, 3), torch.ones(3, columns, dtype=torch.bool))
    for r in range(3):
        expected_order, expected_loss = eliminate_by_lstsq(samples, weight[r])
        assert order[r].tolist() == expected_order
        assert_close(
            loss[r], torch.tensor(expected_loss, dtype=torch.float64), rtol=1e-8, atol=0
        )  # differences of sums


@pytest.mark.parametrize("size", [2, 3])
def test_blocks_are_exhaustive_elimination_of_blocks(size: int) -> None:
    samples, weight, hessian = layer(2, 24)
    order, loss = eliminate(weight, start(hessian, 2), torch.ones(2, 24, dtype=torch.bool), block=size)
    for r in range(2):
        expected_order, expected_loss = eliminate_by_lstsq(samples, weight[r], size=size)
        assert order[r].tolist() == expected_order
        assert_close(loss[r], torch.tensor(expected_loss, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("text", "kept", "of"), [("2:4", 2, 4), ("1:3", 1, 3), ("5:6", 5, 6)])
def test_n_of_m_is_exhaustive_elimination_with_a_capacity(text: str, kept: int, of: int) -> None:
    samples, weight, hessian = layer(2, 24)
    mask = obs_mask(weight, LayerHessian(hessian, damping=0.0), 2 * 24 // of * (of - kept), pattern=text, step=1)
    for r in range(2):
        order, _ = eliminate_by_lstsq(samples, weight[r], groups_of=of, kept=kept)
        assert (~mask[r]).nonzero()[:, 0].tolist() == sorted(order)


@pytest.mark.parametrize("zeros", [1, 17, 40, 59])
def test_row_budgets_come_from_the_pooled_losses(zeros: int) -> None:
    samples, weight, _ = layer(5, 12)
    samples[:, 6:] = samples[:, :6] + 0.1 * samples[:, 6:]  # near twins of opposite sign: the second goes for nothing
    hessian = 2 * samples.T @ samples
    weight[:, 6:] = 0.05 * weight[:, 6:] - weight[:, :6]
    weight = weight * torch.tensor([0.2, 1.0, 1.0, 2.0, 5.0], dtype=torch.float64)[:, None]  # budgets must differ
    pooled, orders = [], []
    for r in range(5):
        order, losses = eliminate_by_lstsq(samples, weight[r])
        orders.append(order)
        pooled += [(max(losses[: i + 1]), r, i) for i in range(12)]
    removed = torch.zeros(5, 12, dtype=torch.bool)
    for _, r, i in sorted(pooled)[:zeros]:
        removed[r, orders[r][i]] = True
    assert torch.equal(obs_mask(weight, LayerHessian(hessian, damping=0.0), zeros, step=1), ~removed)


def test_several_weights_a_step_follow_the_stale_saliency() -> None:
    samples, weight, hessian = layer(1, 10)
    order, loss = eliminate(weight, start(hessian, 1), torch.ones(1, 10, dtype=torch.bool), step=3)
    left, expected, w = list(range(10)), [], weight[0].clone()
    while left:
        G = torch.linalg.inv(hessian[left][:, left])
        saliency = w[left].square() / G.diagonal()
        gone = [left[i] for i in saliency.argsort()[:3].tolist()]
        expected += gone
        left = [j for j in left if j not in gone]
        w = torch.zeros_like(w)
        if left:
            w[left] = torch.linalg.lstsq(samples[:, left], samples @ weight[0]).solution
    assert order[0].tolist() == expected
    removed_all = (samples @ weight[0]).square().sum()  # the losses of all steps add up to removing everything
    assert_close(loss.sum(), removed_all, rtol=1e-9, atol=0)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4"])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_batches_panels_and_dropped_columns_change_nothing(
    pattern: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weight, hessian = layer(7, 32)
    expected = obs_mask(weight, LayerHessian(hessian), 112, pattern=pattern, step=step)
    monkeypatch.setattr(obs, "BATCH_ELEMENTS", 3 * 32**2)
    assert torch.equal(obs_mask(weight, LayerHessian(hessian), 112, pattern=pattern, step=step), expected)
    monkeypatch.setattr(obs, "PANEL", 1)
    monkeypatch.setattr(obs, "SHRINK", 0.0)
    assert torch.equal(obs_mask(weight, LayerHessian(hessian), 112, pattern=pattern, step=step), expected)


def test_batches_may_hold_rows_that_were_pruned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    _, weight, hessian = layer(6, 12)
    weight[0, :8], weight[1, :3] = 0, 0  # so the first batches have fewer weights to eliminate than the last
    expected = obs_mask(weight, LayerHessian(hessian), 40, step=1)
    monkeypatch.setattr(obs, "BATCH_ELEMENTS", 12**2)
    assert torch.equal(obs_mask(weight, LayerHessian(hessian), 40, step=1), expected)


def test_one_elimination_has_the_masks_of_every_sparsity() -> None:
    _, weight, hessian = layer(5, 16)
    hessian[:, 3], hessian[3] = 0, 0  # a dead column
    found = obs.elimination(pose(weight, LayerHessian(hessian), 0), None)
    for zeros in (3, 40, 70):
        problem = pose(weight, LayerHessian(hessian), zeros)
        mask = problem.mask(obs.pool(*found, problem, problem.zeros))
        assert torch.equal(mask, obs_mask(weight, LayerHessian(hessian), zeros))


def test_groups_pool_the_losses_of_their_own_hessians() -> None:
    (_, weight, first), (_, _, second) = layer(4, 8), layer(4, 8, seed=1)
    owner = torch.tensor([1, 0, 1, 0])
    mask = obs_mask(weight, LayerHessian(torch.stack([first, second]), owner, damping=0.0), 20, step=1)
    everything = torch.ones(1, 8, dtype=torch.bool)
    pooled = []
    for r in range(4):
        order, loss = eliminate(weight[r : r + 1], start([first, second][owner[r]], 1), everything)
        running = loss[0].cummax(0).values.tolist()
        pooled += [(running[i], r, i, int(order[0, i])) for i in range(8)]
    removed = {(r, column) for _, r, _, column in sorted(pooled)[:20]}
    assert {(r, c) for r in range(4) for c in range(8) if not mask[r, c]} == removed


def test_a_singular_hessian_is_refused_with_columns_and_damping() -> None:
    samples, weight, _ = layer(2, 8)
    hessian = samples[:3].T @ samples[:3]
    with pytest.raises(SingularHessianError, match=r"8 columns .*damping=0.*raise `damping`"):
        obs_mask(weight, LayerHessian(hessian, damping=0.0), 8)


def test_a_step_of_no_weights_is_refused() -> None:
    _, weight, hessian = layer(2, 8)
    with pytest.raises(SettingsError, match="step is 0"):
        obs_mask(weight, LayerHessian(hessian), 8, step=0)
