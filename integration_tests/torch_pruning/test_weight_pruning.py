"""Single weights through torch-pruning's door: patterns, steps, and masks that fine-tuning keeps."""

import pytest
import torch
from torch import nn

from integration_tests.models.channel_cases import Plain, cells, events, images, prepared, run_steps
from integration_tests.models.one_shot import compress
from sbc_plugin import Prune
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.torch_pruning import get_pruner


def test_one_step_is_what_compress_does() -> None:
    model, x = prepared(cells()), events()
    expected, _ = compress(model, [x], prune=Prune(0.5))
    get_pruner("sbc", model, x[0], calibration_data=[x], pattern="unstructured", pruning_ratio=0.5).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name


def test_steps_go_down_to_the_ratio_and_zeros_stay() -> None:
    model, x = prepared(cells()), events()
    pruner = get_pruner("sbc", model, x[0], calibration_data=[x], pattern="unstructured", pruning_ratio=0.6,
                        iterative_steps=3)  # fmt: skip
    reached, masks = [], []
    for _ in range(3):
        pruner.step()
        reached.append(pruner.sparsity)
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert reached == pytest.approx([0.2, 0.4, 0.6], abs=0.002)  # whole weights: 1 of 780
    assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()
    with pytest.raises(SettingsError, match="all 3 steps were taken"):
        pruner.step()


def test_n_of_m_comes_down_by_whole_weights() -> None:
    torch.manual_seed(0)
    model = prepared(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)))
    x = torch.randn(50, 16, dtype=torch.float64)
    pruner = get_pruner("sbc", model, x, calibration_data=[x], pattern="2:4", iterative_steps=2)
    for kept in (3, 2):
        pruner.step()
        for layer in (model[0], model[2]):
            assert ((layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1) == kept).all()


def test_blocks_on_a_plain_network_that_keeps_some_layers() -> None:
    model, x = prepared(Plain()), images()
    before = model.last.weight.clone()
    pruner = get_pruner("sbc", model, x[:1], calibration_data=[x], pattern="block:2", pruning_ratio=0.5,
                        ignored_layers=[model.last])  # fmt: skip
    pruner.step()
    assert torch.equal(model.last.weight, before)
    assert pruner.skipped["last"] == "ignored" and "up" not in pruner.skipped
    up = (model.up.weight != 0).unflatten(0, (-1, 2))  # two inputs at one position of the kernel
    assert (up.all(1) | ~up.any(1)).all() and not up.all()
    blocks = (model.join.weight != 0).unflatten(1, (-1, 2))
    assert (blocks.all(2) | ~blocks.any(2)).all() and not blocks.all()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_masks_outlive_fine_tuning_with_momentum(optimizer: type[torch.optim.Optimizer]) -> None:
    model, x = prepared(cells()), events()
    dense = optimizer(model.parameters(), lr=1e-2, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))

    def tune(steps: int) -> None:
        for _ in range(steps):
            dense.zero_grad()
            run_steps(model, x).mean().backward()
            dense.step()

    tune(2)  # momentum from before
    pruner = get_pruner("sbc", model, x[0], calibration_data=[x], pattern="unstructured", pruning_ratio=0.5)
    pruner.step()
    kept = {name: model.get_parameter(name).clone() for name in pruner.masks}
    handle = pruner.hook(dense)
    tune(3)
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name)[~mask].any()
    assert any(not torch.equal(model.get_parameter(name), before) for name, before in kept.items())
    handle.remove()
    tune(1)
    assert any(model.get_parameter(name)[~mask].any() for name, mask in pruner.masks.items())
    pruner.apply_masks()
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in pruner.masks.items())


def test_what_cannot_be_is_refused() -> None:
    model, x = prepared(cells()), events()
    with pytest.raises(CalibrationError, match="needs calibration_data"):
        get_pruner("sbc", model, x[0], pattern="2:4")
    with pytest.raises(SettingsError, match="'lamp' prunes no single weights; use one of sbc, obc, magnitude"):
        get_pruner("lamp", model, x[0], calibration_data=[x], pattern="2:4")
    with pytest.raises(SettingsError, match="iterative_steps=0"):
        get_pruner("sbc", model, x[0], calibration_data=[x], pattern="2:4", iterative_steps=0)
