"""Few samples in the place of a Hessian: every number against the Hessian formed as a matrix."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.pruning import channels, dual_elimination
from sbc_plugin.core.pruning.channels import Reader, channel_losses, elimination_scores, without_columns
from sbc_plugin.core.pruning.primal_dual import DualHessian, Hessian, PrimalHessian
from sbc_plugin.errors import SingularHessianError

# float64, condition numbers up to 1e5
assert_close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)
N, COLUMNS, ROWS = 9, 40, 12


def inputs(constant: float | None, seed: int = 0) -> DualHessian:
    """Correlated samples, two dead columns, and perhaps a last column that is nearly constant and has no ridge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(N, 4, generator=generator).double() @ torch.rand(4, COLUMNS, generator=generator).double()
    x += 0.1 * torch.randn(N, COLUMNS, generator=generator).double()
    x[:, [3, 17]] = 0.0
    ridge = torch.full((COLUMNS,), 0.01 * float(x.square().mean()), dtype=torch.float64)
    ridge[[3, 17]] = 1.0
    if constant is not None:
        x[:, -1] = constant * torch.linspace(0.5, 1.0, N).double()
        ridge[-1] = 0.0 if constant else 1.0
    return DualHessian(x, ridge)


def primal(dual: DualHessian) -> PrimalHessian:
    x = dual.samples.double()
    return PrimalHessian(2 / len(x) * x.mT @ x + torch.diag(dual.ridge))


def weights(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


EACH = torch.arange(COLUMNS)
CHANNELS: dict[str, Tensor] = {
    "one column each": EACH.where(EACH < COLUMNS - 1, -1),
    "blocks of five, as after flattening": (EACH // 5).where(EACH < 35, -1),
    "ragged and shuffled": torch.tensor([(7 * c) % 6 for c in range(COLUMNS - 4)] + [-1, 0, -1, -1]),
    "some channels feed nothing": torch.tensor([2 * (c // 10) for c in range(COLUMNS - 1)] + [-1]),
}
ROW_CHANNELS = {
    "all rows stay": torch.full((ROWS,), -1),
    "rows go with channels, two with the same": torch.tensor([0, 1, -1, 3, 1, 2, -1, -1, 4, 5, -1, 0]),
}
CONSTANTS = {"no bias": None, "bias": 1.0, "bias that stayed silent": 0.0}


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
def test_both_forms_are_the_same_matrix(constant: float | None) -> None:
    dual = inputs(constant)
    matrix = primal(dual)
    weight, ridge = weights(), torch.rand(COLUMNS, dtype=torch.float64)
    kept = EACH % 3 > 0
    changes: list[Callable[[Hessian], Hessian]] = [
        lambda h: h,
        lambda h: h.damped(ridge),
        lambda h: h.part(kept),
        lambda h: h.part(slice(-1)),
    ]
    for change, mine in zip(changes, (weight, weight, weight[:, kept], weight[:, :-1]), strict=True):
        first, second = change(dual), change(matrix)
        assert first.columns == second.columns
        assert_close(first.matrix, second.matrix)
        assert_close(first.diagonal(), second.diagonal())
        assert_close(first.loss(mine), second.loss(mine))


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("rows", ROW_CHANNELS.values(), ids=ROW_CHANNELS)
@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("full", [0.5, 1.0])  # of the columns left, others are dropped
def test_scores_and_order_are_those_of_the_matrix(
    constant: float | None, rows: Tensor, channel: Tensor, full: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_elimination, "FULL", full)
    monkeypatch.setattr(dual_elimination, "CHUNK", 7)
    monkeypatch.setattr(channels, "STEPS", 16)
    dual, weight, count = inputs(constant), weights(), int(channel.max()) + 2
    mine, theirs = (Reader(weight, form, channel, rows) for form in (dual, primal(dual)))
    other = Reader(weights(3), primal(inputs(None, seed=1)), channel, torch.full((3,), -1))
    assert_close(channel_losses([mine, other], count), channel_losses([theirs, other], count))
    for limit in (None, count // 2):
        found, expected = (elimination_scores([each, other], count, limit) for each in (mine, theirs))
        assert_close(found, expected)
        assert found.argsort().tolist() == expected.argsort().tolist()
    assert_close(elimination_scores([mine], count), elimination_scores([theirs], count))
    assert torch.equal(weight, weights())


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("gone", [[], [0], [3, 17], list(range(0, 38, 2)), list(range(39))], ids=str)
def test_compensation_is_that_of_the_matrix(constant: float | None, gone: list[int]) -> None:
    dual, weight = inputs(constant), weights()
    removed = torch.zeros(COLUMNS, dtype=torch.bool)
    removed[gone] = True
    found = without_columns(weight, dual, removed)
    assert_close(found, without_columns(weight, primal(dual), removed))
    assert torch.equal(weight, weights()) and not found[:, removed].any()
    # What is left of the statistics serves the next cut.
    if 0 < len(gone) < 30:
        kept, again = ~removed, torch.arange(COLUMNS - len(gone)) < 2
        assert_close(
            without_columns(found[:, kept], dual.part(kept), again),
            without_columns(found[:, kept], primal(dual).part(kept), again),
        )


def test_compensation_is_ridge_regression_on_the_samples() -> None:
    """Without any Hessian: least squares on samples, and one more row for each ridge."""
    dual, weight = inputs(1.0), weights()
    removed = EACH % 3 == 1
    kept = ~removed
    x = dual.samples * (2 / N) ** 0.5
    left = torch.cat([x[:, kept], torch.diag(dual.ridge.sqrt())[kept][:, kept]])
    target = torch.cat([x[:, removed] @ weight[:, removed].mT, torch.zeros(int(kept.sum()), ROWS).double()])
    expected = weight[:, kept] + torch.linalg.lstsq(left, target).solution.mT
    assert_close(without_columns(weight, dual, removed)[:, kept], expected)


def test_single_precision_samples_are_computed_with_in_double_precision() -> None:
    dual = inputs(1.0)
    single = DualHessian(dual.samples.float(), dual.ridge)
    channel, rows = CHANNELS["one column each"], ROW_CHANNELS["all rows stay"]
    found, expected = (Reader(weights(), form, channel, rows) for form in (single, primal(single)))
    assert_close(elimination_scores([found], COLUMNS), elimination_scores([expected], COLUMNS))


def test_samples_with_nan_are_an_error() -> None:
    dual = inputs(None)
    dual.samples[0, 0] = float("nan")
    reader = Reader(weights(), dual, CHANNELS["one column each"], ROW_CHANNELS["all rows stay"])
    with pytest.raises(SingularHessianError, match="NaN or infinity"):
        without_columns(weights(), dual, EACH < 2)
    with pytest.raises(SingularHessianError, match="NaN or infinity"):
        channel_losses([reader], COLUMNS)
