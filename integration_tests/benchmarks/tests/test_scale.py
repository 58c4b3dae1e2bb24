"""The case `scale` on networks of its kinds that are small enough for a test."""

from functools import partial

import pytest
import torch

from integration_tests.benchmarks import scale
from integration_tests.benchmarks.networks.large import LARGE, Large, large_sew_resnet, large_transformer

SMALL = {
    "basic": Large(partial(large_sew_resnet, (1, 1), False, 8), 32),
    "bottleneck": Large(partial(large_sew_resnet, (1, 1), True, 8), 32),
    "transformer": Large(partial(large_transformer, 16, 1), 32),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_stage_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGE, name, SMALL[name])
    monkeypatch.setattr(scale, "CHANNELS", ("basic",))
    found = list(scale.lines(scale=scale.Scale((name,), images=4, apart=name == "transformer")))
    ways = [*scale.WAYS, *(["half of the channels"] if name == "basic" else [])]
    assert [line["method"] for line in found] == ways
    for line in found[: len(scale.WAYS)]:
        assert -0.001 < line["sparsity"] - scale.PRUNE.sparsity < 0.03 and line["file"] > 0
        assert line["solving seconds"] <= line["seconds"]
    table = scale.table(found)
    assert table.count("\n") == 1 + len(found) and name in table


def test_the_networks_have_the_sizes_that_are_told_and_fire() -> None:
    sizes = {"SEW-ResNet18": 11.7e6, "SEW-ResNet50": 25.6e6, "SEW-ResNet152": 60.2e6}
    for name, size in sizes.items():
        with torch.device("meta"):
            network = LARGE[name].build()
        assert abs(sum(parameter.numel() for parameter in network.parameters()) / size - 1) < 0.01
    small = SMALL["basic"]
    rates: list[float] = []
    network = small.network(0)
    for module in network.modules():
        if type(module).__name__ == "Spiking":
            module.register_forward_hook(lambda module, given, spikes: rates.append(float(spikes.mean())))
    with torch.no_grad():
        network(small.images(2, 2, 1)[0])
    assert rates and min(rates) > 0.02 and max(rates) < 0.4
