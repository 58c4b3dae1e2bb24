import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning import prune as pruning
from sbc_plugin.core.pruning import refit as refit_module
from sbc_plugin.core.pruning.patterns import parse_pattern, pattern_order, pattern_zeros
from sbc_plugin.core.pruning.prune import magnitude_mask, prune
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.errors import CalibrationError, SettingsError, SingularHessianError
from sbc_plugin.settings import SOLVERS

ROWS, COLUMNS = 6, 24
DEAD = [1, 2, 3, 7, 12, 13, 14, 15]  # three of a group of four, and a whole block


def samples_of(dead: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    samples = torch.randn(60, COLUMNS, generator=generator, dtype=torch.float64) @ mix
    if dead:
        samples[:, DEAD] = 0.0
    return samples


def hessian_of(samples: Tensor) -> Tensor:
    return 2 * samples.T @ samples / len(samples)


def random_weight(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HESSIANS = {
    "correlated": hessian_of(samples_of()),
    "identity": torch.eye(COLUMNS, dtype=torch.float64),
    "dead": hessian_of(samples_of(dead=True)),
    "groups": torch.stack([hessian_of(samples_of(dead=i == 1, seed=i)) for i in range(3)]),
    "silent": torch.zeros(COLUMNS, COLUMNS, dtype=torch.float64),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS)
@pytest.mark.parametrize("weight", [random_weight(), torch.ones(ROWS, COLUMNS)], ids=["random", "ties"])
def test_budgets_and_patterns_hold_exactly(solver: str, hessian: Tensor, weight: Tensor) -> None:
    for text, positions in [("unstructured", 1), ("2:4", 1), ("2:4", 2), ("1:3", 4), ("block:4", 1), ("block:2", 3)]:
        pattern = parse_pattern(text)
        for zeros in {pattern_zeros(pattern, ROWS, COLUMNS, z) for z in (0, 50, 97, 144)}:
            solution = prune(weight, LayerHessian(hessian), zeros, pattern=text, positions=positions, solver=solver)
            assert int((~solution.mask).sum()) == zeros
            assert not solution.weight[~solution.mask].any()
            assert solution.weight.isfinite().all()
            assert solution.weight.dtype == weight.dtype
            grouped = solution.mask[:, pattern_order(pattern, COLUMNS, positions)].view(ROWS, -1, pattern.size)
            if pattern.kind == "n:m":
                assert (grouped.sum(-1) == pattern.kept).all()
            if pattern.kind == "block":
                assert torch.equal(grouped.all(-1), grouped.any(-1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_zeros_return_the_weight_and_all_zeros_nothing(solver: str) -> None:
    weight, hessian = random_weight().float(), HESSIANS["dead"]
    kept = prune(weight, LayerHessian(hessian), 0, solver=solver)
    assert torch.equal(kept.weight, weight) and kept.mask.all() and kept.loss == 0.0
    gone = prune(weight, LayerHessian(hessian), weight.numel(), solver=solver)
    assert not gone.weight.any() and not gone.mask.any() and gone.loss == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:4"])
def test_arguments_stay_as_they_were(solver: str, text: str) -> None:
    weight, hessian, groups = random_weight(), HESSIANS["groups"].clone(), torch.tensor([2, 0, 1, 1, 0, 2])
    scale = torch.linspace(0, 2, ROWS)
    before = [x.clone() for x in (weight, hessian, groups, scale)]
    prune(weight, LayerHessian(hessian, groups), 72, pattern=text, solver=solver, row_scale=scale)
    for argument, copy in zip((weight, hessian, groups, scale), before, strict=True):
        assert torch.equal(argument, copy)


@pytest.mark.parametrize("kept", [1, 5, 12, 19, 23])  # solved by what is kept, or by what is removed
def test_refit_is_least_squares_on_the_kept_columns(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, weight = samples_of(), random_weight()
    monkeypatch.setattr(refit_module, "BATCH_ELEMENTS", 2 * 20**2)  # several batches, padded
    order = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(2)).argsort(1).argsort(1)
    mask = order < (kept + torch.tensor([0, 1, 0, -1, 0, 0]))[:, None]
    new = refit(weight, mask, LayerHessian(hessian_of(samples), damping=0.0))
    for r in range(ROWS):
        expected = torch.linalg.lstsq(samples[:, mask[r]], samples @ weight[r]).solution
        assert_close(new[r, mask[r]], expected, rtol=1e-7, atol=1e-7)  # normal equations square the condition
    assert not new[~mask].any()


def test_refit_with_damping_is_least_squares_with_ridge_samples() -> None:
    samples, weight = samples_of(), random_weight()
    hessian = hessian_of(samples)
    ridge = (0.1 * hessian.diagonal().mean() * len(samples) / 2).sqrt() * torch.eye(COLUMNS, dtype=torch.float64)
    longer = torch.cat([samples, ridge])
    mask = magnitude_mask(weight, 80)
    new = refit(weight, mask, LayerHessian(hessian, damping=0.1))
    for r in range(ROWS):
        expected = torch.linalg.lstsq(longer[:, mask[r]], longer @ weight[r]).solution
        assert_close(new[r, mask[r]], expected, rtol=1e-9, atol=1e-9)


def test_refit_uses_the_hessian_of_each_row_and_leaves_dead_columns_alone() -> None:
    weight, hessian, owner = random_weight(), HESSIANS["groups"], torch.tensor([1, 0, 2, 2, 1, 0])
    mask = magnitude_mask(weight, 90)
    new = refit(weight, mask, LayerHessian(hessian, owner))
    for r in range(ROWS):
        assert_close(
            new[r : r + 1],
            refit(weight[r : r + 1], mask[r : r + 1], LayerHessian(hessian[owner[r]])),
            rtol=1e-9,
            atol=1e-9,
        )
    dead = mask & (hessian.diagonal(dim1=1, dim2=2)[owner] == 0)
    assert dead.any() and torch.equal(new[dead], weight[dead])


@pytest.mark.parametrize("solver", ["obs", "admm", "hybrid"])
def test_weights_on_dead_columns_go_first_the_smallest_first(solver: str) -> None:
    weight, hessian = random_weight(), HESSIANS["dead"]
    dead = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    dead[:, DEAD] = True
    few = prune(weight, LayerHessian(hessian), 10, solver=solver)
    smallest_dead = weight.abs().masked_fill(~dead, float("inf")).flatten().argsort()[:10]
    assert sorted(smallest_dead.tolist()) == (~few.mask).flatten().nonzero()[:, 0].tolist()
    assert torch.equal(few.weight[few.mask], weight[few.mask]) and few.loss == 0.0
    undamped = LayerHessian(hessian, damping=0.0)  # without the dead columns it is positive definite
    more = prune(weight, undamped, int(dead.sum()) + 10, solver=solver)
    assert not more.mask[dead].any()
    live = [column for column in range(COLUMNS) if column not in DEAD]
    alone = prune(weight[:, live], LayerHessian(hessian[live][:, live], damping=0.0), 10, solver=solver)
    assert torch.equal(more.mask[:, live], alone.mask)


@pytest.mark.parametrize("solver", ["obs", "admm", "hybrid"])
@pytest.mark.parametrize("text", ["unstructured", "1:4", "block:4"])
def test_solvers_beat_the_refit_of_a_magnitude_mask(solver: str, text: str) -> None:
    weight, hessian = random_weight(), HESSIANS["correlated"]
    simple = prune(weight, LayerHessian(hessian), 108, pattern=text, solver="magnitude")
    assert prune(weight, LayerHessian(hessian), 108, pattern=text, solver=solver).loss < simple.loss


@pytest.mark.parametrize("solver", ["obs", "admm", "hybrid"])
def test_row_scale_ranks_rows_and_changes_no_solution(solver: str) -> None:
    weight, hessian, scale = random_weight(), HESSIANS["correlated"], torch.tensor([0.01, -1.0, 1.0, 1.0, 3.0, 0.0])
    solution = prune(weight, LayerHessian(hessian), 72, solver=solver, row_scale=scale)
    scaled = weight * scale[:, None].double()
    assert torch.equal(solution.mask, prune(scaled, LayerHessian(hessian), 72, solver=solver).mask)
    assert torch.equal(solution.weight, refit(weight, solution.mask, LayerHessian(hessian)))
    assert solution.loss == pytest.approx(LayerHessian(hessian).loss(scaled, solution.weight * scale[:, None].double()))
    assert not solution.mask[[0, 5]].any()  # gains of 0.01 and 0: 48 of the 72 cheapest weights
    plain = prune(weight, LayerHessian(hessian), 72, solver="magnitude", row_scale=scale)
    assert torch.equal(plain.mask, magnitude_mask(weight, 72))


def test_without_refit_the_survivors_stay() -> None:
    weight, hessian = random_weight(), HESSIANS["correlated"]
    solution = prune(weight, LayerHessian(hessian), 72, refit=False)
    assert torch.equal(solution.weight, weight * solution.mask)
    assert solution.loss == pytest.approx(LayerHessian(hessian).loss(weight, weight * solution.mask))
    assert prune(weight, LayerHessian(hessian), 72).loss < solution.loss


def test_auto_is_greedy_only_where_that_is_affordable_and_better(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = random_weight(), HESSIANS["correlated"]
    masks = {
        solver: prune(weight, LayerHessian(hessian), 120, solver=solver).mask for solver in ("auto", "obs", "hybrid")
    }
    assert not torch.equal(masks["obs"], masks["hybrid"])  # else the next lines tell nothing
    assert torch.equal(masks["auto"], masks["obs"])
    monkeypatch.setattr(pruning, "SMALL", 0)
    assert torch.equal(prune(weight, LayerHessian(hessian), 120).mask, masks["hybrid"])
    monkeypatch.undo()
    masks = {
        s: prune(weight, LayerHessian(hessian), 108, pattern="1:4", solver=s).mask for s in ("auto", "obs", "admm")
    }
    assert not torch.equal(masks["obs"], masks["admm"])
    assert torch.equal(masks["auto"], masks["admm"])


def test_bfloat16_weights_come_back_as_bfloat16() -> None:
    solution = prune(random_weight().bfloat16(), LayerHessian(HESSIANS["correlated"].float()), 72)
    assert solution.weight.dtype == torch.bfloat16
    assert int((~solution.mask).sum()) == 72


def test_what_does_not_fit_is_refused_by_name_and_number() -> None:
    weight, hessian = random_weight(), HESSIANS["correlated"]
    with pytest.raises(SettingsError, match="solver 'best' is not known; expected one of auto, magnitude"):
        prune(weight, LayerHessian(hessian), 3, solver="best")
    with pytest.raises(SettingsError, match="145 zeros asked for in a layer of 6 x 24 = 144 weights"):
        prune(weight, LayerHessian(hessian), 145)
    with pytest.raises(SettingsError, match='pattern "2:4" has 72 zeros in 6 x 24 weights, not the 70 asked for'):
        prune(weight, LayerHessian(hessian), 70, pattern="2:4")
    with pytest.raises(SettingsError, match="row_scale of shape"):
        prune(weight, LayerHessian(hessian), 3, row_scale=torch.ones(2))
    with pytest.raises(SettingsError, match="damping is -1"):
        prune(weight, LayerHessian(hessian, damping=-1), 3)
    with pytest.raises(CalibrationError, match=r"weight has 24 columns, its Hessian has shape \(5, 5\)"):
        prune(weight, LayerHessian(torch.eye(5)), 3)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        prune(weight * float("nan"), LayerHessian(hessian), 3)
    few = samples_of()[:4]
    with pytest.raises(SingularHessianError, match="raise `damping` or add calibration data"):
        prune(weight, LayerHessian(hessian_of(few), damping=0.0), 3)
