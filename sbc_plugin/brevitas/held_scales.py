"""Weight quantizers whose scale follows the weight, made to hold the scale that they have.

Brevitas' standard quantizers derive scale and zero point from the weight at every call. A solver that changes the
weight column by column would thereby move the grid that it works on. Brevitas has a second form of these quantizers
(``PARAMETER_FROM_STATS``), whose scale and zero point are derived once and are parameters from then on. They are stored
in ``state_dict``, and exporters write them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from brevitas import config
from brevitas.core.scaling import ParameterFromStatsFromParameterScaling
from brevitas.core.zero_point import ParameterFromStatsFromParameterZeroPoint
from torch import Tensor, nn

from sbc_plugin.brevitas.layers import is_quantised
from sbc_plugin.errors import GridMovedError, UnsupportedModelError, in_layer

_SCALE = {"scaling_impl": ParameterFromStatsFromParameterScaling}
_ZERO_POINT = {"zero_point_impl": ParameterFromStatsFromParameterZeroPoint}
_STEP = {"pre_scaling_impl": ParameterFromStatsFromParameterScaling}  # where the step of rounding is not the scale
_FORMS: tuple[dict[str, Any], ...] = (_SCALE, _SCALE | _ZERO_POINT, _STEP, _SCALE | _STEP)


@dataclass(frozen=True)
class Held:
    """A quantizer that was changed to hold its scale, and what it was.

    Attributes:
        quantizer: of the weight.
        injector: that it was made from.
        tensor_quant: that it computed with.
    """

    quantizer: Any
    injector: Any
    tensor_quant: nn.Module

    @classmethod
    def of(cls, quantizer: Any) -> "Held":
        """What a quantizer is now."""
        return cls(quantizer, quantizer.quant_injector, quantizer.tensor_quant)

    def undo(self) -> "Held":
        """Make the quantizer what it was; returns what it is until then, in the same form."""
        now = Held.of(self.quantizer)
        self.quantizer.quant_injector, self.quantizer.tensor_quant = self.injector, self.tensor_quant
        return now


def match_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a model that was built anew what :class:`~sbc_plugin.brevitas.mode.sbc_mode` adds to layers; in place.

    That are quantizers that hold their scale, and buffers ``weight_orig``. The model can then load the state: by
    ``model.load_state_dict(tensors)``, or by ``sbc_plugin.load(path, model)`` with ``tensors = load(path).tensors``.

    Args:
        model: built by the code that built the one whose state it is.
        tensors: the ``state_dict``, of which the names count.

    Returns:
        The model.

    Raises:
        GridMovedError: a quantizer has no form that holds its scale; the model is as it was.
        UnsupportedModelError: a quantizer rounds at random, or needs the input's quantizer; the model is as it was.

    >>> import brevitas.nn as qnn
    >>> from brevitas.quant import Int8WeightPerTensorFloat
    >>> layer = qnn.QuantLinear(2, 1, bias=False, weight_quant=Int8WeightPerTensorFloat)
    >>> match_state(layer, {"weight_quant.tensor_quant.scaling_impl.value": torch.ones(())}).quant_weight().scale.shape
    torch.Size([])
    """
    known = model.state_dict().keys()
    wanted = {name for name in tensors if name not in known}
    changed: list[Held] = []
    try:
        for name, module in layers_of(model).items():
            prefix = f"{name}." if name else ""
            added = {key.removeprefix(prefix) for key in wanted if key.startswith(prefix)}
            if any(key.startswith("weight_quant.") for key in added):
                with in_layer(name):
                    changed += [held for held in [hold(module)] if held is not None]
            if "weight_orig" in added:
                module.register_buffer("weight_orig", module.weight.detach().clone().cpu())
    except BaseException:
        for held in changed:
            held.undo()
        raise
    return model


