"""BatchNorm after a cut: its averages are those of the wider network, and forward passes are enough to renew them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.calibration.shares import peek
from sbc_plugin.layers import Forward


@ranks.joined()
def reestimate_batchnorm(model: nn.Module, data: Iterable[Any], forward: Forward | None = None) -> int:
    """Average mean and variance of every BatchNorm anew over the data of all ranks, with equal weight for each call.

    No weight changes, and everything else (Dropout too) runs in eval mode.

    Args:
        model: changed in place.
        data: batches as for calibration.
        forward: ``forward(model, batch)`` runs one whole batch.

    Returns:
        How many BatchNorms were renewed.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    first, data = peek(data)
    run = forward or library_or_plain(model).default_forward(model, first)
    momenta = [norm.momentum for norm in norms]
    try:
        with eval_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain average of all calls
                norm.train()
            for batch in data:
                run(model, batch)
            _of_all_ranks(norms)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)


def _of_all_ranks(norms: list[_BatchNorm]) -> None:
    """Averages over the calls of all ranks."""
    if ranks.count() == 1:
        return
    averages = [average for norm in norms for average in (norm.running_mean, norm.running_var) if average is not None]
    calls = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    for norm in norms:
        for average in (norm.running_mean, norm.running_var):
            if average is not None and norm.num_batches_tracked is not None:
                average *= norm.num_batches_tracked
    ranks.total([*averages, *calls])
    for norm in norms:
        for average in (norm.running_mean, norm.running_var):
            if average is not None and norm.num_batches_tracked is not None:
                average /= norm.num_batches_tracked
