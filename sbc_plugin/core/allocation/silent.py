"""Weights that can go at no cost: those from neurons that never spiked, and then those into such neurons.

A neuron that never spikes has dead columns in the layers that it feeds. Once the weights on them are zero, no layer
reads its spikes, and the row of weights into it may be anything. Source: docs/theory.md, section "Silent neurons".
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def give_silent(
    weights: Mapping[str, Tensor], dead: Mapping[str, Tensor], unread: Mapping[str, Tensor], zeros: int
) -> dict[str, Tensor] | None:
    """Zero all weights from silent neurons; then the smallest of those into them, as many as the budget allows.

    Args:
        weights: name -> (rows, columns).
        dead: name -> (rows, columns), True where the input never spiked.
        unread: name -> (rows,), True where the neuron never spiked, and no layer reads it once the dead weights are 0.
        zeros: of all layers together; those that are there already count.

    Returns:
        New weights; None if the budget is too small for the dead weights, or no neuron is unread.

    >>> weight, dead = torch.tensor([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]), torch.zeros(2, 3, dtype=torch.bool)
    >>> dead[:, 2] = True
    >>> give_silent({"a": weight}, {"a": dead}, {"a": torch.tensor([False, True])}, zeros=3)["a"].tolist()
    [[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]]
    """
    without = {name: weight.where(~dead[name].to(weight.device), 0.0) for name, weight in weights.items()}
    left = zeros - sum(int((weight == 0).sum()) for weight in without.values())
    if left < 0 or not any(rows.any() for rows in unread.values()):
        return None
    into = {name: (weight != 0) & unread[name][:, None].to(weight.device) for name, weight in without.items()}
    cost = torch.cat([w.abs().where(into[name], float("inf")).flatten().cpu().double() for name, w in without.items()])
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    chosen[cost.argsort(stable=True)[: min(left, int(cost.isfinite().sum()))]] = True
    pieces = chosen.split([weight.numel() for weight in without.values()])
    return {
        name: weight.where(~piece.reshape(weight.shape).to(weight.device), 0.0)
        for (name, weight), piece in zip(without.items(), pieces, strict=True)
    }
