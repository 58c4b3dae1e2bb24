"""The dependency graph of spiking models: groups are exact for any T, and torch-pruning and the model are as before."""

import copy
import time
from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from integration_tests.models.channel_networks import CASES, LIF, Case, Loop, Sew, Transformer, make
from sbc_plugin.norse import copy_model, default_forward
from sbc_plugin.norse.neurons import RECURRENT
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, trace_inputs

LENGTHS = (1, 8, 32)
READERS = (nn.modules.conv._ConvNd, nn.Linear, *RECURRENT)


def traced(model: nn.Module, example: Any, **options: Any) -> Any:
    with exact_tracing(model):
        return tp.DependencyGraph().build_dependency(model, trace_inputs(model, example), **options)


def roots(graph: Any) -> list[nn.Module]:
    """One layer of each group that does not reach the output."""
    found, covered = [], set()
    for module in list(graph.module2node):
        if isinstance(module, READERS) and module not in covered:
            group = whole(graph, module)
            covered |= {
                item.dep.target.module for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)
            }
            reads = any(isinstance(i.dep.target.module, READERS) and reads_only(graph, i) for i in group.items)
            ends = any(
                type(i.dep.target.module).__name__ == "Junction" and not i.dep.target.outputs for i in group.items
            )
            if reads and not ends:
                found.append(module)
    return found


def reads_only(graph: Any, item: Any) -> bool:
    return not graph.is_out_channel_pruning_fn(item.dep.handler)


def whole(graph: Any, module: nn.Module) -> Any:
    pruner = graph.get_pruner_of_module(module)
    return graph.get_pruning_group(module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module))))


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    if not isinstance(model, Transformer):
        return {}
    return {model.qkv: 6} if model.fused else {model.query: 2, model.key: 2, model.value: 2}


def chosen(graph: Any, module: nn.Module, ratio: float, heads: dict[nn.Module, int]) -> list[int]:
    """A part of the channels, the same of each head or convolution group."""
    modules = [item.dep.target.module for item in whole(graph, module).items]
    convolutions = [m.groups for m in modules if isinstance(m, nn.Conv2d) and m.groups < m.out_channels]
    parts = max([1, *convolutions, *(heads[m] for m in modules if isinstance(m, nn.Module) and m in heads)])
    size = graph.get_out_channels(module) // parts
    picked = torch.randperm(size)[: max(1, int(size * ratio))]
    return sorted((torch.arange(parts)[:, None] * size + picked).flatten().tolist())


class Reference:
    """The dense model, in which the inputs that the pruned one has lost are set to 0, step by step."""

    def __init__(self, pruned: nn.Module, dense: nn.Module) -> None:
        self.twin = dict(zip(pruned.modules(), dense.modules(), strict=True))
        self.alive: dict[tuple[nn.Module, str], list[int]] = {}

    def silence(self, graph: Any, group: Any, attention: bool) -> None:
        for item in group.items:
            module = item.dep.target.module
            if not isinstance(module, READERS):
                continue
            side = "in" if reads_only(graph, item) else "out"
            weight = module.input_weights if isinstance(module, RECURRENT) else module.weight
            alive = self.alive.setdefault((module, side), list(range(weight.shape[side == "in"])))
            if side == "in" and isinstance(module, nn.Conv2d) and module.groups > 1 and len(alive) < module.in_channels:
                alive = self.alive[module, side] = list(range(module.in_channels))
            gone = [alive[i] for i in item.idxs]
            self._zero(self.twin[module], side, gone, attention)
            self.alive[module, side] = [i for i in alive if i not in gone]

    @torch.no_grad()
    def _zero(self, layer: Any, side: str, gone: list[int], attention: bool) -> None:
        if isinstance(layer, RECURRENT):
            weight = layer.input_weights if side == "in" else layer.recurrent_weights
            weight[:, gone] = 0
        elif side == "in" and getattr(layer, "groups", 1) > 1:
            size = layer.in_channels // layer.groups
            layer.weight[:, [i for i in gone if i < size]] = 0
        elif side == "in":
            layer.weight[:, gone] = 0
        elif attention:  # queries and keys are read by a product, not by a layer
            layer.weight[gone] = 0
            layer.bias[gone] = 0


