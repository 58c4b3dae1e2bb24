"""How far two classifiers agree, by their scores alone, without labels."""

import torch
from torch import Tensor

CONFIDENCE = 0.9  # mean probability of the dense network's best class,
REACH = 0.95  # but on sequences without a tie at most this, in the mean
TIE = 1e-3  # a class is tied with the best if it scores less by at most this fraction of the mean spread
LIMIT = 1e6  # the largest inverse temperature, and one over the smallest; relative to the scores' spread


def divergence(dense: Tensor, compressed: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """Mean Kullback-Leibler divergence of the classes' probabilities, a scalar >= 0.

    ``mean_b sum_c p_bc log(p_bc / q_bc)`` with ``p = softmax(inverse_temperature * dense)``, and q likewise.
    Source: docs/theory.md, equation 11; Hinton, Vinyals, Dean, arXiv 1503.02531.

    Args:
        dense: (B, C), scores of classes, of any scale.
        compressed: (B, C); gradients flow into these.
        inverse_temperature: factor from scores to logits.

    >>> float(divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])))
    0.0
    """
    wanted, found = (inverse_temperature * scores for scores in (dense, compressed))
    return torch.nn.functional.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    )


def inverse_temperature(scores: Tensor) -> float | None:
    """The factor that makes the best class of the scores (B, C) as likely as ``CONFIDENCE``, in the mean.

    The scale of the scores is the network's own: spikes a sequence, or volts. Where k classes are tied for the best,
    none of them can be likelier than 1 / k, whatever the factor. With many ties, among them sequences on which all
    outputs are silent, the mean is therefore lower: at most what ``REACH`` on the other sequences gives. The result is
    None if the scores separate no classes: there are fewer than two, or all have the same score.

    >>> round(inverse_temperature(torch.tensor([[0.0, 2.0], [2.0, 0.0]])), 3)  # 1 / (1 + exp(-2 s)) = 0.9
    1.099
    """
    scores = scores.detach().double()
    spread = float((scores.amax(1) - scores.amin(1)).mean()) if scores.numel() else 0.0
    if scores.shape[1] < 2 or spread == 0:
        return None
    tied = (scores >= scores.amax(1, keepdim=True) - TIE * spread).sum(1)
    even = 1 / scores.shape[1]  # the best class's probability at a factor of 0
    wanted = min(CONFIDENCE, even + (REACH - even) / (1 - even) * (float((1 / tied).mean()) - even))
    low, high = 1 / (LIMIT * spread), LIMIT / spread
    for _ in range(100):
        middle = (low * high) ** 0.5
        if (middle * scores).softmax(1).amax(1).mean() < wanted:
            low = middle
        else:
            high = middle
    return float((low * high) ** 0.5)
