"""Pruned models on disk: a file of ``save`` that also holds the history of the cuts.

``load`` finds the shapes of a pruned model by itself, where the layers of torch are simple: a Linear, a convolution, a
norm. Replaying the cuts also serves attention, LSTMs, and modules with a pruning function of the user's own, whose
sizes only torch-pruning knows how to change.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch_pruning as tp
from torch import nn

from sbc_plugin.checkpoint.file import bytes_of, load, write
from sbc_plugin.checkpoint.reading import MAX_BYTES, read_file
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


def load_pruned(
    path: str | PathLike[str],
    model: nn.Module,
    example_inputs: Any,
    *,
    max_bytes: int = MAX_BYTES,
    **arguments: Any,
) -> nn.Module:
    """Cut ``model``, as it was before pruning, like the one that was saved, and fill in its values; ``model`` itself.

    If anything fails, the model is as it was.

    Args:
        path: of the file.
        model: the unpruned architecture, built by the code that built the saved one; its values do not matter.
        example_inputs: as for ``get_pruner``.
        max_bytes: as for :func:`sbc_plugin.load`.
        arguments: those of ``get_pruner`` that shape the graph: customized_pruners, unwrapped_parameters, num_heads.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, no pruned model, or of another model.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} cannot be read: no such file; write one with save_pruned")
    cuts = _cuts(path, max(max_bytes, 2 * bytes_of(model)))
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
    with _whole_or_not_at_all(model):
        try:
            for name, outputs, channels in cuts:
                _cut(graph, names[name], outputs, channels)
        except (RuntimeError, AssertionError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {error}") from error
        return load(path, model, max_bytes=max_bytes)[0]


@contextmanager
def _whole_or_not_at_all(model: nn.Module) -> Iterator[None]:
    """After an error inside the block, each module holds again what it held before: tensors, sizes and all else."""
    before = [
        (module, {name: dict(held) if isinstance(held, dict) else held for name, held in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, held in before:
            vars(module).clear()
            vars(module).update(held)
        raise


def _cut(graph: Any, module: nn.Module, outputs: bool, channels: list[int]) -> None:
    """Cut these channels of a module, and what follows from that.

    Raises:
        ValueError: the module has no such channels, or would have none without them.
    """
    pruner = graph.get_pruner_of_module(module)
    if pruner is None:
        raise ValueError(f"a {type(module).__name__} cannot be cut")
    size = (pruner.get_out_channels if outputs else pruner.get_in_channels)(module)
    if size is None or not channels or min(channels) < 0 or max(channels) >= size or len({*channels}) < len(channels):
        raise ValueError(f"a {type(module).__name__} of {size} channels has no channels {channels!s:.60}")
    group = graph.get_pruning_group(
        module, pruner.prune_out_channels if outputs else pruner.prune_in_channels, channels
    )
    if not graph.check_pruning_group(group):
        raise ValueError(f"nothing would be left of a {type(module).__name__} of {size} channels")
    group.prune(record_history=False)


def _cuts(path: str | PathLike[str], max_bytes: int) -> list[tuple[str, bool, list[int]]]:
    """The cuts that the file records, each (name, whether outputs went, channels).

    Raises:
        CheckpointError: there is no file of a pruned model, or its history is damaged.
    """
    try:
        header, _ = read_file(Path(path), max_bytes)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds no pruned model that can be read: {error}") from error
    if KEY not in header:
        raise CheckpointError(f"{path} holds no pruned model: it has no history of cuts; sbc_plugin.load reads it")
    history = header[KEY]
    if not isinstance(history, list) or not all(map(_is_cut, history)):
        raise CheckpointError(f"{path} has a damaged history of cuts; get it again")
    return [(name, outputs, channels) for name, outputs, channels in history]


def _is_cut(cut: Any) -> bool:
    if not isinstance(cut, list) or len(cut) != 3:
        return False
    name, outputs, channels = cut
    whole = isinstance(channels, list) and all(type(channel) is int for channel in channels)
    return whole and isinstance(name, str) and isinstance(outputs, bool)
