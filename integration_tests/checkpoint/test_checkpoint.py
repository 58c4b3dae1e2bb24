"""A file gives the saved model back in every bit: weights, buffers, neuron parameters, outputs and states."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from integration_tests.models.nir_graphs import GRAPHS
from integration_tests.models.one_shot import compress
from sbc_plugin import Prune, Quantize, compare, load, save
from sbc_plugin.brevitas import freeze
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.demo import digits, network
from sbc_plugin.nir import read
from sbc_plugin.torch_pruning import get_pruner

STEPS, BATCH = 12, 4
BITS = [None, 2, 4, 8]
Result = tuple[nn.Module, Callable[[], nn.Module], Tensor, Any]  # compressed, fresh, input, report


def spikes(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(STEPS, BATCH, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def neuron(seed: int) -> norse.LIFBoxParameters:
    """Time constants that no default has, and a threshold for each neuron."""
    drawn = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    return norse.LIFBoxParameters(tau_mem_inv=torch.tensor(210.0 + seed), v_th=0.4 + 0.2 * drawn)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = norse.SequentialState(
        nn.Linear(16, 8), norse.LIFBoxCell(neuron(seed)), nn.Linear(8, 8, bias=False), norse.LIFCell()
    )
    return louder(made)


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    fast = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0))
    made = norse.SequentialState(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), norse.LIFBoxCell(fast), nn.Conv2d(8, 4, 3),
        norse.LIFBoxCell(fast), nn.Flatten(), nn.Linear(4 * 16, 4), norse.LIFBoxCell(fast),
    )  # fmt: skip
    return louder(made).eval()


def recurrent(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return louder(norse.SequentialState(norse.LIFRecurrentCell(16, 8), nn.Linear(8, 4), norse.LIFBoxCell()))


def louder(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 6
    return model


def weights(build: Callable[..., nn.Module], *shape: int, **settings: Any) -> Callable[[int | None], Result]:
    def made(bits: int | None) -> Result:
        quantize = None if bits is None else Quantize(bits)
        small, report = compress(build(), [spikes(*shape)], quantize=quantize, **settings)
        return small, lambda: build(seed=7), spikes(*shape, seed=2), report

    return made


def channels(bits: int | None) -> Result:
    model, x = convolutional(), spikes(1, 8, 8)
    pruner = get_pruner("sbc", model, (x[0],), pruning_ratio=0.5, ignored_layers=[model[6]], calibration_data=[x])
    pruner.step()
    report = None
    if bits is not None:
        model, report = compress(model, [x], quantize=Quantize(bits))
    assert model[0].out_channels == 4
    return model, lambda: convolutional(seed=7), spikes(1, 8, 8, seed=2), report


def nir_graph(bits: int | None) -> Result:
    prune, quantize = Prune(0.4), None if bits is None else Quantize(bits)
    shape = read(GRAPHS["recurrent CubaLIF"]()).input_shape
    small, report = compress(read(GRAPHS["recurrent CubaLIF"]()), [spikes(*shape)], prune=prune, quantize=quantize)

    def fresh() -> nn.Module:
        model = read(GRAPHS["recurrent CubaLIF"]())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    return small, fresh, spikes(*shape, seed=2), report


def brevitas(bits: int | None) -> Result:
    quantize = Quantize(bits or 3)
    data = [spikes(1, 8, 8)]
    small, report = compress(convolutional(), data, prune=Prune(0.5), quantize=quantize, backend="brevitas")
    other = compress(convolutional(seed=7), data, quantize=quantize, backend="brevitas")[0]
    return small, lambda: other, spikes(1, 8, 8, seed=2), report


def frozen(bits: int | None) -> Result:
    small, _, x, report = brevitas(bits)
    return freeze(small), lambda: convolutional(seed=7), x, report


KINDS: dict[str, Callable[[int | None], Result]] = {
    "unstructured": weights(linear, 16, prune=Prune(0.8)),
    "2:4": weights(linear, 16, prune=Prune(0.5, pattern="2:4")),
    "channel": channels,
    "joint": weights(convolutional, 1, 8, 8, prune=Prune(0.6)),
    "recurrent": weights(recurrent, 16, prune=Prune(0.5)),
    "NIR graph": nir_graph,
    "Brevitas": brevitas,
    "Brevitas, frozen": frozen,
}


def behaviour(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Everything the model says and remembers, step by step."""
    state, seen = None, []

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
        return [tensor for item in items for tensor in tensors(item)]

    with torch.no_grad():
        for step in x:
            output, state = model(step, state)
            seen += [tensor.clone() for tensor in (output, *tensors(state))]
    return seen


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_the_model_back_in_every_bit(kind: str, bits: int | None, tmp_path: Path) -> None:
    small, fresh, x, report = KINDS[kind](bits)
    path = tmp_path / "small.safetensors"
    save(path, small, report)
    other = fresh()
    assert not equal(behaviour(other, x), behaviour(small, x))  # what is loaded comes from the file
    again, read_report = load(path, other)
    assert again is other
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and again.state_dict()[name].dtype == tensor.dtype, name
    expected = behaviour(small, x)
    assert equal(behaviour(again, x), expected)
    assert any(bool(tensor.any()) for tensor in expected)
    assert (read_report is None) == (report is None)
    if report is not None:
        assert read_report.to_dict() == report.to_dict() and str(read_report) == str(report)
    assert os.listdir(tmp_path) == ["small.safetensors"]


