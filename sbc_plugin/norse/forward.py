"""How to run one whole sequence through a Norse model that does not say so itself."""

from typing import Any

from torch import nn

from sbc_plugin.calibration.driver import Driver, as_input
from sbc_plugin.norse.calling import driver_of


def default_forward(model: nn.Module, batch: Any, batch_first: bool | None = None) -> Driver:
    """``forward(model, batch)`` for one whole sequence, of the way in which the model is seen to take time.

    A few small calls show it: along which axis its neurons step, or that a call goes on from what the one before
    returned. So it runs models that take (T, B, ...), (B, T, ...), one step (B, ...) with a state, or a still input
    (B, ...); the output has time first.

    Args:
        model: left as it was.
        batch: like those that will be run.
        batch_first: whether the data is (B, T, ...); None: as the model takes it, and (T, B, ...) for a step model.

    Raises:
        CalibrationError: the batch holds no input tensor.
        UnsupportedModelError: the model keeps its neurons' states from one call to the next.
    """
    return driver_of(model, as_input(model, batch), batch_first)


def is_step_model(model: nn.Module, batch: Any) -> bool:
    """Whether a call of the model takes one time step of ``batch`` and a state, and hands the state on."""
    return default_forward(model, batch).state_items is not None
