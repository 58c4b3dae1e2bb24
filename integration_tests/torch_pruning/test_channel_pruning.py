"""``SBCPruner`` on every wiring: scores, compensation and cuts against least squares and masked originals."""

import copy
from collections.abc import Iterator

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.testing import assert_close

from integration_tests.models.channel_cases import (
    BATCH,
    BOX,
    CASES,
    Kept,
    Plain,
    cells,
    events,
    images,
    last_layer,
    masked_original,
    prepared,
    run_steps,
)
from sbc_plugin import Calibration
from sbc_plugin.core.kernels import filter_causal, lif_box
from sbc_plugin.errors import CalibrationError, SettingsError, UnsupportedModelError
from sbc_plugin.torch_pruning import SBCImportance, SBCPruner, get_pruner

TINY = Calibration(damping=1e-10)  # as good as none, so that plain least squares is the oracle


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_pruned_network_is_the_original_with_inputs_zeroed_and_compensated(case: str, ratio: float, steps: int) -> None:
    make, data, example, run = CASES[case]
    model, x = prepared(make()), data()
    original, kept = copy.deepcopy(model), Kept(model)
    pruner = get_pruner(
        "sbc", model, (example(x),), calibration_data=[x], pruning_ratio=ratio, iterative_steps=steps,
        ignored_layers=[last_layer(model)],
    )  # fmt: skip
    groups = 0
    for _ in range(steps):
        for group in pruner.step(interactive=True):
            kept.cut(group)
            group.prune()
            groups += 1
    assert groups >= 1
    with torch.no_grad():
        expected = run(masked_original(original, model, kept), x)
        # float64: sums in another order; spikes do not flip at this distance
        assert_close(run(model, x), expected, rtol=1e-9, atol=1e-9)


def test_score_and_compensation_of_a_plain_network_are_least_squares_with_the_bias() -> None:
    """conv -> BatchNorm -> ReLU -> conv with bias -> BatchNorm: losses count by the gain behind them."""
    torch.manual_seed(0)
    model = prepared(
        nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.BatchNorm2d(4), nn.Flatten(),
            nn.Linear(4, 3),
        )
    )  # fmt: skip
    x, consumer, norm = images(60), model[3], model[4]
    with torch.no_grad():
        patches = nn.functional.unfold(model[:3](x), 2).transpose(1, 2).reshape(-1, 20)
    design = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], dim=1)
    weight = torch.cat([consumer.weight.flatten(1), consumer.bias[:, None]], dim=1).detach()
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()

    def refit(channels: list[int]) -> tuple[Tensor, Tensor, float]:
        kept = torch.tensor([column // 4 not in channels for column in range(20)] + [True])
        target = design @ weight.mT
        solution = torch.linalg.lstsq(design[:, kept], target).solution
        lost = ((target - design[:, kept] @ solution) * gain).square().sum()
        whole = ((patches @ weight[:, :-1].mT) * gain).square().sum()
        return kept, solution.mT, float(lost / whole)

    importance = SBCImportance([x], calibration=TINY, greedy=False)
    graph = tp.DependencyGraph().build_dependency(model, (x[:1],))
    scores = importance(graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(5))))
    expected = torch.tensor([refit([channel])[2] for channel in range(5)], dtype=torch.float64)
    assert_close(scores, expected, rtol=1e-6, atol=1e-9)  # the damping that is left
    _, solution, _ = refit([1, 4])
    graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1, 4]).prune()
    assert_close(consumer.weight.flatten(1), solution[:, :-1], rtol=1e-6, atol=1e-8)
    assert_close(consumer.bias, solution[:, -1], rtol=1e-6, atol=1e-8)


def test_compensation_of_a_spiking_layer_keeps_the_membrane_with_its_bias_filtered() -> None:
    model = prepared(
        norse.SequentialState(nn.Linear(12, 9), norse.LIFBoxCell(BOX), nn.Linear(9, 4), norse.LIFBoxCell(BOX))
    )
    x = torch.cat([events((12,), seed) for seed in range(30)], dim=1)
    with torch.no_grad():
        spikes = run_steps(norse.SequentialState(model[0], model[1]), x)
    ones = torch.ones(*spikes.shape[:2], 1, dtype=torch.float64)
    design = filter_causal(torch.cat([spikes, ones], dim=-1), lif_box(0.5)).flatten(0, 1)
    weight = torch.cat([model[2].weight, model[2].bias[:, None]], dim=1).detach()
    kept = torch.tensor([True, False, True, True, False, True, True, True, False, True])
    expected = torch.linalg.lstsq(design[:, kept], design @ weight.mT).solution.mT
    pruner = SBCPruner(model, (x[0],), calibration_data=[x], calibration=TINY)
    pruner.DG.get_pruning_group(model[0], tp.prune_linear_out_channels, [1, 4, 8]).prune()
    assert_close(model[2].weight, expected[:, :-1], rtol=1e-6, atol=1e-8)  # the damping that is left
    assert_close(model[2].bias, expected[:, -1], rtol=1e-6, atol=1e-8)


