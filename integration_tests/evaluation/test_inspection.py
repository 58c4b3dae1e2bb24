"""What ``inspect`` says before is held against what ``compress`` does; how near its seconds come is a benchmark."""

from integration_tests.models.one_shot import compress
from sbc_plugin import Prune, Quantize
from sbc_plugin.demo import digits, network
from sbc_plugin.evaluation.inspection import inspect


def test_the_layers_that_are_told_are_those_that_are_compressed() -> None:
    model, data = network.pretrained(seed=0), digits.load().calibration.batches(100)
    told = inspect(model, data)
    _, report = compress(model, data, prune=Prune(0.9), quantize=Quantize(4))
    assert [(layer.name, layer.kind, layer.rows, layer.columns) for layer in told.layers] == [
        (layer.name, layer.kind, layer.rows, layer.columns) for layer in report.layers
    ]
    assert told.skipped == report.skipped
    assert told.seconds is not None and told.seconds > sum(layer.seconds for layer in told.layers) > 0
