"""Adam against torch's own optimiser and schedule."""

import math

import torch

from sbc_plugin.core.adam import Adam


def test_steps_are_those_of_torchs_adam_along_a_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2)]
    lengths, steps = [0.3, 0.01], 20
    moved, expected = [each.clone() for each in starts], [each.clone().requires_grad_() for each in starts]
    adam = Adam(moved, lengths, steps)
    optimizer = torch.optim.Adam([{"params": [e], "lr": length} for e, length in zip(expected, lengths, strict=True)])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        gradients = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2)]
        adam.step(gradients)
        for tensor, gradient in zip(expected, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
        schedule.step()
        for found, wanted in zip(moved, expected, strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-9)
    assert all(not torch.equal(found, start) for found, start in zip(moved, starts, strict=True))


def test_what_begins_again_is_a_new_descent_along_the_rest_of_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(12)]
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    moved, expected = [start.clone()], start.clone().requires_grad_()
    adam = Adam(moved, [0.4], steps=12)
    for gradient in gradients[:5]:
        adam.step([gradient])
    adam.begin_again([start], 0.25)
    assert torch.equal(moved[0], start)
    optimizer = torch.optim.Adam([expected], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * (t + 5) / 12)) / 2)
    for gradient in gradients[5:]:
        adam.step([gradient])
        expected.grad = gradient
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(moved[0], expected.detach(), rtol=1e-9, atol=1e-9)
    other = Adam([torch.zeros(5, dtype=torch.float64)], [0.4], steps=12)
    other.restore(adam.state())
    assert (other.taken, other.begun, other.lengths) == (12, 5, [0.1])


def test_a_descent_goes_on_from_its_state_in_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 4, generator=generator) for _ in range(7)]
    whole, parts, other = ([torch.ones(6, 4)] for _ in range(3))
    at_once, first, second = (Adam(moved, [0.1], steps=7) for moved in (whole, parts, other))
    for number, gradient in enumerate(gradients):
        at_once.step([gradient])
        (first if number < 3 else second).step([gradient])
        if number == 2:
            second.restore(first.state())
    assert torch.equal(whole[0], other[0]) and second.taken == 7
