"""Pruned models on disk without pickle: the pruning history and the weights, in one safetensors file.

Neurons of Norse cannot be pickled, and their parameters are not in ``state_dict``. So loading takes the model as it was
before pruning, cuts it as the history says, and fills in the weights: the result is equal bit for bit. Replaying the
history also resizes modules that :func:`sbc_plugin.load` refuses to resize, such as ``nn.MultiheadAttention``, because
torch-pruning knows which of their attributes follow.
"""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch_pruning as tp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.errors import CheckpointError
from sbc_plugin.torch_pruning.methods import graph_arguments
from sbc_plugin.torch_pruning.tracing import exact_tracing, trace_inputs

FORMAT = 1

History = Iterable[tuple[str, bool, Iterable[int]]]


def save_pruned(path: str | PathLike[str], model: nn.Module, history: History) -> None:
    """Write a pruned model.

    Args:
        path: of the file.
        model: after pruning, and fine-tuning if any.
        history: ``pruner.pruning_history()``: (name of the root, whether outputs went, channels) of each cut, in order.

    Raises:
        CheckpointError: the file cannot be written: no such folder, no right to, no space.
    """
    cuts = [[name, bool(outputs), [int(i) for i in channels]] for name, outputs, channels in history]
    header = {"sbc_plugin.pruned": json.dumps({"format": FORMAT, "history": cuts})}
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as beside:
        save_file(tensors, beside, metadata=header)


def load_pruned(path: str | PathLike[str], model: nn.Module, example_inputs: Any, **arguments: Any) -> nn.Module:
    """Cut ``model``, as it was before pruning, like the one that was saved, and fill in its weights; ``model`` itself.

    Args:
        path: of the file.
        model: the unpruned architecture; its weights do not matter, neuron parameters do.
        example_inputs: as for ``get_pruner``.
        arguments: those of ``get_pruner`` that shape the graph: customized_pruners, unwrapped_parameters, num_heads.

    Raises:
        CheckpointError: no such file, or no pruned model, a damaged one, one of a newer format, or of another model.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} cannot be read: no such file; write one with save_pruned")
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["sbc_plugin.pruned"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a method of the file
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} holds no pruned model ({error}); write one with save_pruned") from error
    if found["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {found['format']}, known is {FORMAT}; update sbc_plugin")
    names = dict(model.named_modules())
    if missing := [name for name, _, _ in found["history"] if name not in names]:
        raise CheckpointError(f"{path} was pruned at {missing}, which this {type(model).__name__} does not have")
    modes = [(module, module.training) for module in model.modules()]
    with exact_tracing(model):
        given = graph_arguments(model, arguments)
        graph = tp.DependencyGraph().build_dependency(
            model,
            trace_inputs(model, example_inputs),
            customized_pruners=given["customized_pruners"],
            unwrapped_parameters=given.get("unwrapped_parameters"),
        )
    for module, mode in modes:
        module.training = mode
    try:
        graph.load_pruning_history(found["history"])
        model.load_state_dict(state)
    except (RuntimeError, AssertionError, IndexError) as error:
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {error}") from error
    return model
