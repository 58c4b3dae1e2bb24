"""On a GPU everything comes out as on the CPU; skipped where torch sees none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sbc_plugin
from integration_tests.models import channel_cases
from integration_tests.models import channel_networks as tp_models
from integration_tests.models.cases import CASES
from integration_tests.models.networks import Case
from integration_tests.models.one_shot import compress
from integration_tests.torch_pruning.test_channel_matrix import heads_of
from sbc_plugin import Calibration, Prune, Quantize, Report, compare, load, record_spikes, save
from sbc_plugin.evaluation.evaluate import evaluate
from sbc_plugin.nir import graph_of, integers, read
from sbc_plugin.norse import default_forward
from sbc_plugin.torch_pruning import get_pruner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SEQUENTIAL = Calibration(order="sequential", tuning=0)
SETTINGS: dict[str, dict[str, Any]] = {
    "obs": {"prune": Prune(0.6, solver="obs")},
    "admm": {"prune": Prune(0.6, solver="admm")},
    "hybrid": {"prune": Prune(0.6, solver="hybrid")},
    "loss curves": {"prune": Prune(0.6, allocation="loss")},
    "blocks": {"prune": Prune(0.5, pattern="block:2")},
    "silent first": {"prune": Prune(0.6, silent_first=True, rescale=True)},
    "rounds": {"prune": Prune(0.75, rounds=2)},
    "absmax": {"quantize": Quantize(3, scale="absmax", granularity="tensor")},
    "power of two": {"quantize": Quantize(4, scale="power_of_two", symmetric=False)},
    "shared bits": {"quantize": Quantize(3, allocation="loss")},
    "OBC": {"method": "obc", "prune": Prune(0.6), "quantize": Quantize(4)},
    "magnitude": {"method": "magnitude", "prune": Prune(0.6)},
    "rounding": {"method": "rtn", "quantize": Quantize(4)},
    "sequential pruning": {"prune": Prune(0.6), "calibration": SEQUENTIAL},
    "sequential": {"prune": Prune(0.6), "quantize": Quantize(4), "calibration": SEQUENTIAL},
    "some samples": {"prune": Prune(0.6), "calibration": Calibration(max_samples=30, tuning=0)},
    "tuned": {"prune": Prune(0.6), "quantize": Quantize(4), "calibration": Calibration(tuning=5)},
    "solved on the CPU": {
        "prune": Prune(0.6, silent_first=True, rescale=True),
        "quantize": Quantize(4, allocation="loss"),
        "calibration": Calibration(device="cpu", tuning=5),
    },
    "one by one on the CPU": {
        "prune": Prune(0.6, allocation="loss"),
        "quantize": Quantize(4),
        "calibration": replace(SEQUENTIAL, device="cpu"),
    },
}


def moved(held: Any) -> Any:
    """On the GPU: a tensor, or a tuple of parameters as Norse's neurons have them, which ``Module.to`` leaves."""
    if isinstance(held, Tensor):
        return held.cuda()
    return type(held)(*map(moved, held)) if hasattr(held, "_fields") else held


def on_gpu(model: nn.Module) -> nn.Module:
    """Moved, with what Norse keeps outside of parameters and buffers."""
    for module in model.modules():
        for name, held in list(vars(module).items()):
            if isinstance(held, Tensor) or hasattr(held, "_fields"):
                setattr(module, name, moved(held))
    return model.cuda()


PLACES: tuple[Callable[[nn.Module], nn.Module], ...] = (nn.Module.cpu, on_gpu)


def data_of(case: Case) -> list[Tensor]:
    return [case.batch(torch.float64, seed) for seed in (1, 2)]


def both(name: str, default: str = "cpu", **settings: Any) -> list[tuple[nn.Module, Report]]:
    """Compressed on the CPU and, with this default device, on the GPU.

    In float64, in which no spike and no choice hangs on the last bits.
    """
    case = CASES[name]
    data, model = data_of(case), case.model(torch.float64)
    here = compress(model, data, forward=case.forward, **settings)
    with torch.device(default):
        there = compress(on_gpu(model), [x.cuda() for x in data], forward=case.forward, **settings)
    return [here, there]


