"""What we lean on in torch-pruning, one test a fact: an upstream change fails here by name."""

import inspect
import subprocess
import sys
from typing import Any

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from torch import nn

from integration_tests.models.channel_networks import CASES, make
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, trace_inputs


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X = (torch.rand(1, 2, 4, 4),)


def build(model: nn.Module, x: Any = X, **options: Any) -> Any:
    return tp.DependencyGraph().build_dependency(model, x, verbose=False, **options)


def test_build_dependency_takes_its_nodes_from_trace() -> None:
    seen = {}

    class Graph(tp.DependencyGraph):  # type: ignore[misc]
        def _trace(self, model: Any, example_inputs: Any, forward_fn: Any, output_transform: Any) -> Any:
            seen["pruners"], seen["ignored"] = dict(self.CUSTOMIZED_PRUNERS), list(self.IGNORED_LAYERS_IN_TRACING)
            seen["unwrapped"] = list(self.unwrapped_parameters)
            self.result = super()._trace(model, example_inputs, forward_fn, output_transform)
            return self.result

    class Block(nn.Sequential):
        pass

    model = net()
    model[1] = Block(nn.ReLU())
    model.scale = nn.Parameter(torch.ones(3))
    pruner = tp.ops.ElementWisePruner()
    graph = Graph().build_dependency(model, X, customized_pruners={Block: pruner}, verbose=False)
    assert graph.module2node is graph.result
    assert seen["pruners"] == {Block: pruner}
    assert model[1][0] in seen["ignored"]  # parts of a customised layer are not traced
    assert [(value is model.scale, dim) for value, dim in seen["unwrapped"]] == [(True, 0)]
    names = list(inspect.signature(tp.DependencyGraph.build_dependency).parameters)
    assert names[1:5] == ["model", "example_inputs", "forward_fn", "output_transform"]
    assert names[5:7] == ["unwrapped_parameters", "customized_pruners"]


def test_a_node_depends_on_its_inputs_first_and_then_on_its_outputs() -> None:
    for node in build(net()).module2node.values():
        assert [dependency.target for dependency in node.dependencies] == node.inputs + node.outputs
        assert all(dependency.source is node for dependency in node.dependencies)
        assert all(len(dependency.index_mapping) == 2 for dependency in node.dependencies)


def test_index_mappings_get_named_tuples_in_order_and_elementwise_nodes_keep_theirs() -> None:
    model = net()
    graph = build(model)
    calls: list[str] = []

    def mapping(name: str) -> Any:
        def call(idxs: list[Any]) -> list[Any]:
            calls.append(name)
            assert all((i.idx, i.root_idx) == (1, 1) for i in idxs)
            return [i._replace(idx=i.idx) for i in idxs]

        return call

    dependency = next(
        d for d in graph.module2node[model[0]].dependencies if d.target in graph.module2node[model[0]].outputs
    )
    assert dependency.target.type == tp.ops.OPTYPE.ELEMENTWISE
    dependency.index_mapping = [mapping("first"), mapping("second")]
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1])
    assert calls == ["first", "second"]
    assert group[0].root_idxs == [1]


def test_modules_that_torch_pruning_does_not_know_are_elementwise() -> None:
    class Strange(nn.Module):
        pass

    assert tp.ops.module2type(Strange()) == tp.ops.OPTYPE.ELEMENTWISE
    assert tp.DependencyGraph().REGISTERED_PRUNERS[tp.ops.OPTYPE.ELEMENTWISE].get_out_channels(Strange()) is None
    node = tp.dependency.Node(Strange(), None, "name")
    assert (node.inputs, node.outputs, node.dependencies, node.pruning_dim) == ([], [], [], -1)


def test_customised_pruners_are_looked_up_by_class() -> None:
    model, pruner = net(), tp.pruner.function.ConvPruner()
    assert build(model, customized_pruners={nn.Conv2d: pruner}).get_pruner_of_module(model[0]) is pruner
    with pytest.raises(TypeError):
        build(model, customized_pruners={model[0]: pruner})


def test_pruning_dimension_of_a_parameter_is_handed_to_its_pruner() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shift, self.b = nn.Linear(4, 6), nn.Parameter(torch.zeros(6, 1)), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.b(self.a(x) + self.shift[:, 0])

    model = Shifted()
    graph = build(model, (torch.rand(2, 4),), unwrapped_parameters=[(model.shift, 0)])
    graph.get_pruning_group(model.a, tp.prune_linear_out_channels, [1, 2]).prune()
    assert model.shift.shape == (4, 1)


