"""How to run one whole sequence through a Norse model that does not say so itself."""

import inspect
from typing import Any

import torch
from norse.torch import Lift
from torch import Tensor, nn

from sbc_plugin.calibration.batches import input_of
from sbc_plugin.errors import CalibrationError
from sbc_plugin.layers import Forward
from sbc_plugin.norse.neurons import NEURONS, SEQUENCE


def is_step_model(model: nn.Module) -> bool:
    """Whether the model takes one time step and a state: it holds cells that nothing inside it drives over time.

    Sequence neurons (``LIF``, ...) and cells inside ``Lift`` see time themselves; so does a model whose forward takes
    no ``state``. For anything else that loops over T itself, pass ``forward=``.
    """
    driven = {id(part) for module in model.modules() if isinstance(module, Lift) for part in module.modules()}
    neurons = [module for module in model.modules() if isinstance(module, NEURONS) and id(module) not in driven]
    if not neurons or any(isinstance(neuron, SEQUENCE) for neuron in neurons):
        return False
    return "state" in inspect.signature(model.forward).parameters


def default_forward(model: nn.Module) -> Forward:
    """``forward(model, batch)`` for one whole sequence: a sequence model is called once, a step model for each step."""
    return drive_steps if is_step_model(model) else call_once


def call_once(model: nn.Module, batch: Any) -> Any:
    """Call a sequence model on its input (T, B, ...)."""
    return _first(model(as_input(model, batch)))


def drive_steps(model: nn.Module, batch: Any) -> Tensor:
    """Call a step model on each x[t] of its input (T, B, ...), handing the state on; outputs stacked, (T, B, ...).

    Raises:
        CalibrationError: the input has no time and batch axis.
    """
    x = as_input(model, batch)
    if x.dim() < 3:
        raise CalibrationError(
            f"input has shape {tuple(x.shape)}; a step model is driven over (T, B, ...): time, batch, features"
        )
    outputs, state = [], None
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


def as_input(model: nn.Module, batch: Any) -> Tensor:
    """The batch's input tensor, dense, on the model's device and of its floating type."""
    x = input_of(batch)
    x = x.to_dense() if x.layout != torch.strided else x
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x.float() if parameter is None else x.to(parameter)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
