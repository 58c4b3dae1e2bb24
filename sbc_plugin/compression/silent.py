"""Find neurons that stay silent on all calibration data, and whose spikes no layer would read.

Whether a layer reads them is not concluded from the model's structure but tried: the dead weights are set to zero, the
neurons are made to spike, and nothing else may change. Source: docs/theory.md, section "Silent neurons".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import silent_rows
from sbc_plugin.calibration.weights import holding
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Prune

LOUD = 100.0  # times the layer's largest weight: any input then lifts a neuron over its threshold


def budgets_for(
    groups: Iterable[tuple[Prune, list[SpikingLayer]]], weights: Mapping[str, Tensor], dead: Mapping[str, Tensor]
) -> list[tuple[list[str], int]]:
    """The names of layers that share a budget, and its zeros, of each budget that holds all of their dead weights.

    Where a budget does not, some of these weights stay, and neurons are read through them.

    Args:
        groups: settings, and the layers that share their zeros.
        weights: name -> (rows, columns).
        dead: name -> (rows, columns), True where the input never spiked.
    """
    budgets = []
    for prune, layers in groups:
        names = [layer.name for layer in layers]
        zeros = round(prune.sparsity * sum(weights[name].numel() for name in names))
        gone = sum(int(((weights[name] == 0) | dead[name].to(weights[name].device)).sum()) for name in names)
        budgets += [(names, zeros)] if gone <= zeros else []
    return budgets


def unread_neurons(
    runner: Runner, layers: list[SpikingLayer], dead: Mapping[str, Tensor], silent: Mapping[str, Tensor], batch: Any
) -> dict[str, Tensor]:
    """The rows of each layer whose neuron never spikes, and is unread once the dead weights are zero.

    The model runs on one batch, once without its dead weights and once for each layer with silent neurons, these being
    made to spike. Where other spikes or the model's output then differ, or a neuron cannot be made to spike, the rows
    are not counted.

    Args:
        runner: of the dense model, which is left as it was.
        layers: all layers of the model.
        dead: name -> (rows, columns), True where the input never spiked.
        silent: name -> (rows,), True where the neuron never spiked.
        batch: of calibration data.

    Returns:
        name -> (rows,), bool.
    """
    unread = dict(silent)
    if not any(rows.any() for rows in silent.values()):
        return unread
    weights = {layer.name: layer.weight() for layer in layers}
    living = {name: weight.where(~dead[name].to(weight.device), 0.0) for name, weight in weights.items()}
    with holding(layers, living):
        expected = _observed(runner, batch)
        for layer in layers:
            rows = silent[layer.name]
            if rows.any() and _is_read(runner, layer, rows, batch, expected):
                unread[layer.name] = torch.zeros_like(rows)
    return unread


def _is_read(
    runner: Runner, layer: SpikingLayer, rows: Tensor, batch: Any, expected: tuple[dict[str, Tensor], Any]
) -> bool:
    """Whether making these rows' neurons spike changes another neuron's spikes or the output, or cannot be done."""
    loud = layer.weight()
    loud[rows.to(loud.device)] = LOUD * float(loud.abs().max())
    with holding([layer], {layer.name: loud}):
        spikes, output = _observed(runner, batch)
    now, then = _outputs(output), _outputs(expected[1])
    same = len(now) == len(then) > 0 and all(map(torch.equal, now, then))
    fired = {name: spiked.flatten(0, 1).any(0) for name, spiked in spikes.items()}
    if not same or bool(silent_rows(layer, fired)[rows].any()):
        return True
    own = {site.neuron for site in layer.sites}
    for name, spiked in spikes.items():
        dense = expected[0][name]
        if name in own:
            spiked, dense = (_rows_last(value, layer)[..., ~rows.to(value.device)] for value in (spiked, dense))
        if not torch.equal(spiked, dense):
            return True
    return False


def _observed(runner: Runner, batch: Any) -> tuple[dict[str, Tensor], Any]:
    """Each spiking neuron's spikes (T, B, ...), bool, by name, and the model's output."""
    with torch.no_grad():
        return runner.spikes(batch, keep=lambda step: step != 0)


def _outputs(output: Any) -> list[Tensor]:
    """The tensors that a forward returned, in any tuple, list or dict, without the states of neurons (NamedTuples)."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if not isinstance(output, tuple | list) or hasattr(output, "_fields"):
        return []
    return [tensor for item in output for tensor in _outputs(item)]


def _rows_last(spikes: Tensor, layer: SpikingLayer) -> Tensor:
    """Spikes (T, B, ...) with the axis of the layer's rows at the end."""
    return spikes.movedim(2, -1) if layer.parts[0].form.axes else spikes
