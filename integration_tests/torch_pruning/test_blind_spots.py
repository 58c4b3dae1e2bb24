"""The audit sees neurons that differ in parameters alone, cuts that cancel, and groups that would lose other inputs."""

import copy
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.channel_networks import LIF
from sbc_plugin.errors import CompressionError, SettingsError, UnsupportedModelError
from sbc_plugin.norse import linear_neurons
from sbc_plugin.torch_pruning import SBCImportance, audit, get_pruner

HALF = 6
WAYS = ["chunk", "split", "slice", "narrow", "index_select", "unbind", "interleaved", "twice"]


def box(v_th: Any = 0.3, tau: Any = 500.0) -> nn.Module:
    return norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(tau), v_th=torch.as_tensor(v_th)))


PAIRS = {
    "tau": lambda: (box(tau=900.0), box(tau=100.0)),
    "v_th": lambda: (box(0.2), box(0.6)),
    "per channel": lambda: (box(torch.linspace(0.1, 0.8, HALF)), box(torch.linspace(0.8, 0.1, HALF))),
    "class": lambda: (box(0.3, 500.0), norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(0.3)))),
}


class Dealt(nn.Module):
    """The channels of one layer go to two neurons."""

    def __init__(self, way: str, pair: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(10, 2 * HALF), nn.Linear(2 * HALF, 4)
        self.first, self.second = PAIRS[pair]()

    def parts(self, h: Tensor) -> Any:
        if self.way == "chunk":
            return h.chunk(2, 1)
        if self.way == "split":
            return h.split(HALF, 1)
        if self.way == "narrow":
            return h.narrow(1, 0, HALF), h.narrow(1, HALF, h.shape[1] - HALF)
        if self.way == "index_select":
            return h.index_select(1, torch.arange(HALF)), h.index_select(1, torch.arange(HALF, 2 * HALF))
        if self.way == "unbind":
            return h.reshape(len(h), 2, -1).unbind(1)
        if self.way == "interleaved":
            return h[:, ::2], h[:, 1::2]
        if self.way == "twice":
            u, v = h.chunk(2, 1)
            return v, u
        return h[:, :HALF], h[:, HALF:]

    def forward(self, x: Tensor, state: Any = None) -> Any:
        p, q = state or (None, None)
        u, v = self.parts(self.a(x))
        u, p = self.first(u, p)
        v, q = self.second(v, q)
        return self.b(torch.cat([u, v], 1)), (p, q)


def driven(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = 3 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return model.double().eval()


def spikes(*shape: int) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.5).double()


def run(model: nn.Module, x: Tensor) -> Tensor:
    outputs, state = [], None
    with torch.no_grad():
        for step in x:
            y, state = model(step, state)
            outputs.append(y)
    return torch.stack(outputs)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dead", ["first half", "second half"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", WAYS)
def test_channels_that_would_come_to_another_neuron_are_not_cut(way: str, pair: str, dead: str) -> None:
    """The channels that nobody reads are worth nothing, so they go first, all from one half."""
    model, x = driven(Dealt(way, pair)), spikes(20, 8, 10)
    with torch.no_grad():
        model.b.weight[:, slice(0, 4) if dead == "first half" else slice(HALF, HALF + 4)] = 0
    before = copy.deepcopy(model)
    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=[x], pruning_ratio=4 / (2 * HALF), ignored_layers=[model.b]
    )
    if way in ("index_select", "interleaved"):
        pruner.step()  # the graph ends at the index, so no layer is known to read the channels
        assert list(pruner.left_whole) == ["a"] and "its channels are mixed" in pruner.left_whole["a"]
    else:
        with pytest.raises(UnsupportedModelError, match=r"'a': .*nothing was cut"):
            pruner.step()
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_that_comes_to_nearly_the_same_neuron_is_seen(dtype: torch.dtype) -> None:
    """What it changes is below what single precision shows."""
    model = driven(Dealt("split", "tau")).to(dtype)
    model.second = box(float(model.first.p.tau_mem_inv) * 1.0001)  # type: ignore[union-attr, arg-type, operator]
    x = spikes(20, 8, 10).to(dtype)
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], pruning_ratio=1 / 3, ignored_layers=[model.b])
    with pytest.raises(UnsupportedModelError, match=r"'a': .*nothing was cut"):
        pruner.step()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", ["chunk", "unbind", "twice"])
