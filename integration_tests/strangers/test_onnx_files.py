"""Strangers' networks in ONNX files answer as the model, or are refused with the reason."""

import pytest
import torch
from torch import nn

pytest.importorskip("brevitas.nn")
pytest.importorskip("onnxruntime")

from integration_tests.strangers.networks import network
from integration_tests.strangers.onnx_files import attempt, judged, reproduction

SEEDS = range(10)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 5))
def test_strangers_are_exported_right_or_refused(first: int) -> None:
    outcomes = {seed: attempt(seed) for seed in SEEDS[first : first + 5]}
    wrong = [reproduction(seed, outcome) for seed, outcome in outcomes.items() if outcome.is_fault]
    assert not wrong, "\n\n".join(wrong)
    assert sum(outcome.kind == "right" for outcome in outcomes.values()) >= 3


def test_an_answer_of_another_model_is_no_rounding() -> None:
    """Of a network whose answers no millionth changes, another answer is wrong."""
    stranger = network(3)
    model: nn.Module = stranger.model.float()
    example = stranger.native.float()
    with torch.no_grad():
        expected = stranger.run(model, stranger.batch.float())
    assert judged(stranger, model, example, expected, expected).kind == "right"
    assert judged(stranger, model, example, expected + 1, expected).kind == "wrong"
    assert judged(stranger, model, example, expected[:1], expected).kind == "wrong"
