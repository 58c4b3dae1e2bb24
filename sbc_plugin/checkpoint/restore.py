"""A model made equal to stored tensors: the same names, the same shapes or smaller ones where channels were cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.checkpoint.module_state import Setter, like
from sbc_plugin.errors import CheckpointError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_RESIZED = (nn.Linear, nn.modules.conv._ConvNd, *_NORMS, nn.PReLU, nn.Embedding)
SHOWN = 3  # names in a message


def fill(model: nn.Module, state: Mapping[str, Tensor], attributes: Sequence[Setter] = ()) -> None:
    """Give a model these tensors and attributes, in place; it is as it was if anything fails.

    Tensors take the shape and dtype of the file. The size attributes of torch's layers follow.

    Args:
        model: of the same structure, on its own device.
        state: of its ``state_dict``.
        attributes: (module, name, value).

    Raises:
        CheckpointError: other names, or shapes that no cut of this model has.
    """
    held = check_fits(model, {name: tensor.shape for name, tensor in state.items()})
    before = [(tensor, tensor.data, tensor.grad) for tensor in held.values()]
    old = [(module, name, getattr(module, name)) for module, name, _ in attributes]
    try:
        for module, name, value in attributes:
            setattr(module, name, value)
        for name, tensor in state.items():
            if tensor.shape != held[name].shape:
                held[name].grad = None
            held[name].data = like(tensor, held[name].data).clone()
        model.load_state_dict(dict(state))  # for modules that note that they were loaded, as Brevitas' quantizers do
    except BaseException as error:
        for tensor, data, gradient in before:
            tensor.data, tensor.grad = data, gradient
        for module, name, value in old:
            setattr(module, name, value)
        if isinstance(error, RuntimeError):
            raise CheckpointError(f"the file does not fit this {type(model).__name__}: {error}") from error
        raise
    for module in model.modules():
        _set_sizes(module)


def check_fits(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The model's tensors by name, if these are the names and shapes of it, or of one that was cut from it.

    Raises:
        CheckpointError: they are not.
    """
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    _check_names(model, shapes, held)
    for name, shape in shapes.items():
        _check_shape(model, name, tuple(shape), tuple(held[name].shape))
    return held


def _check_names(model: nn.Module, names: Mapping[str, Any], held: Mapping[str, Tensor]) -> None:
    sides = {"the model lacks": sorted(names.keys() - held.keys()),
             "the file lacks": sorted(model.state_dict().keys() - names.keys())}  # fmt: skip
    if any(sides.values()):
        difference = [
            f"{side} {', '.join(map(repr, lost[:SHOWN]))}{f' and {len(lost) - SHOWN} more' * (len(lost) > SHOWN)}"
            for side, lost in sides.items()
            if lost
        ]
        raise CheckpointError(f"the file is of another model than this {type(model).__name__}: {'; '.join(difference)}")


def _check_shape(model: nn.Module, name: str, stored: tuple[int, ...], own: tuple[int, ...]) -> None:
    if stored == own:
        return
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    difference = f"layer {path!r}: {attribute} is {stored} in the file and {own} in this model"
    if len(stored) != len(own) or any(ours > theirs for ours, theirs in zip(stored, own, strict=True)):
        raise CheckpointError(
            f"{difference}; give the model that was saved, or the one that its channels were cut from"
        )
    if type(owner).__module__.startswith("torch.nn.") and not isinstance(owner, _RESIZED):
        raise CheckpointError(f"{difference}; a {type(owner).__name__} cannot be resized: build it in the file's shape")


def _set_sizes(module: Any) -> None:
    """Let the size attributes of torch's layers follow their tensors."""
    if not isinstance(module, _RESIZED):
        return
    tensors = [*module._parameters.values(), *module._buffers.values()]
    shapes = [tensor.shape for tensor in tensors if tensor is not None and tensor.dim()]
    sizes = max(shapes, key=torch.Size.numel, default=torch.Size())  # the weight's, under whatever name a hook keeps it
    if len(sizes) < (2 if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding) else 1):
        return  # a parametrisation keeps the weight elsewhere
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = sizes[0], sizes[1] * module.groups
        module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = sizes[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = sizes[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(sizes)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = sizes[0]
    else:
        module.num_embeddings, module.embedding_dim = sizes
