"""Deal one global sparsity to layers: how many weights of each layer become zero.

The budget is met exactly, and no layer loses its last weight while another has weights to spare.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError


def allocate_zeros(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    method: str = "lamp",
    saliencies: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """The number of zeros of each layer; together ``round(sparsity * number of weights)``.

    Args:
        weights: name -> weight of any shape; weights that are zero already count as zeros, and no layer gets fewer.
        sparsity: fraction of zeros over all layers, 0 to 1.
        method: "lamp" sets one threshold over all layers on :func:`lamp_scores`; "loss" does so with ``saliencies`` in
            place of squared weights; "uniform" gives every layer the same sparsity, by largest remainders.
        saliencies: name -> loss of removing each weight, of any scale; for "loss" only.

    Raises:
        SettingsError: no layer, an empty layer, sparsity out of range, an unknown method, or saliencies that are
            missing, superfluous, NaN or of another size than the weights.

    >>> layers = {"wide": torch.tensor([4.0, 1.0, 0.1, 0.1]), "narrow": torch.tensor([0.3, 0.2])}
    >>> allocate_zeros(layers, 0.5)
    {'wide': 3, 'narrow': 0}
    >>> allocate_zeros(layers, 0.5, method="uniform")
    {'wide': 2, 'narrow': 1}
    """
    sizes = {name: weight.numel() for name, weight in weights.items()}
    if not sizes or not all(sizes.values()):
        raise SettingsError(f"a sparsity is dealt to layers with weights, found {sizes}; leave empty layers out")
    if not 0 <= sparsity <= 1:
        raise SettingsError(f"sparsity={sparsity:g}: the fraction of zeros lies between 0 and 1")
    if (saliencies is not None) != (method == "loss"):
        raise SettingsError(
            f'method {method!r} with saliencies={saliencies is not None}: "loss" needs them, no other does'
        )
    present = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    budget = round(sparsity * sum(sizes.values()))
    if method == "uniform":
        return _with_present(present, budget, lambda names, left: _same_sparsity({n: sizes[n] for n in names}, left))
    if method == "lamp":
        scores = {name: lamp_scores(weight).flatten().cpu() for name, weight in weights.items()}
    elif method == "loss" and saliencies is not None:
        found = {name: saliency.numel() for name, saliency in saliencies.items()}
        if found != sizes:
            raise SettingsError(
                f"saliencies of {found} do not fit weights of {sizes}; give one of the same size a layer"
            )
        if broken := [name for name in sizes if not saliencies[name].isfinite().all()]:
            raise SettingsError(f"the saliencies of {broken} hold NaN or infinity; leave layers without a loss out")
        scores = {name: lamp_scores(saliencies[name], 1.0).flatten().cpu() for name in sizes}
    else:
        raise SettingsError(f'method {method!r} is unknown; use "lamp", "uniform" or "loss"')
    for score in scores.values():
        score[score.argmax()] = math.inf  # a layer's best weight goes only when all others are gone
    return _with_present(present, budget, lambda names, left: _below_one_threshold({n: scores[n] for n in names}, left))


def lamp_scores(weight: Tensor, exponent: float = 2.0) -> Tensor:
    """``|w_i|^p / sum_{j: |w_j| >= |w_i|} |w_j|^p``, shape of ``weight``, float64; the largest weight has score 1.

    Equal weights have equal scores; zeros have score 0. Source: docs/theory.md; Lee et al. 2021, "Layer-adaptive
    sparsity for the magnitude-based pruning", arXiv 2010.07611 (exponent 2).

    Raises:
        SettingsError: the exponent is not positive, or the weight holds NaN or infinity.

    >>> lamp_scores(torch.tensor([1.0, -2.0, 0.0])).tolist()
    [0.2, 1.0, 0.0]
    """
    if not exponent > 0:
        raise SettingsError(f"exponent={exponent:g}: LAMP takes a positive exponent")
    magnitude = weight.detach().flatten().to(torch.float64).abs()
    if not magnitude.isfinite().all():
        raise SettingsError("the weight holds NaN or infinity; repair the model before compressing it")
    largest = magnitude.max()
    if largest == 0:
        return torch.zeros_like(weight, dtype=torch.float64)
    # Scores do not depend on the scale of the layer: with the largest weight at 1, powers do not overflow.
    powers, place = (magnitude / largest).pow(exponent).sort(descending=True)
    values, counts = powers.unique_consecutive(return_counts=True)
    at_least = powers.cumsum(0)[counts.cumsum(0) - 1]
    scores = torch.empty_like(powers)
    scores[place] = (values / at_least).repeat_interleave(counts)
    return scores.reshape(weight.shape)


def _with_present(
    present: dict[str, int], budget: int, deal: Callable[[list[str], int], dict[str, int]]
) -> dict[str, int]:
    """What ``deal`` gives, but no layer gets fewer zeros than it has, unless the budget is too small for these."""
    held: dict[str, int] = {}
    while True:
        dealt = deal([name for name in present if name not in held], budget - sum(held.values()))
        over = {name: present[name] for name, zeros in dealt.items() if zeros < present[name]}
        if not over or sum(present.values()) > budget:
            return {name: (held | dealt)[name] for name in present}
        held |= over


def _same_sparsity(sizes: dict[str, int], budget: int) -> dict[str, int]:
    total = sum(sizes.values())
    sparsity = budget / total
    spare = 1 if budget <= total - len(sizes) else 0  # weights that every layer keeps
    zeros = {name: min(math.floor(sparsity * size), size - spare) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: zeros[name] - sparsity * sizes[name])  # stable: ties keep their order
    left = budget - sum(zeros.values())
    while left > 0:
        for name in by_remainder:
            if left > 0 and zeros[name] < sizes[name] - spare:
                zeros[name], left = zeros[name] + 1, left - 1
    return zeros


def _below_one_threshold(scores: dict[str, Tensor], budget: int) -> dict[str, int]:
    """How many of each layer's scores are among the ``budget`` smallest of all; earlier layers win ties."""
    if budget == 0:
        return dict.fromkeys(scores, 0)
    threshold = torch.cat(list(scores.values())).kthvalue(budget).values
    zeros = {name: int((score < threshold).sum()) for name, score in scores.items()}
    left = budget - sum(zeros.values())
    for name, score in scores.items():
        tied = min(left, int((score == threshold).sum()))
        zeros[name], left = zeros[name] + tied, left - tied
    return zeros
