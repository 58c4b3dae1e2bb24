"""What is measured on spike trains: their distance, and the operations that a network's spikes cause.

Time is the first axis. Time constants and steps are in seconds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.core.hessian import owner_of_rows
from sbc_plugin.core.recurrences import leaky_sum
from sbc_plugin.errors import CalibrationError, SettingsError

TAU_STEPS = 10.0  # time constant of the Van Rossum kernel with which spikes are compared, in time steps
JOULES_PER_MAC = 4.6e-12
JOULES_PER_AC = 0.9e-12


def van_rossum_distance(spikes_a: Tensor, spikes_b: Tensor, *, tau: float, dt: float) -> Tensor:
    """Squared Van Rossum distance of spike trains (T, ...), one number for each entry of the other axes.

    ``D^2 = dt / tau * sum_t (sum_{s <= t} exp(-(t - s) dt / tau) (a[s] - b[s]))^2``, the integral of van
    Rossum 2001 ("A novel spike distance") as a sum over the T steps. One spike more or less costs 1/2 if dt is much
    smaller than tau and the recording goes on for long after it. Spike trains need not be binary.

    Args:
        spikes_a: (T, ...).
        spikes_b: (T, ...), same shape.
        tau: time constant of the exponential kernel, s.
        dt: length of a step, s.

    Returns:
        Shape (...), in the dtype of the spikes, at least float32.

    Raises:
        CalibrationError: the shapes differ.
        SettingsError: tau or dt is not positive.

    >>> van_rossum_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), tau=1.0, dt=math.log(2)).item()
    0.8664339780807495
    """
    if spikes_a.shape != spikes_b.shape:
        raise CalibrationError(f"spike trains {tuple(spikes_a.shape)} and {tuple(spikes_b.shape)} cannot be compared")
    if not (tau > 0 and dt > 0):
        raise SettingsError(f"tau={tau:g}, dt={dt:g}: both are times in seconds, above 0")
    dtype = torch.promote_types(torch.promote_types(spikes_a.dtype, spikes_b.dtype), torch.float32)
    decay = math.exp(-dt / tau)
    trace = torch.zeros(spikes_a.shape[1:], dtype=dtype, device=spikes_a.device)
    total = torch.zeros_like(trace)
    for a, b in zip(spikes_a, spikes_b, strict=True):
        trace = trace * decay + (a.to(dtype) - b.to(dtype))
        total += trace.square()
    return total * (dt / tau)


def total_distance(spikes_a: Tensor, spikes_b: Tensor, *, tau: float, dt: float) -> Tensor:
    """The sum of :func:`van_rossum_distance` over all spike trains (T, ...), a scalar; gradients flow into both.

    It takes the memory of all traces, and less time.
    """
    dtype = torch.promote_types(torch.promote_types(spikes_a.dtype, spikes_b.dtype), torch.float32)
    traces = leaky_sum(spikes_a.to(dtype) - spikes_b.to(dtype), math.exp(-dt / tau))
    return traces.square().sum() * (dt / tau)


@dataclass(frozen=True)
class Operations:
    """Synaptic operations; they add up over layers and batches.

    Attributes:
        acs: effective accumulates, where the input is a spike.
        macs: effective multiply-accumulates, where the input is a number.
        dense: what a processor that skips no zero does.

    >>> sum([Operations(acs=2, dense=8), Operations(macs=1, dense=4)], Operations())
    Operations(acs=2, macs=1, dense=12)
    """

    acs: int = 0
    macs: int = 0
    dense: int = 0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.acs + other.acs, self.macs + other.macs, self.dense + other.dense)


def synaptic_operations(samples: Tensor, weight: Tensor, row_groups: Tensor | None = None) -> Operations:
    """Count the products of ``weight @ sample`` whose weight and input are both nonzero, over all samples.

    As in NeuroBench's ``SynapticOperations``, they are accumulates if every input of this call is -1, 0 or 1, else
    multiply-accumulates, and biases do not count. NeuroBench counts step by step and divides by the number of
    sequences; here the caller does that. ``dense`` counts every weight for every sample; for a convolution in matrix
    form this includes the zeros that pad the borders, which NeuroBench leaves out (the effective counts are the same).

    Args:
        samples: (n, columns), or (groups, n, columns): the layer's inputs in matrix form, not filtered in time.
        weight: (rows, columns).
        row_groups: (rows,), the group of each row; by default rows are dealt evenly.

    Raises:
        CalibrationError: the samples are of another width than the weight.
        SettingsError: the rows cannot be dealt evenly, and ``row_groups`` is None.

    >>> synaptic_operations(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.5, 0.0], [0.5, -1.0]]))
    Operations(acs=5, macs=0, dense=8)
    """
    if samples.dim() not in (2, 3) or samples.shape[-1] != weight.shape[1]:
        raise CalibrationError(
            f"samples {tuple(samples.shape)} do not fit a weight {tuple(weight.shape)} (rows, columns)"
        )
    active = samples.count_nonzero(-2).reshape(-1, weight.shape[1])  # (groups, columns)
    present = torch.zeros_like(active)
    owner = owner_of_rows(len(weight), len(active), row_groups, samples.device)
    present.index_add_(0, owner, (weight != 0).to(active))
    effective = int((active * present).sum())
    spiking = bool(((samples == 0) | (samples == 1) | (samples == -1)).all())
    dense = samples.shape[-2] * weight.numel()
    return Operations(acs=effective, dense=dense) if spiking else Operations(macs=effective, dense=dense)


def energy(operations: Operations) -> float:
    """Energy of the effective operations in joules: 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate.

    This is a proxy: arithmetic of 32-bit floats in 45 nm CMOS (Horowitz 2014, "Computing's energy problem"). It leaves
    out memory accesses, neuron updates and communication, which often cost more.

    >>> energy(Operations(acs=10, macs=1))
    1.36e-11
    """
    return operations.acs * JOULES_PER_AC + operations.macs * JOULES_PER_MAC
