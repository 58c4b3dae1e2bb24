"""What ``inspect`` says before is held against what ``compress`` takes."""

from integration_tests.models.one_shot import compress
from sbc_plugin import Prune, Quantize
from sbc_plugin.demo import digits, network
from sbc_plugin.evaluation.inspection import inspect

FACTOR = 6  # about three are promised, and a machine that others work on may slow down in between


def test_the_time_that_is_told_is_the_time_it_takes() -> None:
    model, data = network.pretrained(seed=0), digits.load().calibration.batches(100)
    told = inspect(model, data)
    _, report = compress(model, data, prune=Prune(0.9), quantize=Quantize(4))
    assert report.seconds / FACTOR < sum(layer.seconds for layer in told.layers) < FACTOR * report.seconds
    assert told.seconds is not None and told.seconds > sum(layer.seconds for layer in told.layers)
    slowest = max(report.layers, key=lambda layer: layer.seconds)
    assert max(told.layers, key=lambda layer: layer.seconds).name == slowest.name
