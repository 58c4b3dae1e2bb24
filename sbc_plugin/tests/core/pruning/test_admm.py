import pytest
import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning import admm, hybrid, obs
from sbc_plugin.core.pruning.admm import admm_mask
from sbc_plugin.core.pruning.hybrid import hybrid_mask
from sbc_plugin.core.pruning.obs import obs_mask
from sbc_plugin.core.pruning.patterns import smallest
from sbc_plugin.core.pruning.problem import Problem
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.errors import SettingsError, SingularHessianError


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    samples = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), samples.T @ samples


@pytest.mark.parametrize("find", [admm_mask, hybrid_mask, obs_mask])
def test_independent_columns_keep_what_weighs_most(find) -> None:  # type: ignore[no-untyped-def]
    weight, _ = layer(4, 12)
    diagonal = torch.linspace(0.1, 9, 12, dtype=torch.float64)
    mask = find(weight, LayerHessian(diagonal.diag(), damping=0.0), 30)
    expected = (
        (weight.square() * diagonal).flatten().argsort()[30:]
    )  # the optimum, since no weight can stand in for another
    assert mask.flatten().nonzero()[:, 0].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("wide", [False, True])
def test_iterations_are_the_textbook_ones(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On wide layers those that are over-relaxed."""
    monkeypatch.setattr(admm, "STAGE", 2)
    if wide:
        monkeypatch.setattr(admm, "EXACT_COLUMNS", 0)
    relaxation = admm.RELAXATION if wide else 1.0
    weight, hessian = layer(3, 10)
    scale = hessian.diagonal().sqrt()
    W, H = weight * scale, hessian / scale / scale[:, None]
    Z, multiplier = W, torch.zeros_like(W)  # of the constraint X = Z, not scaled by the penalty
    for iteration in range(5):
        rho = admm.PENALTY * admm.GROWTH ** (iteration // 2)
        X = torch.linalg.solve(H + rho * torch.eye(10), (W @ H + rho * Z - multiplier).T).T
        X = relaxation * X + (1 - relaxation) * Z
        V = X + multiplier / rho
        Z = torch.where(V.abs() > V.abs().flatten().sort().values[14], V, 0.0)
        multiplier = multiplier + rho * (X - Z)
        assert torch.equal(admm_mask(weight, LayerHessian(hessian, damping=0.0), 15, iterations=iteration + 1), Z != 0)


@pytest.mark.parametrize("pattern", ["unstructured", "block:2"])
def test_hybrid_spans_from_exact_obs_to_admm(pattern: str) -> None:
    weight, hessian = layer(5, 16)
    everything_to_obs = hybrid_mask(weight, LayerHessian(hessian), 60, pattern=pattern, preselect=0.01)
    assert torch.equal(everything_to_obs, obs_mask(weight, LayerHessian(hessian), 60, pattern=pattern, step=1))
    everything_to_admm = hybrid_mask(weight, LayerHessian(hessian), 60, pattern=pattern, preselect=1.0, iterations=7)
    assert torch.equal(everything_to_admm, admm_mask(weight, LayerHessian(hessian), 60, pattern=pattern, iterations=7))


@pytest.mark.parametrize(("samples", "zeros"), [(150, 4320), (150, 4656), (2400, 4320), (2400, 4656)])
def test_wide_layers_lose_less_than_by_the_greedy_order_in_large_steps(samples: int, zeros: int) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = obs.EXACT_COLUMNS + 88
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    x = (torch.randn(samples, columns, generator=generator) @ mix).relu()
    weight, hessian = torch.randn(8, columns, generator=generator), LayerHessian((x.T @ x).double())
    masks = [hybrid_mask(weight, hessian, zeros), obs_mask(weight, hessian, zeros, step=3)]
    losses = [hessian.loss(weight, refit(weight, mask, hessian)) for mask in masks]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("find", [admm_mask, hybrid_mask])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4"])
def test_equal_hessians_of_groups_are_one_hessian(find, pattern: str) -> None:  # type: ignore[no-untyped-def]
    weight, hessian = layer(6, 16)
    owner = torch.tensor([0, 2, 2, 0, 2, 0])  # the second has no rows
    grouped = find(weight, LayerHessian(torch.stack([hessian] * 3), owner), 48, pattern=pattern)
    assert torch.equal(grouped, find(weight, LayerHessian(hessian), 48, pattern=pattern))


def test_batches_of_survivors_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = layer(9, 24)
    expected = hybrid_mask(weight, LayerHessian(hessian), 180)
    monkeypatch.setattr(hybrid, "BATCH_ELEMENTS", 1)
    assert torch.equal(hybrid_mask(weight, LayerHessian(hessian), 180), expected)


def test_obs_is_left_no_more_rows_and_survivors_than_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = layer(8, 24)
    monkeypatch.setattr(hybrid, "OBS_WORK", 8 * 10**3)
    asked = []
    plain = hybrid.eliminate_survivors

    def note(problem: Problem, kept: Tensor, zeros: int) -> Tensor:
        asked.append(int(kept.sum()))
        return plain(problem, kept, zeros)

    monkeypatch.setattr(hybrid, "eliminate_survivors", note)
    for final in (16, 48, 79, 81, 150):
        mask = hybrid_mask(weight, LayerHessian(hessian), 192 - final)
        assert int(mask.sum()) == final
    assert asked == [54, 80, 80]  # 16 / 0.3, then 10 a row; where more are kept in the end, ADMM decides alone


def test_float32_inside_finds_masks_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = layer(9, 48)
    exact = {find: find(weight, LayerHessian(hessian), 360) for find in (admm_mask, hybrid_mask, obs_mask)}
    monkeypatch.setattr(admm, "EXACT_COLUMNS", 0)
    monkeypatch.setattr(obs, "EXACT_COLUMNS", 0)
    for find, mask in exact.items():
        single = find(weight, LayerHessian(hessian), 360)
        assert int((~single).sum()) == 360
        losses = [LayerHessian(hessian).loss(weight, refit(weight, m, LayerHessian(hessian))) for m in (mask, single)]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)  # a swap of near ties moves the loss by less


@pytest.mark.parametrize("find", [admm_mask, hybrid_mask, obs_mask])
def test_many_columns_without_damping(find) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    columns = obs.EXACT_COLUMNS + 4  # float32 would lose this Hessian, whose condition number is 1e8
    basis = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64)).Q
    hessian = (basis * torch.logspace(-4, 4, columns, dtype=torch.float64)) @ basis.T
    weight = torch.randn(2, columns, generator=generator, dtype=torch.float64)
    mask = find(weight, LayerHessian(hessian, damping=0.0), 2 * columns - 40)
    assert int(mask.sum()) == 40
    simple = refit(weight, ~smallest(weight.abs(), 2 * columns - 40), LayerHessian(hessian, damping=0.0))
    new = refit(weight, mask, LayerHessian(hessian, damping=0.0))
    assert LayerHessian(hessian).loss(weight, new) < LayerHessian(hessian).loss(weight, simple)


def test_hybrid_does_as_well_as_greedy_obs_at_high_sparsity() -> None:
    weight, hessian = layer(20, 60)
    losses = [
        LayerHessian(hessian).loss(weight, refit(weight, mask, LayerHessian(hessian)))
        for mask in (
            hybrid_mask(weight, LayerHessian(hessian), 1080),
            obs_mask(weight, LayerHessian(hessian), 1080, step=4),
        )
    ]
    assert losses[0] < 1.02 * losses[1]


def test_what_does_not_fit_is_refused() -> None:
    weight, hessian = layer(2, 8)
    with pytest.raises(SettingsError, match="0 iterations"):
        admm_mask(weight, LayerHessian(hessian), 8, iterations=0)
    with pytest.raises(SettingsError, match="preselect=0"):
        hybrid_mask(weight, LayerHessian(hessian), 8, preselect=0.0)
    with pytest.raises(SingularHessianError, match="NaN or infinity"):
        admm_mask(weight, LayerHessian(hessian * float("nan")), 8)
    with pytest.raises(SingularHessianError, match="not positive definite"):
        hybrid_mask(weight, LayerHessian(-hessian), 8)