def layers_of(model: nn.Module) -> dict[str, Any]:
    """Brevitas' Linear and (not transposed) convolutions with a weight quantizer that is on, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_quantised(module) and module.weight_quant.is_quant_enabled
    }


def hold(layer: Any) -> Held | None:
    """Make a layer's quantizer hold its grid; None if it does already.

    Raises:
        GridMovedError: it has no form that holds it; the layer is as it was.
        UnsupportedModelError: the quantizer rounds at random, or needs the input's quantizer.
    """
    quantizer = layer.weight_quant
    if quantizer.requires_quant_input:
        raise UnsupportedModelError(
            "its weight quantizer depends on that of its input, which no second-order method takes, Brevitas' neither"
        )
    with torch.no_grad():
        value, scale = values_of(layer), scale_of(layer)
        if not torch.equal(value, values_of(layer)):
            raise UnsupportedModelError("its weight quantizer rounds at random; use one that rounds to nearest")
        if not _moves(layer):
            return None
        before = Held.of(quantizer)
        for settings in _FORMS:
            try:
                _rebuild(layer, before, settings)
                same = torch.allclose(scale_of(layer), scale) and torch.allclose(values_of(layer), value)
                if same and not _moves(layer):
                    return before
            except Exception:
                pass
            before.undo()
    raise GridMovedError(_how_it_moves(layer))


def values_of(layer: Any, weight: Tensor | None = None) -> Tensor:
    """What the layer's weight, or another one of its shape, is rounded to, also while the quantizer is switched off."""
    quantizer = layer.weight_quant
    found = quantizer.tensor_quant(layer.weight.detach() if weight is None else weight)
    value: Tensor = quantizer.create_quant_tensor(found).value  # groups have their own axis before
    return value.detach()


def scale_of(layer: Any) -> Tensor:
    """The scales of a layer's quantizer, in the shape that it has them in."""
    scale: Tensor = layer.weight_quant.tensor_quant(layer.weight.detach())[1]
    return scale.detach()


def _moves(layer: Any) -> bool:
    """Whether scale, zero point or value of one weight depend on what other weights are now."""
    quantizer, weight = layer.weight_quant, layer.weight.detach()
    now, values = quantizer.tensor_quant(weight)[1:3], values_of(layer).flatten()[1::2]
    far = 4 * weight.abs().max() + 1
    sign = torch.ones_like(weight).flatten()[::2]
    sign[1::2] = -1
    for moved in (sign * far, 0 * sign, sign.abs() * far, -sign.abs() * far):
        other = weight.flatten().clone()
        other[::2] = moved
        other = other.view_as(weight)
        then = quantizer.tensor_quant(other)[1:3]
        if not all(map(torch.equal, now, then)) or not torch.equal(values_of(layer, other).flatten()[1::2], values):
            return True
    return False


def _rebuild(layer: Any, before: Held, settings: dict[str, Any]) -> None:
    quantizer = before.quantizer
    quantizer.quant_injector = before.injector.let(**settings)
    with _config_kept():
        quantizer.init_tensor_quant(preserve_state_dict=True)
    quantizer.train(layer.training)
    values_of(layer)  # the first call sets scale and zero point


@contextmanager
def _config_kept() -> Iterator[None]:
    """Brevitas changes these while it builds a quantizer anew, and leaves them changed if that fails."""
    kept = {name: getattr(config, name) for name in ("IGNORE_MISSING_KEYS", "REINIT_ON_STATE_DICT_LOAD")}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


def _how_it_moves(layer: Any) -> str:
    with torch.no_grad():
        found = layer.weight_quant.tensor_quant(layer.weight.detach())
    scale, bits = found[1], int(found[3])
    granularity = "Tensor" if scale.numel() == 1 else "Channel" if scale.numel() == len(layer.weight) else "Group"
    granularity = "Group" if layer.weight_quant.is_groupwise else granularity
    ours = "group:32" if granularity == "Group" else granularity.lower()
    return (
        f"its quantizer derives what it rounds to (scales {tuple(scale.shape)}) from the whole weight at every call, "
        f"and has no form that keeps it while the weight changes; use SBCInt{bits}WeightPer{granularity}Float of "
        f"sbc_plugin.brevitas, or weight_quantizer('int{bits}', granularity={ours!r})"
    )