def test_pruner_builds_its_graph_through_the_method_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = tp.DependencyGraph.build_dependency

    def spy(graph: Any, model: Any, *rest: Any, **named: Any) -> Any:
        built.append(model)
        return original(graph, model, *rest, **named)

    monkeypatch.setattr(tp.DependencyGraph, "build_dependency", spy)
    model = net()
    tp.pruner.BasePruner(model, X, importance=tp.importance.RandomImportance(), in_channel_groups={}, num_heads={})
    assert built == [model]


def test_both_kinds_of_step_take_their_groups_from_prune() -> None:
    class Pruner(tp.pruner.BasePruner):  # type: ignore[misc]
        def _prune(self) -> Any:
            asked.append(self.current_step)
            return iter(())

    asked: list[int] = []
    model = net()
    pruner = Pruner(
        model, X, tp.importance.RandomImportance(), in_channel_groups={}, out_channel_groups={}, num_heads={}
    )
    pruner.step()
    list(pruner.step(interactive=True))
    assert asked == [1, 2]


def test_handlers_say_whether_they_prune_inputs_or_outputs() -> None:
    graph = build(net())
    assert graph.is_out_channel_pruning_fn(tp.prune_conv_out_channels)
    assert not graph.is_out_channel_pruning_fn(tp.prune_conv_in_channels)
    assert graph.is_in_channel_pruning_fn(tp.prune_linear_in_channels)
    assert graph.is_out_channel_pruning_fn(tp.prune_depthwise_conv_in_channels)  # one function for both sides


def test_defaults_of_the_pruner_are_shared_so_that_we_pass_fresh_ones() -> None:
    parameters = inspect.signature(tp.pruner.BasePruner.__init__).parameters
    assert parameters["num_heads"].default == {} or isinstance(parameters["num_heads"].default, dict)
    assert isinstance(parameters["out_channel_groups"].default, dict)


def test_importing_us_changes_nothing() -> None:
    code = """
import torch_pruning as tp
seams = lambda: [tp.DependencyGraph, *vars(tp.DependencyGraph).values(), *vars(tp.pruner.BasePruner).values(),
                 *vars(tp.pruner).values(), *vars(tp.importance).values(), *vars(tp.pruner.function).values()]
before = list(map(id, seams()))
import sbc_plugin.torch_pruning, sbc_plugin.torch_pruning.graph.dependency_graph, sbc_plugin.torch_pruning.audit
assert list(map(id, seams())) == before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


# Why the graph is not built by torch-pruning alone. Where one of these fails, the host has become better.


def test_stock_tracing_unpacks_a_bare_tensor_and_leaves_eval_mode() -> None:
    model = nn.Linear(4, 4).train()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs)))
    build(model, torch.rand(1, 4))
    assert seen == [1]
    assert not model.training
    assert trace_inputs(model, X[0])[0] is X[0]


def test_stock_tracing_sees_nothing_behind_frozen_weights() -> None:
    model = net().requires_grad_(False)
    assert model[0] not in build(model).module2node
    with exact_tracing(model):
        assert model[0] in build(model).module2node


def test_stock_tracing_pairs_wrong_features_behind_flatten_in_a_sequence() -> None:
    model, case = make("lift"), CASES["lift"]
    stock = build(model, (case.example(2),), output_transform=lambda output: output[0])
    with exact_tracing(model):
        exact = build(model, (case.example(2),))
    read = []
    for graph in (stock, exact):
        group = graph.get_pruning_group(model[0].lifted_module, tp.prune_conv_out_channels, [1])
        read.append(next(item.idxs for item in group.items if item.dep.target.module is model[4]))
    assert sorted(read[1]) == list(range(9, 18))
    assert sorted(read[0]) != sorted(read[1])


def test_stock_tracing_does_not_know_recurrent_cells() -> None:
    model = norse.SequentialState(nn.Linear(4, 6), norse.LIFRecurrentCell(6, 5), nn.Linear(5, 3))
    graph = build(model, (torch.rand(2, 4),), output_transform=lambda output: output[0])
    assert model[1] not in graph.module2node
    with exact_tracing(model):
        assert model[1] in build(model, (torch.rand(2, 4),)).module2node
