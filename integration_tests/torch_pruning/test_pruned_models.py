"""What surrounds a cut: torch-pruning left as it is, its methods on spiking models, BatchNorm, files."""

import subprocess
import sys
from pathlib import Path

import norse.torch as norse
import pytest
import torch
import torch_pruning as tp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from integration_tests.models.channel_cases import BOX, CASES, Plain, Sew, cells, events, images, last_layer, prepared
from sbc_plugin import load, save
from sbc_plugin.checkpoint.file import write
from sbc_plugin.errors import CheckpointError, UnsupportedModelError
from sbc_plugin.torch_pruning import (
    SBCImportance,
    SBCPruner,
    get_pruner,
    load_pruned,
    reestimate_batchnorm,
    register,
    save_pruned,
)
from sbc_plugin.torch_pruning.audit import Audit
from sbc_plugin.torch_pruning.methods import METHODS
from sbc_plugin.torch_pruning.statistics import gather_consumers

UNTOUCHED = """
import sys, torch_pruning as tp, torch_pruning.dependency, torch_pruning.pruner.function
modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "torch_pruning"]
def seen():
    inside = lambda v: tuple(sorted((k, id(x)) for k, x in vars(v).items())) if isinstance(v, type) else ()
    return {(m.__name__, n): (id(v), inside(v))
            for m in modules for n, v in vars(m).items()}
before = seen()
import sbc_plugin.torch_pruning
after = seen()
assert before == after, {k for k in after if before.get(k) != after[k]}
assert not hasattr(tp.pruner, "SBCPruner")
"""


def test_importing_the_plugin_patches_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNTOUCHED], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_register_adds_two_names() -> None:
    with register():
        assert tp.pruner.SBCPruner is SBCPruner and tp.importance.SBCImportance is SBCImportance
    assert not hasattr(tp.pruner, "SBCPruner") and not hasattr(tp.importance, "SBCImportance")


WITHOUT_GRADIENTS = sorted(set(METHODS) - {"obdc", "taylor", "hessian"})


@pytest.mark.parametrize("method", WITHOUT_GRADIENTS)
def test_torch_prunings_methods_run_on_spiking_models(method: str) -> None:
    model, x = prepared(Sew()), events()
    model.train()
    pruner = get_pruner(method, model, x, pruning_ratio=0.5, ignored_layers=[model.last])
    assert model.training
    pruner.step()
    # "slim" knows no group without a BatchNorm; this one has one
    assert model.stem.out_channels == model.block.in_channels == 3 and model.last.in_features == 3 * 16
    assert model(x).shape == (8, 3)


@pytest.mark.parametrize("method", ["taylor", "hessian"])
def test_methods_that_want_gradients_take_them_from_the_script(method: str) -> None:
    model, x = prepared(Sew()), events()
    pruner = get_pruner(method, model, (x,), pruning_ratio=0.5, ignored_layers=[model.last])
    model(x).square().sum().backward()
    if method == "hessian":
        pruner.importance.accumulate_grad(model)
    pruner.step()
    assert model.stem.out_channels == 3


def test_batchnorm_is_averaged_anew_by_forward_passes_alone() -> None:
    model, x = prepared(Plain()), images(64)
    weights = [parameter.clone() for parameter in model.parameters()]
    assert reestimate_batchnorm(model, [x[:32], x[32:]]) == 1
    with torch.no_grad():
        halves = [model.first(x[:32]), model.first(x[32:])]
    expected = torch.stack([half.mean((0, 2, 3)) for half in halves]).mean(0)
    assert_close(model.norm.running_mean, expected)
    assert_close(model.norm.running_var, torch.stack([half.var((0, 2, 3)) for half in halves]).mean(0))
    assert model.norm.momentum == 0.1 and not model.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_the_pruner_renews_batchnorm_when_asked() -> None:
    model, x = prepared(Sew()), events()
    get_pruner("sbc", model, (x,), calibration_data=[x], ignored_layers=[model.last], reestimate=True).step()
    seen: list[Tensor] = []
    with torch.no_grad():
        model.block.register_forward_hook(lambda module, inputs, output: seen.append(output.mean((0, 2, 3))))
        model(x)
    # What reaches the block does not depend on the norm behind it.
    assert_close(model.norm.running_mean, torch.stack(seen).mean(0))


@pytest.mark.parametrize("case", ["plain", "cells", "sew", "recurrent"])
def test_a_saved_model_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    make, data, example, run = CASES[case]
    model, fresh, x = prepared(make()), prepared(make()), data()
    pruner = get_pruner("sbc", model, (example(x),), calibration_data=[x], pruning_ratio=0.5, iterative_steps=2,
                        ignored_layers=[last_layer(model)])  # fmt: skip
    pruner.step()
    pruner.step()
    save_pruned(tmp_path / "small.safetensors", model, pruner.pruning_history())
    loaded = load_pruned(tmp_path / "small.safetensors", fresh, (example(x),))
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]
    with torch.no_grad():
        assert torch.equal(run(loaded, x), run(model, x))


