"""Pruning functions of neurons: what a neuron holds for each channel is cut together with the channel."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbc_plugin.calibration.plain import library_or_plain


def neuron_pruners(model: nn.Module) -> dict[type[nn.Module], tp.pruner.function.BasePruningFunc]:
    """A fresh pruning function for each class of neuron in the model, for torch-pruning's ``customized_pruners``."""
    library = library_or_plain(model)
    found: dict[type[nn.Module], tp.pruner.function.BasePruningFunc] = {}
    for module in model.modules():
        if library.holds_weights(module):
            found.setdefault(type(module), RecurrentPruner())
        elif library.is_neuron(module):
            found.setdefault(type(module), NeuronPruner())
    return found


class NeuronPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Cuts neurons without weights: tensors of ``p`` with an entry for each channel; scalars are left as they are.

    Attributes:
        axes: the channel axis of each neuron's input, counted from the end; tracing fills it. A neuron that was not
            traced is taken to have its channels on the first axis of its largest parameter that is not 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.axes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Cut the channels ``idxs`` out of every parameter tensor of the neuron, and of those inside it."""
        axis = self._axis(layer)
        for part in layer.modules():
            for name, value in [*vars(part).items(), *part._parameters.items(), *part._buffers.items()]:
                if name == "p" or isinstance(value, Tensor):
                    setattr(part, name, _cut_all(value, idxs, axis))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int | None:
        """How many channels have parameters of their own; None if they are shared by all channels."""
        axis = self._axis(layer)
        return next((value.shape[axis] for value in _tensors(layer) if _varies(value, axis)), None)

    get_in_channels = get_out_channels

    def _axis(self, layer: nn.Module) -> int:
        if layer in self.axes:
            return self.axes[layer]
        largest = max(_tensors(layer), key=Tensor.numel, default=torch.ones(1, device="cpu"))
        return next((d - largest.dim() for d, size in enumerate(largest.shape) if size > 1), -1)


class RecurrentPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Cuts cells with weights: with a neuron goes a row of the input weights, a row and a column of those back."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Cut the neurons ``idxs``."""
        layer.input_weights = _cut(layer.input_weights, idxs, 0)
        for name in ("recurrent_weights", "g_coupling"):
            if hasattr(layer, name):
                setattr(layer, name, _cut(_cut(getattr(layer, name), idxs, 0), idxs, 1))
        if hasattr(layer, "recurrent_weights") and not layer.autapses and layer.recurrent_weights.requires_grad:
            # Norse keeps self-connections at zero by a hook on the tensor, which the cut has replaced.
            layer.recurrent_weights.register_hook(lambda gradient: gradient.clone().fill_diagonal_(0.0))
        layer.hidden_size = _like(layer.hidden_size, len(layer.input_weights))
        layer.p = _cut_all(layer.p, idxs, -1)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Cut the inputs ``idxs``."""
        layer.input_weights = _cut(layer.input_weights, idxs, 1)
        layer.input_size = _like(layer.input_size, layer.input_weights.shape[1])
        return layer

    def get_out_channels(self, layer: Any) -> int:
        """How many neurons the cell has."""
        return len(layer.input_weights)

    def get_in_channels(self, layer: Any) -> int:
        """How many inputs the cell has."""
        inputs: int = layer.input_weights.shape[1]
        return inputs


def _like(old: Any, size: int) -> Any:
    """A size as the cell keeps it: a number, or a tensor on its device."""
    return torch.as_tensor(size, device=old.device) if isinstance(old, Tensor) else size


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, nn.Module):
        held = [v for part in value.modules() for k, v in vars(part).items() if k == "p" or isinstance(v, Tensor)]
        held += [*value.parameters(), *value.buffers()]
        return [tensor for part in held for tensor in _tensors(part)]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) and value.numel() > 1 else []


def _varies(value: Any, axis: int) -> bool:
    return isinstance(value, Tensor) and value.dim() >= -axis and value.shape[axis] > 1


def _cut_all(value: Any, idxs: Sequence[int], axis: int) -> Any:
    """The tensor, or the NamedTuple of parameters (nested for refractory neurons), without the channels ``idxs``."""
    if isinstance(value, tuple):
        parts = [_cut_all(part, idxs, axis) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return _cut(value, idxs, axis) if _varies(value, axis) else value


def _cut(value: Tensor, idxs: Sequence[int], axis: int) -> Tensor:
    kept = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
    kept[list(idxs)] = False
    where = kept.nonzero().flatten()
    result = value.detach().index_select(axis, where)
    if isinstance(value, nn.Parameter):
        result = nn.Parameter(result, requires_grad=value.requires_grad)
    elif value.requires_grad and value.is_leaf:
        result.requires_grad_()
    if value.is_leaf and value.grad is not None:
        result.grad = value.grad.index_select(axis, where)
    return result
