"""The audit finds exact graphs exact and wrong graphs wrong, says why, and leaves the model alone."""

import copy
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from integration_tests.models.channel_networks import CASES, LIF, make
from integration_tests.torch_pruning.test_dependency_graph import heads_of, traced
from sbc_plugin.torch_pruning.audit import audit
from sbc_plugin.torch_pruning.readers import MIXED, UNRELATED, readers_of
from sbc_plugin.torch_pruning.replay import Replay


@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_exact_graphs_are_found_exact(name: str, length: int) -> None:
    model = make(name)
    result = audit(model, CASES[name].example(length), num_heads=heads_of(model))
    assert result.ok, str(result)
    assert str(result).startswith(f"{len(result.layers)} layers, {len(result.layers)} exact")


@pytest.mark.parametrize("name", ["lift", "concat"])
def test_torch_prunings_own_graph_is_found_wrong(name: str) -> None:
    model = make(name)
    graph = tp.DependencyGraph().build_dependency(
        model, (CASES[name].example(2),), output_transform=lambda output: output[0], verbose=False
    )
    result = audit(model, CASES[name].example(2), graph)
    assert not result.ok
    assert any("group is wrong" in reason for _, reason in result.problems)


def swap(graph: Any, layer: nn.Module) -> None:
    """Pair the channels of a layer with those of its readers in reverse."""
    for dependency in graph.module2node[layer].outputs[0].dependencies:
        mapping = dependency.index_mapping[0]
        dependency.index_mapping[0] = lambda idxs, mapping=mapping: [
            i._replace(idx=6 - i.idx) for i in (mapping(idxs) if mapping else idxs)
        ]


def test_channels_paired_wrongly_are_found() -> None:
    model = make("lift")
    graph = traced(model, CASES["lift"].example(2))
    swap(graph, model[4])
    assert [layer for layer, _ in audit(model, CASES["lift"].example(2), graph).problems] == ["4"]


def test_model_and_graph_are_left_alone() -> None:
    model = make("transformer").train()
    graph = traced(model, CASES["transformer"].example(2))
    state, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    audit(model, CASES["transformer"].example(2), graph, num_heads=heads_of(model))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert graph.pruning_history() == []


@pytest.mark.parametrize("name", ["transformer", "fused transformer"])
def test_attention_without_heads_is_refused(name: str) -> None:
    result = audit(make(name), CASES[name].example(2))
    assert {layer for layer, _ in result.problems} == ({"query", "key", "value"} if name == "transformer" else {"qkv"})


class Small(nn.Module):
    """Linear, something between, a neuron, Linear."""

    def __init__(self, size: int = 8, wide: int | None = None) -> None:
        super().__init__()
        self.first, self.lif, self.last = nn.Linear(5, size), norse.LIF(LIF), nn.Linear(wide or size, 3)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        z, state = self.lif(self.between(self.first(x)))
        return self.last(z), state


class HardSplit(Small):
    def between(self, x: Tensor) -> Tensor:
        a, b = x.split([4, 4], dim=-1)
        return torch.cat([b, a], dim=-1)