def test_parts_that_follow_the_size_are_cut_evenly_when_asked_for(way: str, pair: str, steps: int) -> None:
    model, x = driven(Dealt(way, pair)), spikes(20, 8, 10)
    dense = copy.deepcopy(model)
    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=[x], pruning_ratio=1 / 3, iterative_steps=steps,
        ignored_layers=[model.b], out_channel_groups={model.a: 2},
    )  # fmt: skip
    for _ in range(steps):
        pruner.step()
    kept = [next(k for k in range(2 * HALF) if torch.equal(row, dense.a.weight[k])) for row in model.a.weight]
    assert sum(k < HALF for k in kept) == sum(k >= HALF for k in kept) == 4
    columns = kept if way != "twice" else kept[4:] + kept[:4]
    columns = columns if way != "twice" else [(k + HALF) % (2 * HALF) for k in columns]
    with torch.no_grad():
        dense.b.bias.copy_(model.b.bias)
        dense.b.weight.zero_()[:, columns] = model.b.weight
    torch.testing.assert_close(run(model, x), run(dense, x), rtol=0, atol=1e-9)  # membranes of float32 parameters


def test_refusal_of_halves_says_how_they_can_be_cut() -> None:
    model, x = driven(Dealt("chunk", "tau")), spikes(20, 8, 10)
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], pruning_ratio=0.2, ignored_layers=[model.b])
    with pytest.raises(UnsupportedModelError, match=r"dealt to 2 equal parts.*out_channel_groups=\{model.a: 2\}"):
        pruner.step()


@pytest.mark.parametrize("pruned", [{}, {"pruning_ratio_dict": True}, {"round_to": 2}, {"iterative_steps": 2}])
def test_what_the_audit_refuses_is_refused_before_data_are_read(pruned: dict[str, Any]) -> None:
    model, x = driven(Dealt("chunk", "tau")), spikes(20, 8, 10)
    given = {**pruned, "pruning_ratio_dict": {model.a: 0.2}} if "pruning_ratio_dict" in pruned else pruned
    read: list[int] = []

    class Watched(list[torch.Tensor]):
        def __iter__(self) -> Any:
            read.append(1)
            return super().__iter__()

    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=Watched([x]), pruning_ratio=0.25, ignored_layers=[model.b], **given
    )
    read.clear()
    with pytest.raises(UnsupportedModelError, match="nothing was cut"):
        pruner.step()
    assert not read and isinstance(pruner.importance, SBCImportance)


def test_gains_of_linear_neurons_follow_from_class_and_parameters() -> None:
    neurons = [box(), box(), box(tau=100.0), box(0.2), norse.LIFCell(LIF), norse.LIFRefracCell(), norse.LIFExCell()]
    model, x = nn.ModuleList([*neurons, box(torch.linspace(0.1, 0.8, 5))]), torch.ones(2, 5)
    with linear_neurons(model):
        gains = [neuron(x)[0] for neuron in model]
    assert torch.equal(gains[0], gains[1])
    assert len({round(float(gain[0, 0]), 5) for gain in gains}) == len(gains) - 1
    assert len(set(gains[-1][0].tolist())) == 5
    assert all(float(g.min()) >= 0.7 and float(g.max()) <= 1.3 for g in gains)


