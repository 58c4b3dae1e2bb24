"""Adam with a step length that falls to 0 along a cosine. torch's own imports its compiler, which takes seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # decays of the gradient's mean and mean square; added to the root of the latter


@dataclass
class Adam:
    """Adam, arXiv 1412.6980, with torch's defaults.

    Attributes:
        moved: tensors, changed in place.
        lengths: of each tensor's first step.
        steps: after which the step length is 0: ``length * (1 + cos(pi t / steps)) / 2`` at step t, from 0 on.
        taken: how many steps were taken.
        begun: how many of them before the tensors were last put back to where they came from.
    """

    moved: Sequence[Tensor]
    lengths: list[float]
    steps: int
    taken: int = field(default=0, init=False)
    begun: int = field(default=0, init=False)
    _means: list[Tensor] = field(init=False)
    _squares: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._means = [torch.zeros_like(tensor, requires_grad=False) for tensor in self.moved]
        self._squares = [torch.zeros_like(tensor, requires_grad=False) for tensor in self.moved]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move each tensor against its gradient."""
        share = (1 + math.cos(math.pi * self.taken / self.steps)) / 2
        self.taken += 1
        first, second = (1 - decay ** (self.taken - self.begun) for decay in (FIRST, SECOND))
        rows = zip(self.moved, self.lengths, gradients, self._means, self._squares, strict=True)
        for tensor, length, gradient, mean, square in rows:
            mean.lerp_(gradient, 1 - FIRST)
            square.mul_(SECOND).addcmul_(gradient, gradient, value=1 - SECOND)
            root = square.sqrt().div_(math.sqrt(second)).add_(TINY)
            tensor.addcdiv_(mean, root, value=-length * share / first)

    @torch.no_grad()
    def begin_again(self, starts: Sequence[Tensor], factor: float) -> None:
        """Put the tensors back to ``starts``, and take the steps that are left ``factor`` times as long."""
        self.begun = self.taken
        self.lengths = [factor * length for length in self.lengths]
        for tensor, start, *moments in zip(self.moved, starts, self._means, self._squares, strict=True):
            tensor.copy_(start)
            for moment in moments:
                moment.zero_()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the arguments; no copies."""
        numbers = {"taken": self.taken, "begun": self.begun, "lengths": [*self.lengths]}
        return numbers | {"moved": [*self.moved], "means": self._means, "squares": self._squares}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on, in place, from what :meth:`state` was."""
        self.taken, self.begun, self.lengths = state["taken"], state["begun"], [*state["lengths"]]
        own = (*self.moved, *self._means, *self._squares)
        for tensor, value in zip(own, (*state["moved"], *state["means"], *state["squares"]), strict=True):
            tensor.copy_(value)