def assert_same(here: nn.Module, there: nn.Module) -> None:
    expected = here.state_dict()
    for name, found in there.state_dict().items():
        assert found.is_cuda, name
        torch.testing.assert_close(found.cpu(), expected[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_rows(here: Report, there: Report) -> None:
    for a, b in zip(here.layers, there.layers, strict=True):
        assert (a.name, a.samples, a.bits) == (b.name, b.samples, b.bits)
        assert (b.loss, b.sparsity) == pytest.approx((a.loss, a.sparsity), rel=1e-5, abs=1e-8)
    assert there.skipped == here.skipped


@pytest.mark.parametrize("default", ["cpu", "cuda"])
@pytest.mark.parametrize("name", CASES)
def test_every_network_pruned_and_quantised(name: str, default: str) -> None:
    (here, report), (there, found) = both(name, default, prune=Prune(0.5), quantize=Quantize(4))
    assert_same(here, there)
    assert_same_rows(report, found)


@pytest.mark.parametrize("default", ["cpu", "cuda"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["conv", "LIFRecurrentCell"])
def test_every_setting(name: str, setting: str, default: str) -> None:
    (here, report), (there, found) = both(name, default, **SETTINGS[setting])
    assert_same(here, there)
    assert_same_rows(report, found)


def test_defaults_take_batches_from_the_cpu() -> None:
    """As a loader gives them; tuned, as a call is that does not say otherwise."""
    case = CASES["step"]
    data, model = data_of(case), case.model(torch.float64)
    here, _ = sbc_plugin.compress(model, data, prune=Prune(0.5), quantize=Quantize(3))
    there, _ = sbc_plugin.compress(on_gpu(model), data, prune=Prune(0.5), quantize=Quantize(3))
    assert_same(here, there)


def test_files_go_from_one_to_the_other(tmp_path: Path) -> None:
    case = CASES["conv"]
    _, (there, report) = both("conv", prune=Prune(0.5), quantize=Quantize(2))
    for default in ("cpu", "cuda"):
        for fresh in (case.model(torch.float64, seed=5), on_gpu(case.model(torch.float64, seed=5))):
            device = next(fresh.parameters()).device
            with torch.device(default):
                save(tmp_path / "a.safetensors", there, report)
                again, _ = load(tmp_path / "a.safetensors", fresh)
            for name, tensor in again.state_dict().items():
                assert tensor.device == device and torch.equal(tensor.cpu(), there.state_dict()[name].cpu())


def test_comparison_evaluation_and_recordings() -> None:
    case = CASES["conv"]
    dense, data = case.model(torch.float64), data_of(case)
    (here, _), (there, _) = both("conv", prune=Prune(0.7))
    expected = compare(dense, here, data).to_dict()
    recorded = record_spikes(here, data)
    gpu, batches = on_gpu(dense), [(x.cuda(), torch.zeros(x.shape[1], dtype=torch.long)) for x in data]
    assert _rounded(compare(gpu, there, batches).to_dict()) == _rounded(expected)
    assert evaluate(gpu, there, batches).accuracy is not None
    assert compare(recorded, there, data).distance < 1e-9


def _rounded(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: _rounded(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_rounded(value) for value in told]
    return float(f"{told:.6g}") if isinstance(told, float) else told


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("name", tp_models.CASES)
def test_channels(name: str, device: str | None) -> None:
    case = tp_models.CASES[name]
    found = []
    for put in PLACES:
        model = put(tp_models.make(name).double())
        where = next(model.parameters()).device
        readout = min((m for m in model.modules() if isinstance(m, nn.Linear)), key=lambda layer: layer.out_features)
        x, example = case.sequence(8).double().to(where), case.example(8).double().to(where)
        pruner = get_pruner(
            "sbc",
            model,
            example,
            calibration_data=[x],
            pruning_ratio=0.4,
            calibration=Calibration(device=device),
            ignored_layers=[readout],
            num_heads=heads_of(model),
        )
        pruner.step()
        with torch.no_grad():
            found.append(default_forward(model, x)(model, x).cpu())
    # float64 weights, but membranes of parameters in float32
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_single_weights_through_torch_pruning() -> None:
    model, x = channel_cases.prepared(channel_cases.cells()), channel_cases.events()
    expected, _ = compress(model, [x], prune=Prune(0.5))
    gpu = on_gpu(model)
    pruner = get_pruner("sbc", gpu, x[0].cuda(), calibration_data=[x], pattern="unstructured", pruning_ratio=0.5)
    pruner.step()
    pruner.apply_masks()
    assert_same(expected, gpu)


@pytest.mark.parametrize("allocation", ["uniform", "loss"])
def test_brevitas_layers(allocation: str) -> None:
    pytest.importorskip("brevitas")
    settings = {"quantize": Quantize(3, allocation=allocation), "backend": "brevitas"}
    (here, _), (there, _) = both("conv", **settings)
    for a, b in zip(here.modules(), there.modules(), strict=True):
        if hasattr(a, "quant_weight"):
            found, expected = b.quant_weight(), a.quant_weight()
            assert found.value.is_cuda and torch.equal(found.int().cpu(), expected.int())
            torch.testing.assert_close(found.value.cpu(), expected.value, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_sbc_mode(device: str | None) -> None:
    pytest.importorskip("brevitas")
    from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer

    case, found = CASES["conv"], []
    for put in PLACES:
        model, _ = quantize_layers(put(case.model(torch.float64)), weight_quantizer("int4"))
        data = [x.to(next(model.parameters()).device) for x in data_of(case)]
        with torch.no_grad(), sbc_mode(model, device=device) as sbc:
            for _ in range(sbc.num_layers):
                for x in data:
                    sbc.model(x)
                sbc.update()
        found.append([m.quant_weight().int().cpu() for m in model.modules() if hasattr(m, "quant_weight")])
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nir_graphs_hold_the_same_weights_and_integers() -> None:
    (here, _), (there, _) = both("step", quantize=Quantize(4))
    for a, b in zip(graph_of(here).nodes.values(), graph_of(there).nodes.values(), strict=True):
        if hasattr(a, "weight"):
            assert a.weight == pytest.approx(b.weight, rel=1e-5)
    expected = integers(here)
    for name, unit in integers(there).items():
        assert torch.equal(unit.codes.cpu(), expected[name].codes)


def test_a_graph_is_moved_as_a_whole_and_takes_its_input_along() -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for put in (nn.Module.cpu, nn.Module.cuda):
        case = CASES["step"]
        model = put(read(graph_of(case.model())).double())
        found.append(compress(model, data_of(case), prune=Prune(0.5), quantize=Quantize(4))[0])
    assert_same(*found)
    x = torch.rand(6, 3, 5, generator=generator, dtype=torch.float64)
    expected, output = (default_forward(model, x)(model, x) for model in found)
    torch.testing.assert_close(output.cpu(), expected)