class Chunk(Small):
    def between(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([b, a], dim=-1)


class Gate(Small):
    def between(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return a * torch.sigmoid(b)


class Softmax(Small):
    def between(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class Shuffled(Small):
    def between(self, x: Tensor) -> Tensor:
        return x[..., torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])]


class Cut(Small):
    def between(self, x: Tensor) -> Tensor:
        return (x > 0).float()


class Normed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class FixedView(Small):
    def between(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 2, 4).flatten(2)


class ChannelsLast(nn.Module):
    """Flattened with the channels inside, where space is not 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif, self.last = nn.Conv2d(2, 4, 3), norse.LIFCell(LIF), nn.Linear(16, 3)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        z, state = self.lif(self.first(x), state)
        return self.last(z.permute(0, 2, 3, 1).flatten(1)), state


REFUSED = {
    "hard split": (HardSplit, "does not run"),
    "softmax": (Softmax, "Softmax"),
    "shuffled": (Shuffled, "Index"),
    "cut off": (Cut, "wrong"),
    "layer norm": (Normed, "not the one with it set to 0"),
    "fixed view": (FixedView, "does not run"),
    "channels last": (ChannelsLast, "mixed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_with_a_reason(name: str) -> None:
    cls, reason = REFUSED[name]
    shape = (2, 2, 4, 4) if cls is ChannelsLast else (3, 2, 5)
    result = audit(cls().eval(), torch.rand(shape))
    assert [layer for layer, _ in result.problems] == ["first"]
    assert reason in result.problems[0][1]


class Attention(nn.Module):
    """Queries, keys and values of four heads from one layer; ``heads`` makes (3, B, heads, N, size) of (B, N, 96)."""

    def __init__(self, heads: Callable[[Tensor], Any], scale: Callable[[Tensor], float] = lambda q: 8**-0.5) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv, self.last = nn.Linear(16, 96), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.qkv(x))
        mixed = torch.softmax(q @ k.mT * self.scale(q), -1) @ v
        result: Tensor = self.last(mixed.transpose(1, 2).flatten(2))
        return result


def by_shape(size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.reshape(*x.shape[:2], 3, 4, size).permute(2, 0, 3, 1, 4)


def by_parts(deal: Callable[[Tensor], Any], size: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: [part.reshape(*x.shape[:2], 4, size).transpose(1, 2) for part in deal(x)]


ATTENTION: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "all sizes follow": (lambda: Attention(by_shape(-1)), ""),
    "all sizes follow, in parts": (lambda: Attention(by_parts(lambda x: x.chunk(3, -1), -1)), ""),
    "size of a head": (lambda: Attention(by_shape(8)), "read sizes off the tensor"),
    "size of a head, in parts": (lambda: Attention(by_parts(lambda x: x.chunk(3, -1), 8)), "read sizes off the tensor"),
    "size of all heads": (lambda: Attention(by_parts(lambda x: x.split(32, -1), -1)), "read sizes off the tensor"),
    "scale by the size": (lambda: Attention(by_shape(-1), lambda q: q.shape[-1] ** -0.5), "as a scale by that does"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_where_heads_are_given_the_reason_is_what_depends_on_their_size(name: str) -> None:
    build, reason = ATTENTION[name]
    model, x = build().eval(), torch.rand(1, 5, 16)
    alone = dict(audit(model, x).problems)
    assert "num_heads" in alone["qkv"]
    found = dict(audit(model, x, num_heads={model.qkv: 4}).problems)
    if not reason:
        assert not found
        return
    assert reason in found["qkv"] and "4 heads or parts of 'qkv'" in found["qkv"] and "num_heads" not in found["qkv"]


@pytest.mark.parametrize("cls", [Chunk, lambda: Gate(8, 4)])
def test_parts_that_follow_the_size_are_exact(cls: Any) -> None:
    model = cls().eval()
    graph = traced(model, torch.rand(3, 2, 5))
    group = graph.get_pruning_group(model.first, tp.prune_linear_out_channels, [1])
    read = next(sorted(i.idxs) for i in group.items if i.dep.target.module is model.last)
    assert (read, sorted(group[0].idxs)) == (([5], [1]) if isinstance(model, Chunk) else ([1], [1, 5]))
    assert audit(model, torch.rand(3, 2, 5), num_heads={model.first: 2}).ok


def test_replay_tells_which_channel_an_input_depends_on() -> None:
    replay = Replay(make("concat"), CASES["concat"].example(2))
    readers = readers_of(replay, ["right.lifted_module"])["right.lifted_module"]
    assert readers["mix.lifted_module"].tolist() == [UNRELATED] * 4 + list(range(6))
    expected = [UNRELATED] * 144 + [c for c in range(6) for _ in range(36)] + [UNRELATED] * 149
    assert readers["fc"].tolist() == expected
    mixed = readers_of(Replay(Softmax().eval(), torch.rand(3, 2, 5)), ["first"])["first"]
    assert mixed["last"].tolist() == [MIXED] * 8


def test_layer_that_lets_only_decreases_pass_is_seen() -> None:
    class Inverted(Small):
        def between(self, x: Tensor) -> Tensor:
            return -torch.relu(-x)

    found = readers_of(Replay(Inverted().eval(), torch.rand(3, 2, 5)), ["first"])
    assert found["first"]["last"].tolist() == list(range(8))
