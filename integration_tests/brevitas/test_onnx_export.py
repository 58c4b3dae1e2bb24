"""Exported files give the model's own answers in the runtimes that they are for."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas.nn")
onnx = pytest.importorskip("onnx")
pytest.importorskip("qonnx")

from integration_tests.models import nir_graphs  # noqa: E402
from integration_tests.models.cases import CASES  # noqa: E402
from integration_tests.models.networks import BOX, IAF, LI, LIF, REFRAC  # noqa: E402
from integration_tests.models.one_shot import compress  # noqa: E402
from integration_tests.models.onnx_running import run_qonnx, run_steps, run_whole, session  # noqa: E402
from sbc_plugin import Quantize  # noqa: E402
from sbc_plugin.brevitas import export_onnx, integers, quantize_layers, weight_quantizer  # noqa: E402
from sbc_plugin.nir import read  # noqa: E402

INT4 = weight_quantizer("int4", scale="power_of_two")  # every sum of spikes is exact, so runtimes cannot differ
STEPPED = ["step", "nested", "conv", "lift", "max pooling", "separable", "NIR graph", "per neuron"]
WHOLE = ["loop, each step", "SEW", "membrane shortcut", "weight twice", "neuron twice", "concat", "forgetful"]
WHOLE += ["own recurrence"]
GRAPHS = ["LIF", "CubaLIF", "Norse's LIF", "IF", "conv", "conv1d", "recurrent LIF", "recurrent CubaLIF", "residual"]


def other_batch(name: str) -> Tensor:
    """More sequences than the example has."""
    return torch.cat([CASES[name].batch(seed=seed) for seed in (7, 8, 9)], 1)


def quantised(name: str) -> nn.Module:
    return quantize_layers(CASES[name].model(), INT4)[0]


def network(cell: type[nn.Module], parameters: Any, conv: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if conv:
        layers = [nn.Conv2d(2, 4, 3, padding=1), cell(parameters), nn.Flatten(), nn.Linear(64, 5), cell(parameters)]
    else:
        layers = [nn.Linear(12, 10), cell(parameters), nn.Linear(10, 5), cell(parameters)]
    for weight in (parameter for layer in layers for parameter in layer.parameters()):
        weight.data = 4 * weight.data + 0.2
    return norse.SequentialState(*layers)


def spikes(*shape: int, seed: int = 3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("form", ["one step", "whole"])
def test_models_of_every_form(name: str, form: str, tmp_path: Path) -> None:
    model, x = quantised(name), other_batch(name)
    steps = None if form == "one step" else len(x)
    exported = export_onnx(model, tmp_path / "a.onnx", CASES[name].batch(), steps=steps)
    found = (run_steps if steps is None else run_whole)(exported, x)
    expected = CASES[name].output(model, x)
    # readouts that are membranes, not spikes, are sums of floats: float32 rounds them in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.any()


@pytest.mark.parametrize("name", WHOLE)
def test_loops_of_ones_own_are_exported_whole(name: str, tmp_path: Path) -> None:
    model, x = quantised(name), other_batch(name)
    exported = export_onnx(model, tmp_path / "a.onnx", CASES[name].batch(), steps=len(x))
    assert exported.states == {} and exported.start(2) == {}
    torch.testing.assert_close(run_whole(exported, x), CASES[name].output(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_nir_with_their_leaks_resets_and_loops(name: str, tmp_path: Path) -> None:
    source = read(nir_graphs.GRAPHS[name](), dt=nir_graphs.DT)
    model, _ = quantize_layers(source, INT4)
    exported = export_onnx(model, tmp_path / "a.onnx", nir_graphs.spikes(source.input_shape))
    x = nir_graphs.spikes(source.input_shape, batch=9, seed=4)
    torch.testing.assert_close(run_steps(exported, x), nir_graphs.run(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cell", "parameters"), [(norse.LIFBoxCell, BOX), (norse.LIFCell, LIF)])
@pytest.mark.parametrize("conv", [False, True])
def test_not_one_spike_differs_over_a_thousand_sequences(
    cell: type[nn.Module], parameters: Any, conv: bool, tmp_path: Path
) -> None:
    shape = (2, 4, 4) if conv else (12,)
    model, _ = compress(
        network(cell, parameters, conv), [spikes(8, 50, *shape)], quantize=Quantize(4, scale="power_of_two"),
        backend="brevitas",
    )  # fmt: skip
    x = spikes(8, 1000, *shape, seed=4)
    with torch.no_grad():
        expected = norse.Lift(model)(x)[0]
    assert 0.02 < expected.mean() < 0.98
    step = export_onnx(model, tmp_path / "a.onnx", x[:, :3])
    whole = export_onnx(model, tmp_path / "b.onnx", x[:, :3], steps=8)
    qonnx = export_onnx(model, tmp_path / "c.onnx", x, kind="qonnx")
    for found in (run_steps(step, x), run_whole(whole, x), run_qonnx(qonnx, x)):
        assert int((found != expected).sum()) == 0


def test_whole_sequences_in_qonnx(tmp_path: Path) -> None:
    model, x = quantised("step"), CASES["step"].batch()
    exported = export_onnx(model, tmp_path / "a.onnx", x, kind="qonnx", steps=3)
    assert torch.equal(run_qonnx(exported, x[:3]), CASES["step"].output(model, x[:3]))


def test_inputs_outputs_and_first_states_are_named_and_told(tmp_path: Path) -> None:
    refrac = norse.LIFRefracParameters(LIF._replace(v_leak=torch.tensor(0.25)), REFRAC.rho_reset)
    start = IAF._replace(v_reset=torch.tensor(-0.5))
    cells = [norse.LIFRefracCell(refrac), norse.IAFCell(start), norse.LICell(LI)]
    layers = [layer for cell in cells for layer in (nn.Linear(4, 4), cell)]
    model, _ = quantize_layers(norse.SequentialState(*layers), INT4)
    exported = export_onnx(model, tmp_path / "a.onnx", spikes(5, 2, 4))
    firsts = {"1.lif.v": 0.25, "1.lif.i": 0.0, "1.rho": 0.0, "3.v": -0.5, "5.v": 0.0, "5.i": 0.0}
    assert {name: value.unique().tolist() for name, value in exported.states.items()} == {
        name: [value] for name, value in firsts.items()
    }
    file = onnx.load(exported.path)
    assert [value.name for value in file.graph.input] == ["input", *firsts]
    assert [value.name for value in file.graph.output] == ["output", *(f"{name}_next" for name in firsts)]
    noted = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
    assert noted == {"sbc.kind": "qcdq", "sbc.steps": None, "sbc.states": firsts}
    assert {name: value.shape for name, value in exported.start(7).items()} == dict.fromkeys(firsts, (7, 4))
    x = spikes(5, 7, 4, seed=5)
    assert torch.allclose(run_steps(exported, x), norse.Lift(model)(x)[0], atol=1e-6)


@pytest.mark.parametrize(("bits", "opset"), [*product([2, 3, 4, 8], [17, 21, 25])])
def test_integers_are_stored_in_as_few_bits_as_the_opset_has(bits: int, opset: int, tmp_path: Path) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip("the installed onnx does not know this opset")
    model, _ = quantize_layers(network(norse.LIFBoxCell, BOX), weight_quantizer(f"int{bits}"))
    x = spikes(8, 6, 12)
    exported = export_onnx(model, tmp_path / "a.onnx", x, opset=opset)
    stored = {tensor.name: tensor for tensor in onnx.load(exported.path).graph.initializer}
    kind = "INT2" if bits == 2 and opset >= 25 else "INT4" if bits <= 4 and opset >= 21 else "INT8"
    for name, found in integers(model).items():
        codes = stored[f"{name}.codes"]
        assert onnx.TensorProto.DataType.Name(codes.data_type) == kind
        assert (onnx.numpy_helper.to_array(codes).astype("int8") == found.codes.numpy()).all()
        assert len(codes.raw_data) == -(-found.codes.numel() * int(kind[3:]) // 8)
        assert (onnx.numpy_helper.to_array(stored[f"{name}.scale"]) == found.scale.float().numpy()).all()
    assert torch.equal(run_steps(exported, x), norse.Lift(model)(x)[0])


def test_a_longer_file_repeats_no_weight(tmp_path: Path) -> None:
    model, x = quantised("step"), spikes(40, 2, 5)
    short, long = (export_onnx(model, tmp_path / f"{steps}.onnx", x, steps=steps) for steps in (2, 40))
    for exported in (short, long):
        graph = onnx.load(exported.path).graph
        assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == 2
        assert sum(tensor.name.endswith(".codes") for tensor in graph.initializer) == 2


def test_zeros_of_pruning_are_zero_in_the_file(tmp_path: Path) -> None:
    from sbc_plugin import Prune

    case = CASES["step"]
    model, _ = compress(case.model(), [case.batch()], prune=Prune(0.5), quantize=Quantize(4), backend="brevitas")
    exported = export_onnx(model, tmp_path / "a.onnx", case.batch())
    stored = {tensor.name: tensor for tensor in onnx.load(exported.path).graph.initializer}
    zeros = sum(int((onnx.numpy_helper.to_array(stored[f"{n}.codes"]).astype("int8") == 0).sum()) for n in "02")
    assert zeros >= (30 + 24) // 2


def test_weights_that_stay_floats_are_named(tmp_path: Path) -> None:
    model, _ = quantize_layers(CASES["step"].model(), INT4, names=["0"])
    exported = export_onnx(model, tmp_path / "a.onnx", CASES["step"].batch())
    assert exported.floats == {"2": "not quantised"}
    x = other_batch("step")
    torch.testing.assert_close(run_steps(exported, x), CASES["step"].output(model, x), rtol=0, atol=0)


def test_a_model_that_reckons_with_its_batch(tmp_path: Path) -> None:
    model, x = quantised("merged"), CASES["merged"].batch()
    exported = export_onnx(model, tmp_path / "a.onnx", x, steps=len(x), free_batch=False)
    assert torch.equal(run_whole(exported, x), CASES["merged"].output(model, x))


def test_quantised_inputs_are_exported_too(tmp_path: Path) -> None:
    from brevitas.quant import Int8ActPerTensorFloat

    case = CASES["step"]
    x = torch.rand(case.shape, generator=torch.Generator().manual_seed(0))
    model, _ = quantize_layers(case.model(), INT4, input_quant=Int8ActPerTensorFloat, calibration_data=[x])
    exported = export_onnx(model.eval(), tmp_path / "a.onnx", x)
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(exported.path).graph.node)
    assert float((run_steps(exported, x) != case.output(model, x)).double().mean()) < 0.01


def test_the_benchmark_counts_spikes_and_bytes() -> None:
    from integration_tests.benchmarks import onnx_export

    model = quantize_layers(onnx_export.linear("LIF", 0), INT4)[0]
    x = (torch.rand(3, 8, 2, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    place = {"network": "linear", "neuron": "LIF", "bits": 4, "scale": "power_of_two", "float_bytes": 133_000}
    lines = [place | line for line in onnx_export.compared(model, x, qonnx=True)]
    assert [line["differ"] for line in lines] == [0] * 4 and lines[0]["spikes"] > 0
    *_, row = onnx_export.table(lines).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[4:9] == [str(lines[0]["spikes"]), "0", "0", "0", "0"]
    # codes of 4 bits are an eighth of float32; qonnx keeps floats
    assert lines[1]["bytes"] < 133_000 / 4 < 133_000 < lines[3]["bytes"]


def test_sums_of_spikes_are_taken_before_a_state_is_added(tmp_path: Path) -> None:
    """Else 600 weights are added to a number of 24 digits, one rounding after the other."""
    torch.manual_seed(0)
    model = norse.SequentialState(nn.Linear(600, 32, bias=False), norse.LIFCell(LIF))
    model = quantize_layers(model, weight_quantizer("int8", scale="power_of_two"))[0]
    x = (torch.rand(9, 20, 600) < 0.3).float()
    exported = export_onnx(model, tmp_path / "model.onnx", x[:, :2])
    runtime, states, state = session(exported), exported.start(20), None
    for step in x:
        output, *after = runtime.run(None, {"input": step.numpy()} | states)
        states = dict(zip(states, after, strict=True))
        with torch.no_grad():
            expected, state = model(step, state)
        assert torch.equal(torch.from_numpy(output), expected)
        assert all(torch.equal(torch.from_numpy(states[f"1.{name}"]), getattr(state[1], name)) for name in "vi")
