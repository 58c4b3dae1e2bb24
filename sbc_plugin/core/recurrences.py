"""First-order recurrences and spiking membranes along time, whole sequences in one call, with gradients written out.

A step of a neuron is a dozen operations on small tensors, and as many again for its gradient. Over a whole sequence all
but the recurrence itself are done at once. Time is the first axis; time constants are per step, without dimension.
Source: docs/theory.md, section "Gradients of whole sequences".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Parameter = Tensor | float  # one value, or one for each neuron, to be broadcast against one step (B, ...)
Slope = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Firing:
    """How a membrane v sends spikes: above ``threshold`` it sends 1, and is reset.

    Attributes:
        threshold: v is compared with.
        reset: the value that v takes after a spike; None: ``threshold`` is subtracted.
        slope: surrogate derivative of the spike, a function of ``v - threshold``; may write into its argument.
        through_reset: whether gradients flow through the spike that resets.
    """

    threshold: Parameter
    reset: Parameter | None
    slope: Slope
    through_reset: bool = True


def leaky_sum(x: Tensor, decay: Parameter) -> Tensor:
    """``y[t] = decay * y[t-1] + x[t]`` of x (T, ...), from rest; gradients flow into x.

    >>> leaky_sum(torch.tensor([1.0, 0.0, 1.0]), 0.5)
    tensor([1.0000, 0.5000, 1.2500])
    """
    y: Tensor = _LeakySum.apply(x, decay)
    return y


def spikes_of(drive: Tensor, decay: Parameter, start: Tensor, firing: Firing) -> Tensor:
    """The spikes of membranes ``v[t] = decay * reset(v[t-1]) + drive[t]``; gradients flow into ``drive``.

    Args:
        drive: (T, B, ...), what each step adds.
        decay: of the membrane.
        start: (B, ...), the membrane before the first step.
        firing: threshold, reset and surrogate.

    Returns:
        (T, B, ...), 0 or 1.

    >>> firing = Firing(threshold=1.0, reset=0.0, slope=torch.ones_like)
    >>> spikes_of(torch.full((4, 1), 0.6), 1.0, torch.zeros(1), firing).flatten()
    tensor([0., 1., 0., 1.])
    """
    sent: Tensor = _Spikes.apply(drive, decay, start, firing)
    return sent


def recurrent_spikes(
    current: Tensor, weight: Tensor, decays: tuple[float, float], start: tuple[Tensor, Tensor, Tensor], firing: Firing
) -> Tensor:
    """The spikes of current-based neurons that hear each other; gradients flow into ``current`` and ``weight``.

    ``i[t] = synapse * i[t-1] + current[t] + weight z[t-1]``, ``v[t] = membrane * reset(v[t-1]) + (1 - membrane) i[t]``.

    Args:
        current: (T, B, n), from outside.
        weight: (n, n), of the neurons' own spikes one step ago.
        decays: of synapse and membrane.
        start: (B, n) each, before the first step: the decayed current ``synapse * i[-1]``, v, and the spikes z.
        firing: threshold, reset by value and surrogate; no gradient flows through the reset.

    Returns:
        (T, B, n), 0 or 1.
    """
    sent: Tensor = _RecurrentSpikes.apply(current, weight, decays, start, firing)
    return sent


class _LeakySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Parameter) -> Tensor:
        ctx.decay = decay
        return _accumulated(x, decay, range(len(x)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _accumulated(gradient, ctx.decay, range(len(gradient) - 1, -1, -1)), None


def _accumulated(x: Tensor, decay: Parameter, order: range) -> Tensor:
    """``y[t] = decay * y[previous] + x[t]`` along this order of time steps."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    inputs, sums, before = x.unbind(0), y.unbind(0), None
    for t in order:
        if before is None:
            sums[t].copy_(inputs[t])
        else:
            _add_decayed(inputs[t], before, decay, out=sums[t])
        before = sums[t]
    return y


def _add_decayed(x: Tensor, state: Tensor, decay: Parameter, out: Tensor) -> Tensor:
    """``x + decay * state``."""
    if isinstance(decay, Tensor):
        return torch.addcmul(x, state, decay, out=out)
    return torch.add(x, state, alpha=decay, out=out)


