"""torch-pruning's own methods by the names of its pipeline (``reproduce/main.py``), on spiking models too."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch_pruning as tp
from torch import nn

from sbc_plugin.errors import SettingsError
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, trace_inputs
from sbc_plugin.torch_pruning.graph.neuron_pruners import neuron_pruners

HOST_ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)


_HOST_PRUNER: ContextVar[bool] = ContextVar("host_pruner", default=False)


class Method(NamedTuple):
    """A method of torch-pruning.

    Attributes:
        importance: makes the importance.
        pruner: the class of the pruner.
        arguments: of the pruner, by which this method differs from others with the same class.
    """

    importance: Callable[..., Any]
    pruner: Callable[..., Any] = tp.pruner.BasePruner
    arguments: dict[str, Any] = {}  # noqa: RUF012 - only read


def _magnitude(p: int, **named: Any) -> Callable[..., Any]:
    return lambda **given: tp.importance.GroupMagnitudeImportance(p=p, **(named | given))


METHODS = {
    "random": Method(tp.importance.RandomImportance),
    "l1": Method(_magnitude(1)),
    "l2": Method(_magnitude(2)),
    "fpgm": Method(tp.importance.FPGMImportance),
    "obdc": Method(tp.importance.OBDCImportance),
    "lamp": Method(tp.importance.LAMPImportance),
    "slim": Method(tp.importance.BNScaleImportance, tp.pruner.BNScalePruner),
    "group_slim": Method(tp.importance.BNScaleImportance, tp.pruner.BNScalePruner, {"group_lasso": True}),
    "group_norm": Method(_magnitude(2), tp.pruner.GroupNormPruner),
    "group_sl": Method(_magnitude(2, normalizer="max"), tp.pruner.GroupNormPruner),
    "group_greg": Method(_magnitude(2), tp.pruner.GrowingRegPruner),
    "growing_reg": Method(_magnitude(2), tp.pruner.GrowingRegPruner),
    "taylor": Method(tp.importance.GroupTaylorImportance),
    "hessian": Method(tp.importance.GroupHessianImportance),
}


def host_pruner(method: str, model: nn.Module, example_inputs: Any, arguments: dict[str, Any]) -> Any:
    """One of torch-pruning's pruners, with an exact graph that cuts neurons together with their channels.

    Args:
        method: a name of :data:`METHODS`.
        model: to be pruned in place.
        example_inputs: as for ``get_pruner``.
        arguments: of the method's pruner; ``num_classes`` goes to the importance of "obdc", an ``importance`` replaces
            the method's own.

    Raises:
        SettingsError: ``isomorphic`` without ``global_pruning``.
    """
    entry, arguments = METHODS[method], dict(arguments)
    for_importance = {"num_classes": arguments.pop("num_classes")} if "num_classes" in arguments else {}
    importance = arguments.pop("importance", None)
    if importance is None:
        importance = entry.importance(**(for_importance if method == "obdc" else {}))
    token = _HOST_PRUNER.set(True)
    try:
        with exact_tracing(model):
            return entry.pruner(
                model,
                trace_inputs(model, example_inputs),
                importance=importance,
                **(entry.arguments | graph_arguments(model, arguments)),
            )
    finally:
        _HOST_PRUNER.reset(token)


def makes_host_pruner() -> bool:
    """Whether :func:`host_pruner` is making a pruner, which is torch-pruning's own even if SBC has taken its name."""
    return _HOST_PRUNER.get()


def graph_arguments(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pruner, with what spiking models need added, in dicts of their own.

    torch-pruning writes into its default dicts, which all pruners share.

    Raises:
        SettingsError: ``isomorphic`` without ``global_pruning``.
    """
    if arguments.get("isomorphic") and not arguments.get("global_pruning"):
        raise SettingsError(
            "isomorphic=True ranks the channels of alike layers against each other, which needs global_pruning=True; "
            "torch-pruning would cut one layer by the ranks of another"
        )
    neurons = neuron_pruners(model)
    given = dict(arguments)
    for name in ("in_channel_groups", "out_channel_groups", "num_heads"):
        given[name] = dict(given.get(name) or {})
    given["customized_pruners"] = neurons | dict(given.get("customized_pruners") or {})
    # Cells with weights of their own make channels, as a Linear does; other neurons pass them on.
    weighted = [cls for cls, pruner in neurons.items() if pruner.prune_in_channels != pruner.prune_out_channels]
    given["root_module_types"] = [*(given.get("root_module_types") or HOST_ROOTS), *weighted]
    return given
