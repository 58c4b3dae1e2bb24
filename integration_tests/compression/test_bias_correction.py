"""Alignment: moments after it are the dense network's, measured from outside; what it must not touch stays."""

from collections.abc import Iterator
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.networks import BOX
from integration_tests.models.one_shot import compress
from integration_tests.strangers.test_bad_input import Unchanged
from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin.compression import run as pipeline
from sbc_plugin.norse import default_forward

ALIGNED = Calibration(align=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = norse.SequentialState(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        norse.LIFBoxCell(BOX),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
        norse.LIFBoxCell(BOX),
    ).double()
    norm: Any = model[1]
    with torch.no_grad():
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.05, 0.2)
        norm.weight.fill_(2.0)
        norm.bias.uniform_(0.0, 1.0)
    return model.eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(6, 20, 2, 8, 8, generator=generator) < 0.3).double() for _ in range(3)]


def outputs(model: Any) -> Iterator[Tensor]:
    """(samples, channels) out of the BatchNorm, then out of the Linear layer."""
    found: dict[int, list[Tensor]] = {1: [], 4: []}
    run = default_forward(model, batches()[0])
    handles = [
        model[number].register_forward_hook(lambda _, given, output, into=into: into.append(output.movedim(1, -1)))
        for number, into in found.items()
    ]
    with torch.no_grad():
        for batch in batches():
            run(model, batch)
    for handle in handles:
        handle.remove()
    return (torch.cat([step.flatten(0, -2) for step in steps]) for steps in found.values())


@pytest.mark.parametrize("quantize", [None, Quantize(4)])
def test_moments_are_those_of_the_dense_network(quantize: Quantize | None) -> None:
    dense = network()
    small, _ = compress(dense, batches(), prune=Prune(0.6), quantize=quantize, calibration=ALIGNED)
    plain, _ = compress(dense, batches(), prune=Prune(0.6), quantize=quantize)
    (norm, linear), (wanted, target), (before, _) = map(outputs, (small, dense, plain))
    assert not torch.allclose(before.std(0), wanted.std(0), rtol=1e-2)
    torch.testing.assert_close(norm.mean(0), wanted.mean(0), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(norm.std(0), wanted.std(0), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(linear.mean(0), target.mean(0), rtol=0.0, atol=1e-9)
    for a, b in ((small[0], plain[0]), (small[4], plain[4])):
        assert torch.equal(a.weight, b.weight)


def test_nothing_moves_where_nothing_changed() -> None:
    dense = network()
    small, _ = compress(dense, batches(), prune=Prune(0.0), calibration=ALIGNED)
    for name, tensor in dense.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            torch.testing.assert_close(small.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_channel_without_variance_keeps_its_scale() -> None:
    dense: Any = network()
    with torch.no_grad():
        dense[0].weight[2] = 0.0
    small, _ = compress(dense, batches(), prune=Prune(0.6), calibration=ALIGNED)
    assert torch.equal(small[1].running_var[2], dense[1].running_var[2])
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())


def test_only_the_second_order_methods_are_aligned() -> None:
    dense = network()
    small, _ = compress(dense, batches(), method="magnitude", prune=Prune(0.6), calibration=ALIGNED)
    assert torch.equal(small[1].running_mean, dense[1].running_mean) and torch.equal(small[4].bias, dense[4].bias)


def test_a_failure_after_it_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "tune", fail)
    model = network()
    picture = Unchanged(model)
    with pytest.raises(MemoryError):
        compress(model, batches(), prune=Prune(0.6), calibration=Calibration(align=True, tuning=1), inplace=True)
    picture.check()


def test_an_iterator_serves_all_passes() -> None:
    once, _ = compress(network(), iter(batches()), prune=Prune(0.6), calibration=ALIGNED)
    listed, _ = compress(network(), batches(), prune=Prune(0.6), calibration=ALIGNED)
    assert torch.equal(once[1].running_mean, listed[1].running_mean)