def _after_reset(v: Tensor, spikes: Tensor, firing: Firing) -> Tensor:
    if firing.reset is None:
        if isinstance(firing.threshold, Tensor):
            return torch.addcmul(v, spikes, firing.threshold, value=-1)
        return torch.sub(v, spikes, alpha=firing.threshold)
    if not isinstance(firing.reset, Tensor) and firing.reset == 0:
        return torch.addcmul(v, v, spikes, value=-1)
    return torch.where(spikes != 0, firing.reset, v)


class _Spikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, decay: Parameter, start: Tensor, firing: Firing) -> Tensor:
        membrane = torch.empty_like(drive, memory_format=torch.contiguous_format)
        spikes = torch.empty_like(membrane)
        v = start
        for arriving, before_reset, sent in zip(drive.unbind(0), membrane.unbind(0), spikes.unbind(0), strict=True):
            _add_decayed(arriving, v, decay, out=before_reset)
            torch.gt(before_reset, firing.threshold, out=sent)
            v = _after_reset(before_reset, sent, firing)
        ctx.save_for_backward(membrane, spikes)
        ctx.decay, ctx.firing = decay, firing
        return spikes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        membrane, spikes = ctx.saved_tensors
        # dL/dv[t] = slope * dL/dz[t] + decay * dL/dv[t+1] * d reset(v[t]) / dv[t]
        passed, total = _through(membrane, spikes, ctx.firing, gradient)
        passed.mul_(ctx.decay)
        totals, factors = total.unbind(0), passed.unbind(0)
        for t in range(len(totals) - 2, -1, -1):
            totals[t].addcmul_(totals[t + 1], factors[t])
        return total, None, None, None


def _through(membrane: Tensor, spikes: Tensor, firing: Firing, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of each step's membrane after the reset by that before it, and ``slope * gradient``."""
    slope = firing.slope(membrane - firing.threshold)
    total = gradient * slope
    if firing.reset is None:
        passed = slope.mul_(-firing.threshold) if firing.through_reset else slope.zero_()
    elif firing.through_reset:
        passed = torch.sub(firing.reset, membrane).mul_(slope).sub_(spikes)
    else:
        passed = spikes.neg()
    return passed.add_(1), total


class _RecurrentSpikes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        weight: Tensor,
        decays: tuple[float, float],
        start: tuple[Tensor, Tensor, Tensor],
        firing: Firing,
    ) -> Tensor:
        synapse, decay = decays
        membrane = torch.empty_like(current, memory_format=torch.contiguous_format)
        spikes = torch.empty_like(membrane)
        (i, v, z), transposed = start, weight.t()
        for arriving, before_reset, sent in zip(current.unbind(0), membrane.unbind(0), spikes.unbind(0), strict=True):
            i = torch.addmm(arriving, z, transposed).add_(i)
            torch.lerp(i, v, decay, out=before_reset)
            torch.gt(before_reset, firing.threshold, out=sent)
            v, z = _after_reset(before_reset, sent, firing), sent
            i = i * synapse
        ctx.save_for_backward(membrane, spikes, weight, start[2])
        ctx.decays, ctx.firing = decays, firing
        return spikes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        membrane, spikes, weight, first = ctx.saved_tensors
        synapse, decay = ctx.decays
        passed, slope = _through(membrane, spikes, ctx.firing, torch.ones_like(gradient))
        passed.mul_(decay)
        current = torch.empty_like(membrane)
        outside, slopes, factors, currents = gradient.unbind(0), slope.unbind(0), passed.unbind(0), current.unbind(0)
        last = len(currents) - 1
        total = outside[last] * slopes[last]
        torch.mul(total, 1 - decay, out=currents[last])
        for t in range(last - 1, -1, -1):
            sent = torch.addmm(outside[t], currents[t + 1], weight)
            total = torch.addcmul(total * factors[t], sent, slopes[t])
            torch.add(currents[t + 1] * synapse, total, alpha=1 - decay, out=currents[t])
        before = torch.cat([first.unsqueeze(0), spikes[:-1]])
        return current, current.flatten(0, 1).t() @ before.flatten(0, 1), None, None, None