def run(model: nn.Module, case: Case, length: int) -> Tensor:
    with torch.no_grad():
        x = case.sequence(length).to(next(model.parameters()).dtype)
        output = default_forward(model, x)(model, x)
    return output


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_pruned_model_is_the_dense_one_with_the_removed_inputs_zeroed(name: str, length: int, ratio: float) -> None:
    case, model = CASES[name], make(name)
    dense = copy_model(model)
    graph, reference = traced(model, case.example(length)), Reference(model, dense)
    heads = heads_of(model)
    assert not graph.sbc_tangled
    before = run(dense, case, length)
    assert len(roots(graph)) >= 1
    for root in roots(graph):
        pruner = graph.get_pruner_of_module(root)
        group = graph.get_pruning_group(root, pruner.prune_out_channels, chosen(graph, root, ratio, heads))
        assert graph.check_pruning_group(group)
        reference.silence(graph, group, attention=root in heads)
        group.prune()
        # float32 sums in another order, up to 216 terms of size 1
        torch.testing.assert_close(run(model, case, length), run(dense, case, length), rtol=0, atol=1e-5)
    assert length < 8 or not torch.equal(run(dense, case, length), before)  # silencing did something


@pytest.mark.parametrize("name", ["lift", "loop", "sew", "concat", "recurrent", "transformer"])
def test_graph_does_not_grow_with_time(name: str) -> None:
    sizes, seconds = [], []
    for length in (2, 32):
        start = time.perf_counter()
        graph = traced(make(name), CASES[name].example(length))
        seconds.append(time.perf_counter() - start)
        sizes.append([len(graph.module2node), sum(len(node.dependencies) for node in graph.module2node.values())])
    assert sizes[0] == sizes[1]
    assert seconds[1] < 16 * 3 * seconds[0] + 1  # linear in T, with room for a busy machine


def test_groups_of_a_residual_and_of_a_concatenation() -> None:
    model = Sew().eval()
    graph = traced(model, CASES["sew"].example(3))
    group = graph.get_pruning_group(model.stem, tp.prune_conv_out_channels, [1, 4])
    found = {
        (graph._module2name[i.dep.target.module], reads_only(graph, i)): sorted(i.idxs)
        for i in group.items
        if i.dep.target.module in graph._module2name
    }
    assert found == {
        (n, r): [1, 4]
        for n, r in [("stem", False), ("conv1", False), ("conv1", True), ("inner", True), ("short", True)]
    }
    model = make("concat")
    graph = traced(model, CASES["concat"].example(3))
    group = graph.get_pruning_group(model.right.lifted_module, tp.prune_conv_out_channels, [2])
    found = {
        graph._module2name[i.dep.target.module]: sorted(i.idxs)
        for i in group.items
        if i.dep.target.module in graph._module2name
    }
    assert found["fc"] == list(range(36 * 6, 36 * 7))  # behind 4 channels of the left branch and 2 of its own
    assert found["mix.lifted_module"] == [6]


def test_everything_is_as_before_afterwards() -> None:
    model = Loop()
    model.norm.eval()
    model.fc1.weight.requires_grad_(False)
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    random, build = torch.random.get_rng_state(), tp.DependencyGraph.build_dependency
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with torch.no_grad():
        traced(model, CASES["loop"].example(2))
        assert not torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert not model.fc1.weight.requires_grad
    assert model.fc2.weight.requires_grad
    assert all("activation" in vars(m) for m in (model.lif, model.lif1))
    assert tp.DependencyGraph.build_dependency is build
    with pytest.raises(RuntimeError), exact_tracing(model):
        tp.DependencyGraph().build_dependency(model, (torch.rand(1, 1, 3, 3, 3),))
    assert tp.DependencyGraph.build_dependency is build
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_frozen_parameters_and_heaviside_hide_nothing() -> None:
    model = norse.SequentialState(
        nn.Linear(4, 6), norse.LIFCell(norse.LIFParameters(method="heaviside")), nn.Linear(6, 3)
    ).requires_grad_(False)
    graph = traced(model, torch.rand(2, 4))
    group = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [1])
    assert any(item.dep.target.module is model[2] and item.idxs == [1] for item in group.items)
    assert not any(p.requires_grad for p in model.parameters())


