"""Quantizers for inputs that are numbers: an image, a current. Spikes are binary and need none."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from brevitas.graph.calibrate import calibration_mode
from torch import Tensor, nn

from sbc_plugin.calibration.batches import check_batch, peek
from sbc_plugin.calibration.forward import eval_mode, hooked
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.layers import Forward


def analogue_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], data: Iterable[Any], forward: Forward | None
) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
    """What reaches each layer whose input is not binary, a tensor a batch with its steps along the first axis.

    Args:
        model: run in eval mode on every batch.
        layers: to look at, by name.
        data: iterable of batches, as for ``compress``.
        forward: ``forward(model, batch)`` runs one whole sequence; the library's default if None.

    Returns:
        The inputs by the layer's name, and name + ".input" -> why the others need no quantizer.

    Raises:
        CalibrationError: no data, NaN or infinity.
    """
    first, data = peek(data)
    run = forward or library_or_plain(model).default_forward(model, first)
    wide_inputs: dict[str, list[Tensor]] = {}
    ran: set[str] = set()
    for number, batch in enumerate(data):
        check_batch(batch, number)
        calls: dict[str, list[Tensor]] = {name: [] for name in layers}
        hooks = (layer.register_forward_pre_hook(_into(calls[name])) for name, layer in layers.items())
        with torch.no_grad(), hooked(hooks), eval_mode(model):
            run(model, batch)
        for name, inputs in calls.items():
            ran |= {name} if inputs else set()
            if name in wide_inputs or not all(_is_binary(x) for x in inputs):
                wide_inputs.setdefault(name, []).append(torch.cat(inputs))
    reasons = {
        f"{name}.input": "binary, so it needs no quantizer" if name in ran else "never ran on the calibration data"
        for name in layers
        if name not in wide_inputs
    }
    return wide_inputs, reasons


def calibrate_input(layer: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the scale of a layer's input quantizer from ``inputs``, as Brevitas averages it over its calls."""
    with torch.no_grad(), eval_mode(layer), calibration_mode(layer):
        for x in inputs:
            layer(x)


def _into(inputs: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0].detach())

    return hook


def _is_binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())
