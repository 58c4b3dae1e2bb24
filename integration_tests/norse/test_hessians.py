"""H equals the brute-force simulation of membranes that never reset: every neuron, both modes, every kind of layer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from integration_tests.models.brute_force import TRANSPOSED, Simulation
from integration_tests.models.cases import CASES
from integration_tests.models.networks import Case, over_time
from sbc_plugin import Calibration, calibrate
from sbc_plugin.core.kernels import filter_causal
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.norse import default_forward, find_layers

# Both sides sum a few hundred products in float64; their conditioning is that of a sum of squares.
TOLERANCE = 1e-10

# Entries of v a sample, where a neuron module integrates two weights: side by side, or at two places.
SHARED_NEURONS = {
    ("concat", "left"): 5,
    ("concat", "right"): 5,
    ("neuron twice", "fc1"): 10,
    ("neuron twice", "fc2"): 10,
}


def collector(layer: SpikingLayer) -> Any:
    """What the layer's rows answer, flat: v of its neurons, or its own outputs (summed over time for a sum)."""

    def collect(found: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]) -> Tensor:
        v, outputs = found
        if layer.kernel.is_identity:
            return torch.stack(outputs[layer.name]).flatten()
        if layer.kernel.name == "sum":
            return torch.stack(outputs[layer.name]).cumsum(0).flatten()
        names = dict.fromkeys(site.neuron for site in layer.sites)
        return torch.cat([value.flatten() for name in names for value in v[name or ""]])

    return collect


@pytest.mark.parametrize("name", CASES)
def test_hessian_is_that_of_membranes_that_never_reset(name: str) -> None:
    case: Case = CASES[name]
    model, batch = case.model(torch.float64), case.batch(torch.float64)
    run = case.forward or default_forward(model, batch)
    layers, _ = find_layers(model, batch, case.forward)
    found = calibrate(model, [batch], forward=case.forward)
    simulation = Simulation(model, lambda: run(model, batch))
    for layer in layers:
        if "no neuron before" in layer.note:
            continue
        collect = collector(layer)
        samples = collect(simulation.membranes()).numel() // SHARED_NEURONS.get((name, layer.name), layer.rows)
        assert found[layer.name].count == samples, layer.name
        hessian = found[layer.name].hessian()
        for row in {0, layer.rows // 2, layer.rows - 1}:
            mine = hessian if hessian.dim() == 2 else hessian[layer.groups[row]]
            transposed = layer.parts[0].module if isinstance(layer.parts[0].module, TRANSPOSED) else None
            tensors = [part.tensor.data for part in layer.parts]
            expected = simulation.hessian(tensors, row, collect, transposed) / samples
            assert expected.norm() > 0, f"{layer.name} is silent: the comparison says nothing"
            gain = 1.0 if layer.kernel.is_identity or layer.kernel.name == "sum" else layer.gain[row]
            error = (mine * gain**2 - expected).norm() / expected.norm()
            assert error < TOLERANCE, (layer.name, row)


@pytest.mark.parametrize("name", ["step", "conv", "lift", "LIFRecurrent", "NIR graph"])
def test_without_time_the_hessian_is_that_of_currents(name: str) -> None:
    """`temporal=False` is M = I: the inputs as the weight saw them, for a Linear directly 2 X^T X / n."""
    case = CASES[name]
    model, batch = case.model(torch.float64), case.batch(torch.float64)
    run = case.forward or default_forward(model, batch)
    simulation = Simulation(model, lambda: run(model, batch))
    found = calibrate(model, [batch], calibration=Calibration(temporal=False), forward=case.forward)
    for module, inputs in simulation.inputs.items():
        if module in found and inputs[0].shape[-1] == found[module].columns:
            x = torch.cat([x.flatten(0, -2) for x in inputs])
            expected = 2 * x.T @ x / len(x)
            assert (found[module].hessian() - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.parametrize("name", ["step", "nested", "lift", "mixed", "loop, each step"])
def test_filtered_inputs_times_weight_is_the_membrane(name: str) -> None:
    """Filter, then weigh: the membrane of the never-spiking neuron, less what the bias and the leak bring."""
    case = CASES[name]
    model, batch = case.model(torch.float64), case.batch(torch.float64)
    run = case.forward or default_forward(model, batch)
    simulation = Simulation(model, lambda: run(model, batch))
    layers, _ = find_layers(model, batch, case.forward)
    compared = 0
    for layer in layers:
        module, inputs = layer.parts[0].module, simulation.inputs[layer.name]
        if layer.kernel.is_identity or not isinstance(module, torch.nn.Linear):
            continue
        x = torch.stack(inputs) if layer.sites[0].layout == "step" else inputs[0]
        filtered = filter_causal(x, layer.kernel) @ module.weight.detach().T
        calls = collector(layer)
        with_weight, saved = calls(simulation.membranes()), module.weight.data.clone()
        module.weight.data.zero_()
        rest = calls(simulation.membranes())
        module.weight.data.copy_(saved)
        torch.testing.assert_close(filtered.flatten(), with_weight - rest, rtol=1e-10, atol=1e-10)
        compared += 1
    assert compared


def test_batches_add_up_and_sequences_do_not_touch() -> None:
    """Two sequences in one batch, or one after the other: the same sum; the filter starts from rest each time."""
    case = CASES["conv"]
    model, batch = case.model(torch.float64), case.batch(torch.float64)
    whole = calibrate(model, [batch])
    apart = calibrate(model, [batch[:, :1], batch[:, 1:]])
    for name, accumulator in whole.items():
        assert apart[name].count == accumulator.count
        torch.testing.assert_close(apart[name].hessian(), accumulator.hessian(), rtol=1e-12, atol=1e-14)


def test_driving_a_step_model_by_hand_is_the_default() -> None:
    case = CASES["step"]
    model, batch = case.model(torch.float64), case.batch(torch.float64)
    for name, accumulator in calibrate(model, [batch]).items():
        assert torch.equal(accumulator.sum_xx, calibrate(model, [batch], forward=over_time)[name].sum_xx)