def test_output_transform_gets_what_the_model_returns() -> None:
    model, seen = make("step"), []
    traced(model, CASES["step"].example(1), output_transform=lambda output: seen.append(output) or output[0])
    assert isinstance(seen[0], tuple)


def test_one_neuron_may_serve_two_places_and_attention_scores() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.lif = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3), norse.LIF(LIF)

        def forward(self, x: Tensor) -> Tensor:
            z = self.lif(self.b(self.lif(self.a(x))[0]))[0]
            scores, _ = self.lif(z @ z.transpose(-2, -1))
            output: Tensor = self.c(scores @ z)
            return output

    model = Shared().eval()
    graph = traced(model, torch.rand(3, 2, 5, 4))
    for root, count in ((model.a, 2), (model.b, 2)):
        graph.get_pruning_group(root, tp.prune_linear_out_channels, list(range(count))).prune()
    assert (model.b.in_features, model.b.out_features, model.c.in_features) == (4, 6, 6)
    assert not graph.sbc_tangled
    assert model(torch.rand(3, 2, 5, 4)).shape == (3, 2, 5, 3)


def test_another_model_is_traced_by_torch_pruning_itself() -> None:
    other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with exact_tracing(make("step")):
        graph = tp.DependencyGraph().build_dependency(other, (torch.rand(2, 4),))
    assert not hasattr(graph, "sbc_tangled")


def test_pruner_of_torch_pruning_works_inside_and_steps_outside() -> None:
    model = make("concat")
    case = CASES["concat"]
    with exact_tracing(model):
        pruner = tp.pruner.BasePruner(
            model, trace_inputs(model, case.example(8)), importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=0.5, ignored_layers=[model.fc], iterative_steps=2,
            in_channel_groups={}, out_channel_groups={}, num_heads={},
        )  # fmt: skip
    for _ in range(2):
        pruner.step()
        assert torch.isfinite(run(model, case, 8)).all()
    assert (model.left.lifted_module.out_channels, model.right.lifted_module.out_channels) == (2, 3)
    assert model.fc.in_features == 36 * 5 + 36 * 2 + 2
    again = make("concat")
    graph = traced(again, case.example(2))
    graph.load_pruning_history(pruner.pruning_history())
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again, case, 8), run(model, case, 8))


def test_head_pruning_takes_whole_heads() -> None:
    model = make("transformer")
    heads = heads_of(model)
    with exact_tracing(model):
        pruner = tp.pruner.BasePruner(
            model, trace_inputs(model, CASES["transformer"].example(2)), importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=0.5, ignored_layers=[model.fc, model.embed, model.up], num_heads=heads, prune_num_heads=True,
            prune_head_dims=False, head_pruning_ratio=0.5, in_channel_groups={}, out_channel_groups={},
        )  # fmt: skip
    pruner.step()
    model.heads = heads[model.query]
    assert model.heads == 1
    assert model.query.out_features == model.out.in_features == 4
    assert torch.isfinite(run(model, CASES["transformer"], 8)).all()


def test_groups_of_networks_that_torch_pruning_knows_are_its_own() -> None:
    zoo = pytest.importorskip("torchvision.models")
    kinds = (*READERS, nn.BatchNorm2d)
    for model in (
        zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1]),
        zoo.DenseNet(4, (2, 2), 8),
        zoo.squeezenet1_1(),
        zoo.MobileNetV2(width_mult=0.25),
    ):
        x = torch.rand(1, 3, 64, 64)
        names = {module: name for name, module in model.named_modules() if isinstance(module, kinds)}
        ours, theirs = (
            {
                frozenset(
                    (names[d.target.module], d.handler.__name__, *sorted(i))
                    for d, i in group
                    if d.target.module in names
                )
                for group in graph.get_all_groups()
            }
            for graph in (traced(model, x), tp.DependencyGraph().build_dependency(model, (x,), verbose=False))
        )
        assert len(ours) > 5
        assert ours == theirs
