"""Pruned models on disk: a file of ``save`` that also holds the history of the cuts.

``load`` finds the shapes of a pruned model by itself, where the layers of torch are simple: a Linear, a convolution, a
norm. Replaying the cuts also serves attention, LSTMs, and modules with a pruning function of the user's own, whose
sizes only torch-pruning knows how to change.
"""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch_pruning as tp
from torch import nn

from sbc_plugin.checkpoint.file import load, write
from sbc_plugin.errors import CheckpointError
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, trace_inputs
from sbc_plugin.torch_pruning.methods import graph_arguments

KEY = "history"  # in the header

History = Iterable[tuple[str, bool, Iterable[int]]]


def save_pruned(path: str | PathLike[str], model: nn.Module, history: History) -> None:
    """Write a pruned model, as ``sbc_plugin.save`` does, with the history of its cuts.

    Args:
        path: of the file.
        model: after pruning, and fine-tuning if any.
        history: ``pruner.pruning_history()``: (name of the root, whether outputs went, channels) of each cut, in order.

    Raises:
        CheckpointError: the file cannot be written, or the model holds something that has no place in it.
    """
    cuts = [[name, bool(outputs), [int(i) for i in channels]] for name, outputs, channels in history]
    write(path, model, {"report": None, KEY: cuts})


def load_pruned(path: str | PathLike[str], model: nn.Module, example_inputs: Any, **arguments: Any) -> nn.Module:
    """Cut ``model``, as it was before pruning, like the one that was saved, and fill in its values; ``model`` itself.

    Args:
        path: of the file.
        model: the unpruned architecture, built by the code that built the saved one; its values do not matter.
        example_inputs: as for ``get_pruner``.
        arguments: those of ``get_pruner`` that shape the graph: customized_pruners, unwrapped_parameters, num_heads.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, no pruned model, or of another model.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} cannot be read: no such file; write one with save_pruned")
    cuts = _cuts(path)
    names = dict(model.named_modules())
    if missing := [name for name, _, _ in cuts if name not in names]:
        raise CheckpointError(f"{path} was pruned at {missing}, which this {type(model).__name__} does not have")
    with exact_tracing(model):
        given = graph_arguments(model, arguments)
        graph = tp.DependencyGraph().build_dependency(
            model,
            trace_inputs(model, example_inputs),
            customized_pruners=given["customized_pruners"],
            unwrapped_parameters=given.get("unwrapped_parameters"),
        )
    try:
        graph.load_pruning_history(cuts)
    except (RuntimeError, AssertionError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {error}") from error
    return load(path, model)[0]


def _cuts(path: str | PathLike[str]) -> list[list[Any]]:
    """The cuts that the file records, each (name, whether outputs went, channels).

    Raises:
        CheckpointError: there is no file of a pruned model.
    """
    try:
        header = load(path).header
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds no pruned model that can be read: {error}") from error
    if KEY not in header:
        raise CheckpointError(f"{path} holds no pruned model: it has no history of cuts; sbc_plugin.load reads it")
    try:
        return [[str(name), bool(outputs), [int(i) for i in channels]] for name, outputs, channels in header[KEY]]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a damaged history of cuts ({error}); get it again") from error
