"""Whole sequences against the same recurrences step by step, differentiated by autograd, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.recurrences import Firing, Parameter, leaky_sum, recurrent_spikes, spikes_of

T, B, N = 12, 3, 5


class Surrogate(torch.autograd.Function):
    """A spike, with the derivative of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.div((1 + x.abs()).square())


def slope(x: Tensor) -> Tensor:
    return 1 / (1 + x.abs()).square()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_neuron(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, N, dtype=torch.float64)


def reset(v: Tensor, z: Tensor, firing: Firing) -> Tensor:
    if firing.reset is None:
        return v - z * firing.threshold
    return (1 - z) * v + z * firing.reset


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * drawn(*output.shape, seed=9)).sum(), inputs)


@pytest.mark.parametrize("decay", [0.7, 1.0, 0.0, per_neuron(0.1, 0.9)])
def test_a_leaky_sum_is_the_recurrence(decay: Parameter) -> None:
    x = drawn(T, B, N).requires_grad_()
    steps, y = [], torch.zeros(B, N, dtype=torch.float64)
    for each in x:
        y = decay * y + each
        steps.append(y)
    expected, found = torch.stack(steps), leaky_sum(x, decay)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradients(found, x), gradients(expected, x), rtol=0, atol=1e-13)


def test_a_leaky_sum_takes_a_gradient_that_is_not_contiguous() -> None:
    x = drawn(T, B, N).requires_grad_()
    (found,) = torch.autograd.grad(leaky_sum(x, 0.5).transpose(0, 1).sum(), x)
    expected = torch.stack([torch.full((B, N), (1 - 0.5 ** (T - t)) / 0.5, dtype=torch.float64) for t in range(T)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decay", [0.8, 1.0, per_neuron(0.5, 0.95)])
@pytest.mark.parametrize(
    "firing",
    [
        Firing(1.0, 0.0, slope),
        Firing(1.0, -0.3, slope),
        Firing(1.0, None, slope),
        Firing(1.0, None, slope, through_reset=False),
        Firing(1.0, 0.2, slope, through_reset=False),
        Firing(per_neuron(0.5, 1.5), per_neuron(-0.5, 0.2), slope),
        Firing(per_neuron(0.5, 1.5), None, slope),
    ],
)
def test_spikes_and_gradients_are_those_of_the_steps(firing: Firing, decay: Parameter) -> None:
    drive, start = (0.3 + drawn(T, B, N)).requires_grad_(), drawn(B, N, seed=1)
    steps, v = [], start
    for each in drive:
        before = decay * v + each
        z = Surrogate.apply(before - firing.threshold)
        v = reset(before, z if firing.through_reset else z.detach(), firing)
        steps.append(z)
    expected, found = torch.stack(steps), spikes_of(drive, decay, start, firing)
    assert torch.equal(found, expected)
    assert 0.05 < float(found.detach().mean()) < 0.6
    torch.testing.assert_close(gradients(found, drive), gradients(expected, drive), rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", [0.0, -0.4])
def test_neurons_that_hear_each_other_are_those_of_the_steps(value: float) -> None:
    firing = Firing(0.6, value, slope, through_reset=False)
    synapse, membrane = 0.6, 0.8
    current, weight = drawn(T, B, N).add(1).requires_grad_(), drawn(N, N, seed=2).requires_grad_()
    start = (drawn(B, N, seed=3), drawn(B, N, seed=4), (drawn(B, N, seed=5) > 0).double())
    steps, (decayed, v, z) = [], start
    for each in current:
        i = decayed + each + z @ weight.t()
        before = membrane * v + (1 - membrane) * i
        z = Surrogate.apply(before - firing.threshold)
        v, decayed = reset(before, z.detach(), firing), synapse * i
        steps.append(z)
    expected, found = torch.stack(steps), recurrent_spikes(current, weight, (synapse, membrane), start, firing)
    assert torch.equal(found, expected)
    assert 0.05 < float(found.detach().mean()) < 0.95
    torch.testing.assert_close(
        gradients(found, current, weight), gradients(expected, current, weight), rtol=1e-12, atol=1e-12
    )


def test_one_step_is_a_sequence_too() -> None:
    firing = Firing(1.0, 0.0, slope)
    drive = torch.tensor([[2.0, 0.5]], requires_grad=True)
    found = spikes_of(drive, 0.5, torch.zeros(2), firing)
    assert found.tolist() == [[1.0, 0.0]]
    (gradient,) = torch.autograd.grad(found.sum(), drive)
    torch.testing.assert_close(gradient, torch.tensor([[0.25, 1 / 2.25]]))