def test_without_a_model_everything_is_there(tmp_path: Path) -> None:
    small, _, _, report = KINDS["unstructured"](4)
    save(tmp_path / "small.safetensors", small, report)
    found = load(tmp_path / "small.safetensors")
    assert found.report.to_dict() == report.to_dict()
    assert found.tensors.keys() == small.state_dict().keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in small.state_dict().items())
    assert any(torch.equal(value, small[1].p.v_th) for value in found.attributes.values())


class TestSize:
    """Of realistic networks: the file is as large as the report says, and small."""

    @staticmethod
    def saved(tmp_path: Path, model: nn.Module, x: Any, **settings: Any) -> tuple[int, int, int]:
        small, report = compress(model, x, **settings)
        path = tmp_path / "small.safetensors"
        save(path, small, report)
        packed = sum(packed_bytes(p.detach()) for p in small.parameters() if p.dim() > 1)
        return path.stat().st_size, packed, sum(4 * p.numel() for p in small.parameters())

    def test_a_wide_one(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = louder(
            norse.SequentialState(
                nn.Linear(1600, 300, bias=False), norse.LIFBoxCell(), nn.Linear(300, 10, bias=False), norse.LIFBoxCell()
            )
        )
        x = [(torch.rand(5, 8, 1600) < 0.1).float()]
        small = {"prune": Prune(0.9, solver="magnitude"), "quantize": Quantize(4)}
        size, packed, dense = self.saved(tmp_path, model, x, method="magnitude", **small)
        assert abs(size / packed - 1) < 0.05
        assert size <= dense / 25

    def test_the_demos(self, tmp_path: Path) -> None:
        data = digits.load().calibration.subset(slice(0, 20)).batches(20)
        settings: Any = {"method": "magnitude", "prune": Prune(0.9), "quantize": Quantize(4)}
        size, packed, dense = self.saved(tmp_path, network.pretrained(0), data, **settings)
        assert size <= dense / 20  # 113.6 kB in float32: the header is a sixth of what is left
        assert size - packed < 1_500

    def test_compare_tells_the_same_size(self) -> None:
        small, _, x, _ = KINDS["unstructured"](4)
        told = compare(linear(), small, [x]).compressed.packed_bytes
        assert told == sum(packed_bytes(p.detach()) for p in small.parameters() if p.dim() > 1)


def test_a_model_of_another_library_is_saved_too(tmp_path: Path) -> None:
    """Nothing in a file is Norse's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3))
    save(tmp_path / "a.safetensors", model)
    again, report = load(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)))
    assert report is None
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_channels_are_cut_from_any_pruner(tmp_path: Path) -> None:
    """A file knows shapes, not who cut them."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = tp.DependencyGraph().build_dependency(model, (torch.rand(1, 6),))
    graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [1, 4]).prune()
    save(tmp_path / "a.safetensors", model)
    again, _ = load(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.rand(5, 6)
    assert torch.equal(again(x), model(x)) and again[0].out_features == 6 and again[2].in_features == 6


@pytest.mark.parametrize("hook", (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), weight_norm))
def test_a_weight_that_hooks_compute_comes_back(hook: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    first, second = (norse.SequentialState(nn.Linear(4, 3), norse.LIFBoxCell()) for _ in range(2))
    for model in (first, second):
        hook(model[0])
    save(tmp_path / "small.safetensors", first)
    load(tmp_path / "small.safetensors", second)
    x = torch.rand(5, 4)
    assert torch.equal(second[0](x), first[0](x)) and (second[0].out_features, second[0].in_features) == (3, 4)
