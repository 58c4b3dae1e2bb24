"""SBC in torch-pruning: ``get_pruner("sbc", ...)`` beside its own methods, on networks that spike and on others.

Importing this patches nothing; :func:`register` adds two names to torch-pruning when asked, or lets a method of its
scripts mean SBC.
"""

from sbc_plugin.errors import extra

with extra("torch-pruning"):
    from sbc_plugin.torch_pruning.audit import Audit, audit
    from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing
    from sbc_plugin.torch_pruning.history import load_pruned, save_pruned
    from sbc_plugin.torch_pruning.importance import SBCImportance
    from sbc_plugin.torch_pruning.normalization import reestimate_batchnorm
    from sbc_plugin.torch_pruning.pruner import SBCPruner, get_pruner
    from sbc_plugin.torch_pruning.registration import Registration, register, unregister
    from sbc_plugin.torch_pruning.weights import WeightPruner


__all__ = [
    "Audit",
    "Registration",
    "SBCImportance",
    "SBCPruner",
    "WeightPruner",
    "audit",
    "exact_tracing",
    "get_pruner",
    "load_pruned",
    "reestimate_batchnorm",
    "register",
    "save_pruned",
    "unregister",
]
