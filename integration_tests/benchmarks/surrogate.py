"""An experiment: the Hessian with a surrogate derivative that is not constant, a Hessian for each neuron.

The paper takes the derivative of a spike as constant, so all rows share ``H = 2 (MX)^T (MX) / count``. Here a step
counts for neuron j as far as its membrane is near the threshold there, by the square of SuperSpike's derivative:

    H_j = 2 sum_t s_tj^2 x_t x_t^T / count,   s_tj = 1 / (1 + |v_tj - v_th| / (width v_th))^2

with x_t the filtered input and v_tj the dense network's membrane before its reset (Zenke and Ganguli 2018, arXiv
1705.11146). Memory and time are ``rows`` times those of one Hessian: for small layers only.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from integration_tests.benchmarks.published import SETTINGS, Published
from sbc_plugin.calibration.collector import Collector, as_samples
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import run_batch
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.norse import record_states


def by_row(layer: SpikingLayer) -> SpikingLayer:
    """The layer with a Hessian for each row."""
    return replace(layer, variant=torch.arange(layer.rows))


def calibrate(method: Published, width: float) -> None:
    """Give ``method``, made with ``change=by_row``, the Hessians of this surrogate instead of its own.

    Args:
        method: of a network in step mode, whose layers are followed by spiking neurons.
        width: of the derivative, as a fraction of the threshold.
    """
    layers = method.layers_of(method.dense)
    steps: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    sums = {layer.name: torch.zeros(layer.rows, layer.columns, layer.columns) for layer in layers}
    counts = dict.fromkeys(sums, 0)
    collectors = [Collector(layer, _into(layer, steps[layer.name])) for layer in layers]
    runner = Runner.of(method.dense, method.first, method.forward)
    for number, batch in enumerate(method.data):
        run_batch(runner, collectors, batch, number, SETTINGS.temporal)
        records = record_states(method.dense, batch, method.forward)
        for layer in layers:
            neuron = layer.sites[0].neuron
            assert neuron is not None
            membrane, threshold = records[neuron].v_before, method.dense.get_submodule(neuron).p.v_th
            assert membrane is not None
            near = 1 / (1 + (membrane - threshold).abs() / (width * threshold)) ** 2
            for x, s in zip(steps[layer.name], near, strict=True):
                for row, weight in enumerate(s.movedim(1, -1).reshape(len(x), layer.rows).square().T):
                    sums[layer.name][row] += (x * weight[:, None]).T @ x
                counts[layer.name] += len(x)
            steps[layer.name].clear()
    method.hessians = {name: (2.0 / counts[name]) * total.double() for name, total in sums.items()}


def _into(layer: SpikingLayer, steps: list[Tensor]) -> Callable[[list[Tensor]], None]:
    def emit(filtered: list[Tensor]) -> None:
        steps.append(torch.cat([samples[0] for samples in as_samples(layer, filtered)]))

    return emit