class Crossed(nn.Module):
    """Two concatenated branches, halved where they meet: equal cuts of both cancel, one alone does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.o = (nn.Linear(*size) for size in [(10, 8)] * 2 + [(8, 6)] * 2 + [(12, 3)])
        self.n = nn.ModuleList(box() for _ in range(4))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        s = state or [None] * 4
        y, p = self.n[0](self.a(x), s[0])
        z, q = self.n[1](self.b(x), s[1])
        u, v = torch.cat([y, z], 1).chunk(2, 1)
        u, r = self.n[2](self.c(u), s[2])
        v, t = self.n[3](self.d(v), s[3])
        return self.o(torch.cat([u, v], 1)), [p, q, r, t]


@pytest.mark.parametrize("ratios", [{"a": 0.5}, {"b": 0.5}, {"a": 0.5, "b": 0.25}])
def test_cuts_that_only_cancel_together_are_refused(ratios: dict[str, float]) -> None:
    model, x = driven(Crossed()), spikes(20, 8, 10)
    before = copy.deepcopy(model)
    pruner = get_pruner(
        "sbc", model, (x[0],), calibration_data=[x], pruning_ratio=0.0, ignored_layers=[model.o],
        pruning_ratio_dict={getattr(model, name): ratio for name, ratio in ratios.items()},
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"'[ab]': .*nothing was cut"):
        pruner.step()
    assert same(model, before)
    assert "a" in {name for name, _ in audit(model, (x[0],)).problems}


@pytest.mark.parametrize("method", ["sbc", "l2", "slim"])
def test_isomorphic_needs_global_pruning(method: str) -> None:
    model = norse.SequentialState(nn.Linear(10, 16), box(), nn.Linear(16, 16), box(), nn.Linear(16, 3))
    given = {"calibration_data": [spikes(20, 8, 10)]} if method == "sbc" else {}
    with pytest.raises(SettingsError, match=r"isomorphic=True .* needs global_pruning=True"):
        get_pruner(method, model, torch.rand(8, 10), isomorphic=True, **given)
    get_pruner(method, model, torch.rand(8, 10), isomorphic=True, global_pruning=True, **given)


class IntoGroups(nn.Module):
    """Two branches side by side into a grouped convolution."""

    def __init__(self, left: int, right: int, groups: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, left, 1), nn.Conv2d(2, right, 1)
        self.g, self.o = nn.Conv2d(left + right, 8, 1, groups=groups), nn.Linear(8, 3)
        self.n = nn.ModuleList(box(0.1) for _ in range(3))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        s = state or [None] * 3
        y, p = self.n[0](self.a(x), s[0])
        z, q = self.n[1](self.b(x), s[1])
        u, r = self.n[2](self.g(torch.cat([y, z], 1)), s[2])
        return self.o(u.mean((2, 3))), [p, q, r]


@pytest.mark.parametrize("sizes", [(12, 6, 2), (6, 6, 4), (6, 6, 2), (4, 12, 4), (3, 5, 2)])
def test_concatenation_into_groups_is_refused_by_name_and_the_rest_is_cut(sizes: tuple[int, int, int]) -> None:
    model, x = driven(IntoGroups(*sizes)), spikes(10, 4, 2, 4, 4)
    before = copy.deepcopy(model)
    given: dict[str, Any] = {"calibration_data": [x], "pruning_ratio": 0.5}
    with pytest.raises(UnsupportedModelError, match=r"'[ab]'.* 'g'.*ignored_layers"):
        get_pruner("sbc", model, (x[0],), ignored_layers=[model.o], **given).step()
    assert same(model, before)
    get_pruner("sbc", model, (x[0],), ignored_layers=[model.o, model.a, model.b], **given).step()
    assert model.g.out_channels == 4 and run(model, x).shape == (10, 4, 3)


def test_a_grouped_transposed_convolution_is_refused_by_name() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 1)
    ).double()
    x = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    pruner = get_pruner("sbc", model, x, calibration_data=[x], ignored_layers=[model[4]])
    with pytest.raises(CompressionError, match="transposed convolution '2' of 2 groups"):
        pruner.step()


@pytest.mark.parametrize("leveller", [nn.LayerNorm(2), nn.Softmax(-1), nn.Hardtanh(-1e-6, 1e-6)], ids=str)
def test_what_goes_wrong_is_seen_where_the_end_levels_it(leveller: nn.Module) -> None:
    model = driven(Dealt("split", "v_th"))
    model.b = nn.Sequential(nn.Linear(2 * HALF, 2), leveller).double()
    model.b[0].weight.data *= 1e3  # type: ignore[index, operator, union-attr]
    x = spikes(20, 8, 10)
    last = model.b[0]  # type: ignore[index]
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], pruning_ratio=1 / 3, ignored_layers=[last])
    with pytest.raises(UnsupportedModelError, match=r"'a': .*nothing was cut"):
        pruner.step()


class Written(nn.Module):
    """Sizes written into forward, or hidden spikes among what it returns."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.neuron, self.b = kind, nn.Linear(10, 8), box(), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        z, state = self.neuron(self.a(x), state)
        y = self.b(z.view(len(z), 8) if self.kind == "view" else z)
        return (y, state) if self.kind == "view" else (z, y, state)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("view", r"'a': .*shape '\[8, 8\]' is invalid.* \(its forward has a size written into it; flatten\(1\)"),
        ("returned", r"'a': its channels are part of what the model returns"),
    ],
)
def test_the_reason_is_the_one_that_helps(kind: str, reason: str) -> None:
    model, x = driven(Written(kind)), spikes(20, 8, 10)
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], pruning_ratio=0.5, ignored_layers=[model.b])
    with pytest.raises(UnsupportedModelError, match=reason):
        pruner.step()
