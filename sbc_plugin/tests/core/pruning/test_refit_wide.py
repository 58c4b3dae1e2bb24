"""Wide systems are factored in single precision and refined: the numbers are those of double precision."""

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning import refit as module
from sbc_plugin.core.pruning.refit import refit


def _layer(columns: int, rank: int, damping: float) -> tuple[Tensor, Tensor, LayerHessian]:
    generator = torch.Generator().manual_seed(rank)
    samples = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    hessian = LayerHessian(samples.mT @ samples * 2 / rank, damping=damping)
    weight = torch.randn(6, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, columns, generator=generator) > torch.tensor([0.99, 0.8, 0.6, 0.3, 0.1, 0.0])[:, None]
    return weight, mask, hessian


@pytest.mark.parametrize(("rank", "damping"), [(60, 0.01), (2000, 0.01), (60, 1e-5), (60, 1e-7)])
def test_every_row_is_at_its_optimum(rank: int, damping: float) -> None:
    weight, mask, hessian = _layer(module.SINGLE_COLUMNS + 8, rank, damping)
    new, damped = refit(weight, mask, hessian), hessian.damped()
    for before, after, kept in zip(weight, new, mask, strict=True):
        right = damped[kept][:, ~kept] @ before[~kept]
        expected = before[kept] + torch.linalg.solve(damped[kept][:, kept], right)
        torch.testing.assert_close(after[kept], expected, rtol=1e-6, atol=1e-6)
        assert not after[~kept].any()


def test_where_single_precision_does_not_converge_double_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, mask, hessian = _layer(module.SINGLE_COLUMNS + 8, 60, 1e-9)
    refused: list[bool] = []
    refined = module._Systems.refined

    def noted(*given: object) -> Tensor | None:
        result = refined(*given)  # type: ignore[arg-type]
        refused.append(result is None)
        return result

    monkeypatch.setattr(module._Systems, "refined", noted)
    refit(weight, mask, hessian)
    assert any(refused)


@pytest.mark.parametrize("direct", [0, 10**9])
def test_narrow_systems_may_take_double_precision_at_once(monkeypatch: pytest.MonkeyPatch, direct: int) -> None:
    weight, mask, hessian = _layer(module.SINGLE_COLUMNS + 8, 2000, 0.01)
    expected = refit(weight, mask, hessian)
    monkeypatch.setattr(module, "DIRECT", direct)
    torch.testing.assert_close(refit(weight, mask, hessian), expected, rtol=1e-7, atol=1e-7)


def test_what_has_failed_is_not_tried_on_the_rows_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, hessian = _layer(module.SINGLE_COLUMNS + 8, 60, 1e-9)
    kept = torch.rand(6, weight.shape[1], generator=torch.Generator().manual_seed(0)) > 0.6
    monkeypatch.setattr(module, "BATCH_ELEMENTS", 1)
    calls: list[bool] = []
    monkeypatch.setattr(module._Systems, "refined", lambda *given: calls.append(True))
    expected, damped = refit(weight, kept, hessian), hessian.damped()
    assert len(calls) == 1
    for before, after, own in zip(weight, expected, kept, strict=True):
        solution = torch.linalg.solve(damped[own][:, own], damped[own] @ before)
        torch.testing.assert_close(
            (after[own] - solution) @ damped[own][:, own], torch.zeros_like(solution), atol=1e-5, rtol=0
        )
