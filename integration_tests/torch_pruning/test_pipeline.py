"""torch-pruning's script runs on a spiking and on a plain network with every method that it can be asked for."""

import argparse
import warnings

import pytest

from integration_tests.torch_pruning import pipeline
from sbc_plugin.demo import digits

METHODS = ["sbc", "l1", "lamp", "group_norm", "random"]


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    """A corner of the digits, a few steps long."""
    whole = digits.load(steps=10)
    return digits.Digits(
        whole.training.subset(slice(0, 64)), whole.calibration.subset(slice(0, 32)), whole.test.subset(slice(0, 64))
    )


@pytest.mark.parametrize("model", ["spiking", "plain"])
@pytest.mark.parametrize("method", METHODS)
def test_the_pipeline_reaches_its_speed_up(method: str, model: str, data: digits.Digits) -> None:
    words = f"--method {method} --model {model} --speed-up 2 --iterative-steps 5 --epochs 1 --finetune 1"
    words += " --restore" if model == "spiking" else ""
    arguments: argparse.Namespace = pipeline.parser().parse_args(words.split())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pipeline.run(arguments, data)
    assert found["speed_up"] >= 2
    assert all(0 <= found[name] <= 1 for name in ("dense", "pruned", "finetuned"))
