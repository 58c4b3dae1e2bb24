"""Layers kept whole: what lies behind them refuses nothing, and those that the pruner leaves whole are told."""

import copy
import warnings
from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d

from integration_tests.torch_pruning.test_blind_spots import Crossed, box, driven, run, spikes
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.torch_pruning import audit, exact_tracing, get_pruner

KEPT: dict[str, Any] = {
    "softmax": lambda y: y.softmax(-1),
    "log softmax": lambda y: y.log_softmax(-1),
    "mean": lambda y: y - y.mean(-1, keepdim=True),
    "norm": lambda y: y / y.norm(dim=-1, keepdim=True),
    "layer norm": lambda y: nn.functional.layer_norm(y, (5,)),
    "cumsum": lambda y: y.cumsum(-1),
    "sort": lambda y: y.sort(-1).values,
    "topk": lambda y: y.topk(3, dim=-1).values,
    "flip": lambda y: y.flip(-1),
    "index": lambda y: y[..., torch.tensor([3, 1, 0])],
    "max": lambda y: y.max(-1).values,
}


class Kept(nn.Module):
    def __init__(self, behind: str) -> None:
        super().__init__()
        self.fc, self.neuron, self.readout, self.behind = nn.Linear(10, 8), box(), nn.Linear(8, 5), behind

    def forward(self, x: Tensor, state: Any = None) -> Any:
        z, state = self.neuron(self.fc(x), state)
        return KEPT[self.behind](self.readout(z)), state


def zeroed(dense: Any, pruned: Any) -> nn.Module:
    """The dense model with the readout of the pruned one, and 0 for the channels of ``fc`` that went."""
    kept = [next(k for k in range(8) if torch.equal(row, dense.fc.weight[k])) for row in pruned.fc.weight]
    with torch.no_grad():
        dense.readout.weight.zero_()[:, kept] = pruned.readout.weight
        dense.readout.bias.copy_(pruned.readout.bias)
    result: nn.Module = dense
    return result


@pytest.mark.parametrize("behind", KEPT)
def test_what_lies_behind_a_layer_kept_whole_refuses_nothing(behind: str) -> None:
    model, x = driven(Kept(behind)), spikes(20, 8, 10)
    dense = copy.deepcopy(model)
    get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model.readout]).step()
    assert model.fc.out_features == 4
    torch.testing.assert_close(run(model, x), run(zeroed(dense, model), x), rtol=0, atol=1e-9)
    assert "readout" in {name for name, _ in audit(Kept(behind), (x[0].float(),)).problems} or behind == "max"


class Masked(nn.Module):
    """Features times, or plus, what a layer of one channel makes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.fc, self.mask, self.way = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 1, 1), way
        self.neuron, self.readout = box(), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        mask, h = self.mask(x), self.fc(x)
        mixed = {"gate": torch.sigmoid(mask) * h, "plus": mask + h, "expand": mask.expand_as(h) * h}[self.way]
        z, state = self.neuron(mixed, state)
        return self.readout(z), state


@pytest.mark.parametrize("way", ["gate", "plus", "expand"])
def test_a_mask_of_one_channel_couples_nothing(way: str) -> None:
    model, x = driven(Masked(way)), spikes(8, 8, 2, 6, 6)
    dense = copy.deepcopy(model)
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model.readout])
    pruner.step()
    assert (model.fc.out_channels, model.mask.out_channels) == (4, 1)
    torch.testing.assert_close(run(model, x), run(zeroed(dense, model), x), rtol=0, atol=1e-9)
    assert pruner.left_whole == {"mask": "it has one channel"}


class Wide(nn.Module):
    """A deep branch that ends in one number, beside a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1)
        )
        self.wide, self.last = nn.Linear(32, 4), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.cat([self.wide(x), self.deep(x)], dim=-1)))


def test_one_number_beside_many_channels_is_cut_as_torch_pruning_cuts_it() -> None:
    torch.manual_seed(0)
    ours, x = Wide().eval(), torch.randn(64, 32)
    theirs = copy.deepcopy(ours)
    pruner = get_pruner("sbc", ours, x[:1], calibration_data=[x], iterative_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = tp.pruner.BasePruner(
            theirs, x[:1], importance=tp.importance.MagnitudeImportance(), iterative_steps=3, num_heads={},
            in_channel_groups={}, out_channel_groups={},
        )  # fmt: skip
    for _ in range(3):
        pruner.step()
        stock.step()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert ours(x).shape == (64, 1)
    assert pruner.left_whole == {"deep.5": "it has one channel", "last": "it has one channel"}


def test_layers_left_whole_are_told() -> None:
    model, x = driven(Crossed()), spikes(20, 8, 10)
    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=[x], pruning_ratio=0.1, ignored_layers=[model.a, model.b, model.o]
    )
    pruner.step()
    assert pruner.left_whole == {}
    model = norse.SequentialState(nn.Linear(10, 6), box(), nn.Linear(6, 4), norse.LICell()).double()
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[10 * x], pruning_ratio=0.1)
    pruner.step()
    assert pruner.left_whole == {"2": "no layer reads its channels"}


