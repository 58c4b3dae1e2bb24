"""Who reads a channel: many layers changed in the same runs say what each of them says alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integration_tests.strangers.networks import network
from integration_tests.torch_pruning.test_dependency_graph import traced
from sbc_plugin.torch_pruning import audit, readers
from sbc_plugin.torch_pruning.graph.dependency_graph import group_of
from sbc_plugin.torch_pruning.readers import MIXED, UNRELATED, readers_of
from sbc_plugin.torch_pruning.rehearsal import Rehearsal
from sbc_plugin.torch_pruning.replay import Replay


def as_lists(readers: Any) -> Any:
    return {name: {reader: numbers.tolist() for reader, numbers in each.items()} for name, each in readers.items()}


@pytest.mark.parametrize("seed", range(500, 515))
def test_layers_together_say_what_each_says_alone(seed: int) -> None:
    stranger = network(seed)
    replay = Replay(stranger.model, stranger.example)
    names = [name for name in replay.layers if replay.channels(name) > 1]
    alone = {name: readers_of(replay, [name])[name] for name in names}
    assert as_lists(readers_of(replay, names)) == as_lists(alone)


def test_layers_that_reach_different_inputs_share_their_runs() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))
    replay, runs = Replay(model.eval(), torch.rand(2, 8)), []
    changed = replay.changed
    replay.changed = lambda tested, change: runs.append(tested) or changed(tested, change)  # type: ignore[method-assign]
    found = readers_of(replay, list(replay.layers))
    assert all(found[str(n)][str(n + 1)].tolist() == list(range(8)) for n in range(29))
    assert len(runs) < 2 * 30  # one a layer, and the bits of 240 channels; 30 layers alone take 6 runs each


class Compared(nn.Module):
    """The second layer's inputs depend on an order in ``side``, which no change of all its channels alters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.side, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        largest = side.argmax(-1, keepdim=True) == side.abs().argmin(-1, keepdim=True)
        return self.last(torch.where(largest, -1.0, 1.0) * self.first(x))


def test_a_layer_that_some_of_its_channels_alone_make_seen_is_run_alone() -> None:
    replay = Replay(Compared().eval(), torch.rand(5, 4))
    alone = {name: readers_of(replay, [name])[name] for name in ("first", "side")}
    together = readers_of(replay, ["first", "side"])
    assert as_lists(together)["first"] == as_lists(alone)["first"] == {"last": list(range(6))}
    assert set(as_lists(alone)["side"].get("last", [])) <= {MIXED, *range(-1, 6)}


class Scaled(nn.Module):
    """Its own pruning function cuts the tensors in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.norm.note = [1, 2]  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_a_rehearsal_leaves_its_copy_as_it_was() -> None:
    model = Scaled().eval()
    graph = traced(model, torch.rand(2, 3, 8, 8))
    rehearsal = Rehearsal(Replay(model, torch.rand(2, 3, 8, 8)), graph)
    before = {name: (tensor, tensor.clone()) for name, tensor in rehearsal._copy.state_dict(keep_vars=True).items()}
    for channel in (0, 5):
        assert rehearsal.wrong([group_of(graph, model.first, [channel])]) == ""
    after = rehearsal._copy.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in before.items())
    assert rehearsal._copy.first.out_channels == 8 and rehearsal._copy.norm.num_features == 8  # type: ignore[union-attr]


def test_a_pruning_function_that_cuts_in_place_is_rehearsed_as_well() -> None:
    model = Scaled().eval()
    graph = traced(model, torch.rand(2, 3, 8, 8))
    pruner = graph.get_pruner_of_module(model.norm)

    def in_place(layer: Any, idxs: Any) -> Any:
        kept = [k for k in range(layer.num_features) if k not in idxs]
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.data = tensor.data[kept]
        layer.num_features = len(kept)
        layer.note.append(3)
        return layer

    in_place.__self__ = pruner  # type: ignore[attr-defined]
    rehearsal = Rehearsal(Replay(model, torch.rand(2, 3, 8, 8)), graph)
    group = group_of(graph, model.first, [2])
    for item in group.items:
        if item.dep.target.module is model.norm:
            item.dep.handler = in_place
    for _ in range(2):
        assert rehearsal.wrong([group]) == ""
    norm = rehearsal._copy.norm
    assert norm.num_features == 8 and len(norm.weight) == 8 and norm.note == [1, 2]  # type: ignore[union-attr]


class Excited(nn.Module):
    """Squeeze and excitation at one pixel, where some rectifiers never open for the weights that are drawn first."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 512, 3, padding=1, groups=8), nn.BatchNorm2d(512)
        self.squeeze, self.excite, self.gate = nn.Conv2d(512, 4, 1), nn.Conv2d(4, 512, 1), gate
        self.last = nn.Conv2d(512, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return self.last(h * self.gate(self.excite(torch.relu(self.squeeze(h)))))


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Identity()], ids=str)
def test_a_gate_is_seen_behind_rectifiers_that_do_not_open(gate: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Excited(gate).eval(), torch.rand(1, 8, 1, 1)
    replay = Replay(model, x)
    found = readers_of(replay, ["excite"])["excite"]
    assert as_lists({"excite": found}) == {"excite": {"last": list(range(512))}}
    assert audit(model, x).ok
    monkeypatch.setattr(readers, "DRAWN_AGAIN", 0)
    assert (readers_of(replay, ["excite"])["excite"]["last"] == UNRELATED).any()


def test_channels_that_no_layer_reads_stay_unseen() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 2))
    model[1].forward = lambda x: x[:, :6]  # type: ignore[method-assign]
    model[3] = nn.Linear(6, 2)
    assert as_lists(readers_of(Replay(model.eval(), torch.rand(3, 4)), ["0"])) == {"0": {"3": list(range(6))}}
