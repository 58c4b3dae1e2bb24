"""Accuracy against counting by hand, and what is said about data without labels."""

from typing import Any

import pytest
import torch
from torch import nn

from sbc_plugin.calibration.batches import labels_of
from sbc_plugin.errors import CalibrationError
from sbc_plugin.evaluation.accuracy import accuracy

X = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])  # sums: 1 3, 0 1, 1 1
LABELS = torch.tensor([1, 0, 0])  # right, wrong, right: of equal outputs the lowest label


def echo(model: nn.Module, batch: Any) -> Any:
    return batch["x"] if isinstance(batch, dict) else batch[0]


def test_the_largest_sum_over_time_is_the_answer() -> None:
    model = nn.Identity()
    assert accuracy(model, [(X, LABELS)], forward=echo) == 2 / 3
    assert accuracy(model, iter([{"x": X, "label": LABELS}, (X[:, :1], [0])]), forward=echo) == 2 / 4
    assert accuracy(model, [(X, LABELS)], forward=lambda model, batch: (batch[0].sum(0), "state")) == 2 / 3


def test_the_model_keeps_its_mode() -> None:
    model = nn.Dropout()
    assert accuracy(model, [(X, LABELS)], forward=lambda model, batch: model(batch[0])) == 2 / 3
    assert model.training


@pytest.mark.parametrize("batch", [X, (X,), (X, LABELS.float()), (X, LABELS[:, None]), {"x": X}])
def test_a_batch_without_labels_is_named(batch: Any) -> None:
    assert labels_of(batch) is None
    with pytest.raises(CalibrationError, match="batch 0 holds no labels"):
        accuracy(nn.Identity(), [batch], forward=echo)


@pytest.mark.parametrize("output", [torch.zeros(3), torch.zeros(2, 4, 5), torch.zeros(2, 2, 3, 3)])
def test_an_output_of_another_shape_is_named(output: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="pass `forward`"):
        accuracy(nn.Identity(), [(X, LABELS)], forward=lambda model, batch: output)