def test_masks_of_cells_whose_weights_are_plain_tensors() -> None:
    model = norse.SequentialState(
        norse.LIFRecurrentCell(
            10, 12, input_weights=3 * torch.rand(12, 10), recurrent_weights=torch.randn(12, 12)
        ),
        nn.Linear(12, 3), box(),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(3, 12))
    pruner = get_pruner("sbc", model, torch.rand(2, 10), calibration_data=[spikes(20, 8, 10)], pattern="unstructured")
    pruner.step()
    cell = model[0]
    before = {name: cell.input_weights.clone() for name in ("0.input_weights",)}
    with torch.no_grad():
        for tensor in (cell.input_weights, cell.recurrent_weights, model[1].weight):
            tensor.add_(1.0)
    pruner.apply_masks()
    for name, mask in pruner.masks.items():
        owner, _, attribute = name.rpartition(".")
        assert not getattr(model.get_submodule(owner), attribute)[~mask].any()
    kept = pruner.masks["0.input_weights"]
    torch.testing.assert_close(cell.input_weights[kept], before["0.input_weights"][kept] + 1.0)


@pytest.mark.parametrize("norm", [LayerNorm2d(8), nn.GroupNorm(1, 8)], ids=["LayerNorm2d", "GroupNorm"])
def test_a_norm_whose_mean_would_change_is_the_reason(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 1)).double().eval()
    x = torch.rand(6, 3, 7, 7, dtype=torch.float64)
    pruner = get_pruner("sbc", model, x, calibration_data=[x], ignored_layers=[model[2]])
    with pytest.raises(UnsupportedModelError, match=r"'0': .*the norm '1' takes its mean over all channels"):
        pruner.step()
    assert model[0].out_channels == 8


def test_a_norm_that_moves_the_channels_is_followed_where_they_are() -> None:
    """As many pixels as channels, so that sizes say nothing."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), LayerNorm2d(8), nn.Conv2d(8, 4, 1))
    with exact_tracing(model):
        graph = tp.DependencyGraph().build_dependency(model, (torch.rand(1, 3, 8, 8),))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1, 6])
    cut = {item.dep.target.module: sorted(map(int, item.idxs)) for item in group.items}
    assert [cut[layer] for layer in model] == [[1, 6]] * 3
    group.prune()
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 4, 8, 8) and model[1].normalized_shape == (6,)


TRANSFORMERS: dict[str, Any] = {
    "ViT": lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=5),
    "Swin": lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5),
    "ConvNeXt": lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)], num_classes=5),
}


def zeroed_hidden(dense: nn.Module, pruned: nn.Module) -> int:
    """Set hidden layers of ``dense`` to 0 where ``pruned`` has lost them, and the rest to its; return their number.

    The layers that lose outputs keep the others as they are, and each is read by the next Linear.
    """
    cut, kept = 0, None
    with torch.no_grad():
        for (_, one), (_, other) in zip(dense.named_modules(), pruned.named_modules(), strict=True):
            if not isinstance(one, nn.Linear):
                continue
            if kept is not None:
                one.weight.zero_()[:, kept] = other.weight
                one.bias.copy_(other.bias)
                kept = None
            elif one.weight.shape != other.weight.shape:
                cut += 1
                kept = [int((one.weight == row).all(1).nonzero()) for row in other.weight]
            else:
                one.load_state_dict(other.state_dict())
    return cut


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_residual_streams_behind_norms_are_refused_with_the_line_that_keeps_them_whole(name: str) -> None:
    torch.manual_seed(0)
    model = TRANSFORMERS[name]().double().eval()
    dense = copy.deepcopy(model)
    x, seen = torch.rand(2, 10, 3, 16, 16, dtype=torch.float64)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    given: dict[str, Any] = {"calibration_data": [seen]}
    with pytest.raises(UnsupportedModelError) as refused:
        get_pruner("sbc", model, x[:1], ignored_layers=[head], **given).step()
    message = str(refused.value)
    names = {name for name, _ in model.named_modules() if repr(name) in message}
    line = message[message.index("ignored_layers=[") + len("ignored_layers=") : message.index("; nothing was cut")]
    whole = eval(line, {"model": model})
    assert message.count("because the norm") <= 2 and len(names) >= len(whole) > 2  # each reason once
    pruner = get_pruner("sbc", model, x[:1], ignored_layers=[head, *whole], **given)
    pruner.step()
    assert zeroed_hidden(dense, model) == {"ViT": 2, "Swin": 2, "ConvNeXt": 3}[name]
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=1e-9)
