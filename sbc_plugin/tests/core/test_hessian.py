"""The accumulator against one product over all samples; what solvers ask of a Hessian against dense algebra."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.hessian import (
    LayerHessian,
    cholesky,
    inverse,
)
from sbc_plugin.errors import CalibrationError, SettingsError, SingularHessianError


def filled(*blocks: Tensor, groups: int | None = None) -> HessianAccumulator:
    accumulator = HessianAccumulator(blocks[0].shape[-1], groups)
    for block in blocks:
        accumulator.add(block)
    return accumulator


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_hessian_is_twice_the_mean_of_outer_products(groups: int | None) -> None:
    x = torch.randn(*([groups] if groups else []), 50, 4, dtype=torch.float64)
    accumulator = filled(x, groups=groups)
    expected = 2 * torch.einsum("...ni,...nj->...ij", x, x) / 50
    assert accumulator.count == 50 and accumulator.columns == 4
    assert_close(accumulator.hessian(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("groups", [None, 2])
def test_merged_parts_equal_the_whole(groups: int | None) -> None:
    x = torch.randn(*([groups] if groups else []), 60, 5, dtype=torch.float64)
    first, second = filled(x[..., :7, :], x[..., 7:20, :], groups=groups), filled(x[..., 20:, :], groups=groups)
    untouched = second.sum_xx.clone()
    first.merge(second)
    assert first.count == 60 and torch.equal(second.sum_xx, untouched) and second.count == 40
    # the order of 60 additions in float64
    assert_close(first.hessian(), filled(x, groups=groups).hessian(), rtol=1e-14, atol=1e-14)


def test_merging_is_exact_for_spikes_whatever_the_parts() -> None:
    """Counts of coincidences are whole numbers: sums of them are exact in any order."""
    x = (torch.rand(300, 6) < 0.2).float()
    whole = filled(x)
    for size in (1, 7, 100):
        parts = [filled(part) for part in x.split(size)]
        for part in parts[1:]:
            parts[0].merge(part)
        assert torch.equal(parts[0].sum_xx, whole.sum_xx) and parts[0].count == whole.count


def test_sums_are_float64_where_products_are_float32() -> None:
    """A float32 sum stops at 2^24, where adding 1 changes nothing."""
    accumulator = HessianAccumulator(1)
    accumulator.add(torch.tensor([[4096.0]]))
    for _ in range(10):
        accumulator.add(torch.ones(1, 1))
    assert accumulator.sum_xx.dtype == torch.float64
    assert accumulator.sum_xx.item() == 2**24 + 10


def test_products_of_float64_samples_are_float64() -> None:
    x = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert_close(filled(x + 1).hessian(), 2 * (x + 1).mT @ (x + 1), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_narrow_samples_are_widened_before_the_product(dtype: torch.dtype) -> None:
    x = torch.ones(1000, 2).to(dtype)
    assert filled(x).hessian().tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_no_samples_in_a_block_change_nothing() -> None:
    accumulator = filled(torch.ones(3, 2), torch.ones(0, 2))
    assert accumulator.count == 3


@pytest.mark.parametrize(
    ("groups", "shape"), [(None, (3, 5)), (None, (4,)), (None, (1, 3, 4)), (2, (3, 4)), (2, (3, 5, 4)), (2, (2, 5, 3))]
)
def test_samples_of_another_shape(groups: int | None, shape: tuple[int, ...]) -> None:
    accumulator = HessianAccumulator(4, groups)
    with pytest.raises(CalibrationError, match=r"samples have shape .* expected \(\.\.\., n, 4\)"):
        accumulator.add(torch.zeros(shape))
    assert accumulator.count == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_leave_the_sum_as_it_was(value: float) -> None:
    accumulator = filled(torch.eye(3))
    for position in range(3):
        bad = torch.eye(3)
        bad[1, position] = value
        with pytest.raises(CalibrationError, match="NaN or infinity"):
            accumulator.add(bad)
    assert torch.equal(accumulator.hessian(), 2 / 3 * torch.eye(3, dtype=torch.float64)) and accumulator.count == 3


def test_merge_wants_the_same_shape() -> None:
    with pytest.raises(CalibrationError, match=r"cannot merge a Hessian \(3, 3\) into one of \(2, 4, 4\)"):
        HessianAccumulator(4, 2).merge(HessianAccumulator(3))


def test_hessian_of_nothing() -> None:
    with pytest.raises(CalibrationError, match="no sample reached this layer"):
        HessianAccumulator(4).hessian()


def test_damping_is_relative_to_each_groups_own_diagonal() -> None:
    hessian = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.tensor([10.0, 30.0]))])
    result = LayerHessian(hessian, damping=0.1).damped()
    assert_close(result[0], torch.diag(torch.tensor([1.2, 3.2])))
    assert_close(result[1], torch.diag(torch.tensor([12.0, 32.0])))
    assert torch.equal(hessian[0], torch.diag(torch.tensor([1.0, 3.0])))


def test_a_silent_group_is_damped_by_the_mean_of_all() -> None:
    hessian = torch.stack([torch.eye(3), torch.zeros(3, 3)]).double()
    result = LayerHessian(hessian, damping=0.1).damped()
    assert_close(result, torch.stack([1.1 * torch.eye(3), 0.05 * torch.eye(3)]).double())


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6)])
def test_inverse_and_factor(shape: tuple[int, ...]) -> None:
    root = torch.randn(shape, dtype=torch.float64)
    hessian = LayerHessian(root @ root.mT, damping=0.1).damped()
    # condition numbers of about 1e3
    assert_close(inverse(hessian) @ hessian, torch.eye(6).double().expand(shape), rtol=0, atol=1e-11)
    factor = cholesky(hessian)
    assert_close(factor @ factor.mT, hessian)
    assert torch.equal(factor, factor.tril())


def samples_of(*groups: int) -> Tensor:
    """Float64 samples (*groups, 30, 6); column 2 is dead everywhere, column 4 in the last group."""
    samples = torch.randn(*groups, 30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples[..., 2] = 0
    samples.reshape(-1, 30, 6)[-1, :, 4] = 0
    return samples


def hessian_of(*groups: int, damping: float = 0.05) -> LayerHessian:
    samples = samples_of(*groups)
    return LayerHessian(2 * samples.mT @ samples / 30, damping=damping)


@pytest.mark.parametrize("groups", [(), (3,)])
def test_dead_columns_are_those_without_a_spike(groups: tuple[int, ...]) -> None:
    expected = (samples_of(*groups) == 0).all(-2).reshape(-1, 6)
    assert torch.equal(hessian_of(*groups).dead, expected) and expected.sum(1).tolist() == [1, 1, 2][-len(expected) :]


def test_dead_weights_are_those_of_the_rows_own_hessian() -> None:
    matrix = torch.stack([torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))])
    assert LayerHessian(matrix).dead_weights(2).tolist() == [[False, True], [True, False]]
    assert LayerHessian(matrix, torch.tensor([1, 1])).dead_weights(2).tolist() == [[True, False], [True, False]]
    assert LayerHessian(matrix[0]).dead_weights(3).tolist() == [[False, True]] * 3


@pytest.mark.parametrize("groups", [(), (3,)])
def test_damping_inverse_and_factor_are_those_of_each_group_alone(groups: tuple[int, ...]) -> None:
    hessian = hessian_of(*groups)
    damped, factor, inverted = (x.reshape(-1, 6, 6) for x in (hessian.damped(), hessian.cholesky(), hessian.inverse()))
    for group, alone in enumerate(hessian.groups):
        expected = alone + 0.05 * alone.trace() / 6 * torch.eye(6, dtype=torch.float64)
        assert_close(damped[group], expected, rtol=1e-14, atol=0)  # a sum of six numbers in another order
        assert_close(factor[group] @ factor[group].mT, expected, rtol=1e-12, atol=1e-12)
        assert_close(inverted[group], torch.linalg.inv(expected), rtol=1e-11, atol=1e-11)  # condition of about 100
    shape = hessian.matrix.shape
    assert hessian.damped().shape == hessian.cholesky().shape == hessian.inverse().shape == shape


@pytest.mark.parametrize("groups", [(), (3,)])
def test_positive_definite_without_damping_where_dead_columns_are_left_out(groups: tuple[int, ...]) -> None:
    hessian = hessian_of(*groups, damping=0.0)
    found = hessian.positive_definite()
    assert found.shape == (len(hessian.groups), 6, 6) and (torch.linalg.eigvalsh(found) > 0).all()
    for alone, whole, dead in zip(hessian.groups, found, hessian.dead, strict=True):
        assert torch.equal(whole[~dead][:, ~dead], alone[~dead][:, ~dead])
        assert torch.equal(whole[dead], torch.eye(6, dtype=torch.float64)[dead])
        assert torch.equal(whole[:, dead], torch.eye(6, dtype=torch.float64)[:, dead])


@pytest.mark.parametrize("damping", [-0.1, float("inf"), float("nan")])
def test_a_damping_that_is_no_fraction_is_refused(damping: float) -> None:
    with pytest.raises(SettingsError, match=f"damping is {damping}, expected a finite fraction"):
        hessian_of(damping=damping).positive_definite()


@pytest.mark.parametrize("groups", [(), (3,)])
def test_each_group_alone_has_its_matrix_and_the_damping(groups: tuple[int, ...]) -> None:
    hessian = hessian_of(*groups)
    alone = list(hessian.each())
    assert torch.equal(torch.stack([one.matrix for one in alone]), hessian.groups) and hessian.columns == 6
    assert all(one.damping == 0.05 and one.row_groups is None for one in alone)
    assert all(torch.equal(one.dead[0], dead) for one, dead in zip(alone, hessian.dead, strict=True))


@pytest.mark.parametrize("owners", [None, [2, 0, 0, 1, 2, 1]])
def test_losses_are_those_of_the_samples_of_each_row(owners: list[int] | None) -> None:
    samples, hessian = samples_of(3), hessian_of(3)
    hessian = LayerHessian(hessian.matrix, None if owners is None else torch.tensor(owners))
    weight, new = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = list(enumerate(owners or [0, 0, 1, 1, 2, 2]))
    lost = torch.stack([(samples[group] @ (weight[row] - new[row])).square().mean() for row, group in rows])
    sent = torch.stack([(samples[group] @ weight[row]).square().mean() for row, group in rows])
    # 1/2 e^T H e with H = 2 X^T X / count is the mean square of X e
    assert_close(hessian.quadratic(weight - new), lost, rtol=1e-12, atol=0)
    assert hessian.loss(weight, new) == pytest.approx(float(lost.sum() / sent.sum()), rel=1e-12)


def test_a_hessian_stays_as_it_was() -> None:
    hessian = hessian_of(3)
    before = hessian.matrix.clone()
    hessian.damped(), hessian.positive_definite(), hessian.cholesky(), hessian.inverse()
    hessian.loss(torch.ones(3, 6), torch.zeros(3, 6))
    assert torch.equal(hessian.matrix, before)


def test_singular_hessians_say_what_to_do() -> None:
    singular = torch.ones(3, 3)
    with pytest.raises(SingularHessianError, match=r"3 columns is not positive definite, damping=0; raise `damping`"):
        inverse(singular, 0.0)
    with pytest.raises(SingularHessianError, match="not positive definite; raise"):
        cholesky(torch.stack([torch.eye(3), -torch.eye(3)]))
    assert inverse(LayerHessian(singular, damping=0.01).damped(), 0.01).isfinite().all()


def test_nan_is_told_apart_from_not_positive_definite() -> None:
    with pytest.raises(SingularHessianError, match="holds NaN or infinity; check the calibration data"):
        cholesky(torch.full((2, 2), float("nan")))


def test_quadratic_is_half_the_form_of_each_row() -> None:
    root, error = torch.randn(2, 4, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    hessian, groups = root @ root.mT, torch.tensor([1, 0, 0, 1, 1, 0])
    expected = torch.stack([error[row] @ hessian[groups[row]] @ error[row] / 2 for row in range(6)])
    assert_close(LayerHessian(hessian, groups).quadratic(error), expected)
    assert_close(LayerHessian(hessian[0]).quadratic(error), torch.stack([e @ hessian[0] @ e / 2 for e in error]))
    assert_close(
        LayerHessian(hessian).quadratic(error), LayerHessian(hessian, torch.tensor([0, 0, 0, 1, 1, 1])).quadratic(error)
    )


def test_layer_loss_is_the_share_of_the_output_lost() -> None:
    x, weight = torch.randn(40, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    new = weight * (torch.rand(3, 5) < 0.5)
    expected = (x @ (weight - new).T).square().sum() / (x @ weight.T).square().sum()
    assert LayerHessian(filled(x).hessian()).loss(weight, new) == pytest.approx(expected.item(), rel=1e-12)
    assert LayerHessian(filled(x).hessian()).loss(weight, weight) == 0
    assert LayerHessian(filled(x).hessian()).loss(weight, torch.zeros_like(weight)) == pytest.approx(1)
    assert LayerHessian(torch.eye(2)).loss(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_rows_are_dealt_evenly_unless_told() -> None:
    assert LayerHessian(torch.zeros(3, 3)).owner(4).tolist() == [0] * 4
    assert LayerHessian(torch.zeros(3, 2, 2)).owner(6).tolist() == [0, 0, 1, 1, 2, 2]
    assert LayerHessian(torch.zeros(2, 2, 2), torch.tensor([1, 0, 1])).owner(3).tolist() == [1, 0, 1]
    with pytest.raises(SettingsError, match="5 rows cannot be dealt to 2 Hessians; pass `row_groups`"):
        LayerHessian(torch.zeros(2, 2, 2)).owner(5)