def test_neuron_parameters_of_each_channel_come_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        tau = torch.linspace(300, 600, 8, dtype=torch.float64)
        neuron = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=tau))
        torch.manual_seed(0)
        return prepared(norse.SequentialState(nn.Linear(12, 8), neuron, nn.Linear(8, 3), norse.LIFBoxCell(BOX)))

    model, x = make(), events((12,))
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model[2]])
    pruner.step()
    save_pruned(tmp_path / "small.safetensors", model, pruner.pruning_history())
    loaded = load_pruned(tmp_path / "small.safetensors", make(), (x[0],))
    assert torch.equal(loaded[1].p.tau_mem_inv, model[1].p.tau_mem_inv) and len(model[1].p.tau_mem_inv) == 4


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, x = prepared(cells()), events()
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model[7]])
    pruner.step()
    save_pruned(tmp_path / "small.safetensors", model, pruner.pruning_history())
    with pytest.raises(CheckpointError, match="which this Plain does not have"):
        load_pruned(tmp_path / "small.safetensors", prepared(Plain()), (images(1),))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no pruned model"):
        load_pruned(tmp_path / "other.safetensors", prepared(cells()), (x[0],))
    save(tmp_path / "whole.safetensors", model)
    with pytest.raises(CheckpointError, match="it has no history of cuts"):
        load_pruned(tmp_path / "whole.safetensors", prepared(cells()), (x[0],))
    for history in ([["0", True]], [["0", True, "x"]], 3):
        write(tmp_path / "odd.safetensors", model, {"report": None, "history": history})
        with pytest.raises(CheckpointError, match="damaged history"):
            load_pruned(tmp_path / "odd.safetensors", prepared(cells()), (x[0],))


@pytest.mark.parametrize("case", ["plain", "cells", "sew", "recurrent"])
def test_load_reads_what_save_pruned_writes(case: str, tmp_path: Path) -> None:
    make, data, example, run = CASES[case]
    model, x = prepared(make()), data()
    pruner = get_pruner("l2", model, (example(x),), pruning_ratio=0.5, ignored_layers=[last_layer(model)])
    pruner.step()
    save_pruned(tmp_path / "small.safetensors", model, pruner.pruning_history())
    loaded, report = load(tmp_path / "small.safetensors", prepared(make()))
    with torch.no_grad():
        assert report is None and torch.equal(run(loaded, x), run(model, x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.first = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.heads(x, x, x)[0])


def test_sizes_that_only_torch_pruning_changes_come_back(tmp_path: Path) -> None:
    x = torch.rand(5, 7, 4)
    models = [Attention().eval(), Attention().eval()]
    pruner = get_pruner("l2", models[0], (x,), pruning_ratio=0.5, ignored_layers=[models[0].last],
                        num_heads={models[0].heads: 2})  # fmt: skip
    pruner.step()
    save_pruned(tmp_path / "small.safetensors", models[0], pruner.pruning_history())
    loaded = load_pruned(tmp_path / "small.safetensors", models[1], (x,), num_heads={models[1].heads: 2})
    assert loaded.heads.embed_dim == models[0].heads.embed_dim == 4
    assert torch.equal(loaded(x), models[0](x))
    with pytest.raises(CheckpointError, match="a MultiheadAttention cannot be resized"):
        load(tmp_path / "small.safetensors", Attention())


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    model = prepared(cells())
    for place in (tmp_path / "none.safetensors", tmp_path / "no folder" / "a.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read: no such file"):
            load_pruned(place, model, (events()[0],))
    for place in (tmp_path / "no folder" / "a.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="give the path of a file"):
            save_pruned(place, model, [])
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(CheckpointError, match="holds no pruned model"):
        load_pruned(tmp_path / "text.safetensors", model, (events()[0],))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.safetensors"]


def test_groups_that_the_audit_rejects_are_refused_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = prepared(cells()), events()
    before = [parameter.clone() for parameter in model.parameters()]
    pruner = get_pruner("sbc", model, (x[0],), calibration_data=[x], ignored_layers=[model[7]])

    found = Audit(("0", "2", "7"), (("2", "channel 1 also feeds '7'"),))
    monkeypatch.setattr("sbc_plugin.torch_pruning.pruner.audit", lambda *given, **named: found)
    with pytest.raises(UnsupportedModelError, match=r"1 layer would.*'2': channel 1 also feeds '7'.*nothing was cut"):
        pruner.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("recalibrate", [True, False])
def test_statistics_shrink_with_the_model_or_are_gathered_anew(recalibrate: bool) -> None:
    model, x = prepared(cells()), events()
    importance = SBCImportance([x], recalibrate=recalibrate)
    pruner = get_pruner("l1", model, (x[0],), importance=importance, iterative_steps=2, ignored_layers=[model[7]])
    pruner.step()
    next(pruner.step(interactive=True))  # scores, and cuts nothing
    held = {consumer.name: consumer.hessian for consumer, _ in importance._consumers.values()}
    found, _ = gather_consumers(model, [x], importance.calibration)
    same = [torch.allclose(held[consumer.name], consumer.hessian) for consumer in found]
    assert [held[consumer.name].shape for consumer in found] == [consumer.hessian.shape for consumer in found]
    assert all(same) if recalibrate else not all(same)  # deeper layers see other spikes once their inputs were cut
