"""Layers that cannot be compressed, and inputs that do not fit their layer, are refused by name."""

from collections.abc import Callable

from torch import Tensor, nn

from sbc_plugin.calibration.plain import refuse_computed
from sbc_plugin.core.matrix_form import WEIGHTED, MatrixForm
from sbc_plugin.errors import CalibrationError, UnsupportedModelError, in_layer
from sbc_plugin.norse.neurons import own_weights


def check_plain(model: nn.Module) -> None:
    """Refuse weights that something computes at each call: what is written into them would not last.

    Raises:
        UnsupportedModelError: a weight is parametrised, or pruned by hooks.
    """
    for name, module in model.named_modules():
        cell = bool(own_weights(module))
        if not cell and not isinstance(module, WEIGHTED):
            continue
        for attribute in own_weights(module) or ("weight",):
            # Norse's cells also take plain tensors as weights.
            plain = attribute in module._parameters or (cell and attribute in vars(module))
            if plain and f"{attribute}_orig" not in module._parameters:
                continue
            if cell and is_made_by_layer(module, attribute):
                continue
            with in_layer(name):
                refuse_computed(attribute)


def is_made_by_layer(cell: nn.Module, attribute: str) -> bool:
    """Whether a cell's weight is a property that a layer inside of it makes, and no parametrisation of torch's."""
    return isinstance(getattr(type(cell), attribute, None), property) and "parametrizations" not in cell._modules


def check_own_weights(model: nn.Module) -> None:
    """Refuse modules that share a weight, because neither could change alone.

    Raises:
        UnsupportedModelError: two modules share one.
    """
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{attribute}" if name else attribute
            if parameter.dim() >= 2 and owners.setdefault(id(parameter), full) != full:
                raise UnsupportedModelError(
                    f"{owners[id(parameter)]!r} and {full!r} share one parameter, so neither can change alone; "
                    "use one module twice, or give each its own copy"
                )


def weight_input_check(name: str, form: MatrixForm) -> Callable[..., None]:
    """A forward pre-hook that names the layer when its input does not fit.

    Raises:
        CalibrationError: from the hook, for another number of features or channels, or for a wrong rank.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if form.channels_of(x) != form.channels:
            unit = "features" if isinstance(module, nn.Linear) else "channels"
            raise CalibrationError(
                f"layer {name!r}: input has shape {tuple(x.shape)}, the layer takes {form.channels} {unit}; a step "
                "model sees one time step (B, ...) of a batch (T, B, ...)"
            )

    return hook


def cell_input_check(name: str) -> Callable[..., None]:
    """A forward pre-hook that names the recurrent cell when its input does not fit.

    Raises:
        CalibrationError: from the hook, for another number of features.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight: Tensor = module.input_weights  # type: ignore[assignment]
        shape = tuple(inputs[0].shape)
        if len(shape) < 2:
            raise CalibrationError(
                f"layer {name!r}: input has shape {shape}, without a batch axis, for which the cell makes a state of "
                "another shape; give (B, features) at each step, e.g. x[:, None]"
            )
        if shape[-1] != weight.shape[1]:
            raise CalibrationError(
                f"layer {name!r}: input has shape {shape}, the cell takes {weight.shape[1]} features"
            )

    return hook