def weights(model: nn.Module) -> Iterator[Tensor]:
    return (parameter.detach().clone() for parameter in model.parameters())


def test_a_group_that_is_skipped_changes_nothing() -> None:
    model, x = prepared(cells()), events()
    before = list(weights(model))
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model[7]])
    assert len(list(pruner.step(interactive=True))) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_groups_come_in_the_order_in_which_they_run() -> None:
    model, x = prepared(cells()), events()
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model[7]])
    roots = [group[0].dep.target.module for group in pruner.step(interactive=True)]
    assert [id(root) for root in roots] == [id(model[0]), id(model[2]), id(model[5])]


def test_importance_alone_does_the_same_as_the_pruner() -> None:
    first, second, x = prepared(cells()), prepared(cells()), events()
    second.load_state_dict(first.state_dict())
    get_pruner("sbc", first, (x[0],), calibration_data=[x], ignored_layers=[first[7]]).step()
    pruner = get_pruner("l1", second, (x[0],), importance=SBCImportance([x]), ignored_layers=[second[7]])
    pruner.step()
    for a, b in zip(weights(first), weights(second), strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)  # other order of groups, so other order of sums


def test_a_channel_that_never_spikes_costs_nothing_and_goes_first() -> None:
    model, x = prepared(cells()), events()
    with torch.no_grad():
        model[5].weight[3] = 0.0
    pruner = SBCPruner(model, (x[0],), calibration_data=[x], pruning_ratio=0.1, ignored_layers=[model[7]])
    group = pruner.DG.get_pruning_group(model[5], tp.prune_linear_out_channels, list(range(10)))
    scores = pruner.estimate_importance(group)
    assert scores[3] < 1e-20 and scores.max() > 1e-3


def test_global_pruning_meets_its_ratio_with_ties() -> None:
    model, x = prepared(cells()), events()
    with torch.no_grad():
        model[5].weight[:6] = 0.0  # six silent channels, all worth nothing
    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=[x], pruning_ratio=3 / 24, global_pruning=True,
        ignored_layers=[model[7]],
    )  # fmt: skip
    pruner.step()
    assert [model[0].out_channels, model[2].out_channels, model[5].out_features] == [8, 6, 7]


def test_unknown_method_and_missing_data_are_refused() -> None:
    model, x = prepared(cells()), events()
    with pytest.raises(SettingsError, match="'magnitud' is unknown; use one of 'sbc', 'random', 'l1'"):
        get_pruner("magnitud", model, (x[0],))
    with pytest.raises(CalibrationError, match="pass calibration_data, an iterable of batches"):
        get_pruner("sbc", model, (x[0],))


def test_two_pruners_share_no_dict() -> None:
    models = [prepared(Plain()), prepared(Plain())]
    pruners = [get_pruner("sbc", model, (images(1),), calibration_data=[images()]) for model in models]
    assert pruners[0].in_channel_groups is not pruners[1].in_channel_groups
    assert set(pruners[1].in_channel_groups) <= set(models[1].modules())


def test_a_grouped_convolution_is_not_cut_unevenly() -> None:
    model, x = prepared(Plain()), images()
    before = list(weights(model))
    pruner = SBCPruner(model, (x[:1],), calibration_data=[x])
    with pytest.raises(UnsupportedModelError, match="'grouped': its 2 groups would lose different inputs"):
        pruner.DG.get_pruning_group(model.first, tp.prune_conv_out_channels, [0, 1]).prune()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    pruner.DG.get_pruning_group(model.first, tp.prune_conv_out_channels, [0, 3]).prune()
    assert model(x).shape == (BATCH, 3)


def test_channels_that_cannot_be_dealt_to_heads_are_refused() -> None:
    model, x = prepared(Plain()), images()
    pruner = SBCPruner(model, (x[:1],), calibration_data=[x])
    group = pruner.DG.get_pruning_group(model.first, tp.prune_conv_out_channels, list(range(6)))
    with pytest.raises(SettingsError, match="6 channels cannot be dealt to 4 equal parts"):
        pruner.statistics(group, ties=4)
