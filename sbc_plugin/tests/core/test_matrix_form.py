"""``Y = W X`` against what torch's own layers answer."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from sbc_plugin.core.matrix_form import Convolution, Pooling, matrix_form, unfold
from sbc_plugin.errors import CalibrationError, UnsupportedModelError

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
SIZES = {1: (11,), 2: (8, 9), 3: (6, 7, 5)}


def same(found: Tensor, expected: Tensor) -> None:
    # sums of at most a hundred products of order 1 in float64
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def product(module: nn.Linear | Convolution, x: Tensor, pooling: Pooling | None = None) -> Tensor:
    """(rows, samples) by the matrix form, from weight and samples of each group."""
    form = matrix_form(module)
    weight, samples = module.weight.detach().flatten(1), form.samples(x, pooling)
    assert weight.shape == (form.rows, form.columns)
    weight = weight.reshape(form.groups, -1, form.columns)
    return (weight @ samples.mT).flatten(0, 1)


def answer(y: Tensor) -> Tensor:
    """(rows, samples) of a layer's output (batch, rows, *space)."""
    return y.transpose(0, 1).flatten(1).detach()


def check(axes: int, channels: tuple[int, int] = (4, 6), **settings: Any) -> None:
    module = CONV[axes](*channels, bias=False, dtype=torch.float64, **settings)
    x = torch.randn(2, channels[0], *SIZES[axes], dtype=torch.float64)
    same(product(module, x), answer(module(x)))


GRID = list(
    itertools.product(
        (1, 2, 3),
        (1, 2),
        (0, 1, 2, "same", "valid"),
        ("zeros", "reflect", "replicate", "circular"),
        (1, 2),
    )
)


@pytest.mark.parametrize(
    ("axes", "stride", "padding", "mode", "dilation"),
    [case for case in GRID if not (case[2] == "same" and case[1] > 1)],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_convolutions_of_every_setting(axes: int, stride: int, padding: Any, mode: str, dilation: int) -> None:
    for size in (2, 3):
        check(axes, kernel_size=size, stride=stride, padding=padding, padding_mode=mode, dilation=dilation)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("channels", "groups"), [((4, 6), 2), ((4, 4), 4), ((4, 8), 4), ((6, 3), 3)])
def test_grouped_and_depthwise_convolutions(axes: int, channels: tuple[int, int], groups: int) -> None:
    check(axes, channels, kernel_size=3, groups=groups, padding=1, stride=2)


def test_settings_that_differ_by_axis() -> None:
    check(2, kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 3))
    check(2, kernel_size=(1, 4), padding="same", dilation=(2, 1))
    check(3, kernel_size=(1, 2, 3), stride=(3, 1, 2), padding=(2, 0, 1), padding_mode="circular")
    check(3, kernel_size=(2, 3, 1), padding="same", padding_mode="replicate")


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4), (4,)])
def test_linear_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    module, x = nn.Linear(4, 3, bias=False, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    same(product(module, x), module(x).reshape(-1, 3).T.detach())


def test_a_convolution_takes_one_sequence_without_a_batch_axis() -> None:
    module, x = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    same(product(module, x), answer(module(x)[None]))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}, {"kernel_size": 2, "ceil_mode": True}],
    ids=["2", "3, overlapping", "ceil"],
)
def test_pooling_the_samples_is_pooling_the_output(axes: int, groups: int, settings: dict[str, Any]) -> None:
    module = CONV[axes](4, 6, 3, bias=False, padding=1, groups=groups, dtype=torch.float64)
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    pooled = AVERAGE[axes](module(x), **settings)
    same(product(module, x, lambda y: AVERAGE[axes](y, **settings)), answer(pooled))


def test_columns_are_ordered_as_the_flattened_weight() -> None:
    module = nn.Conv2d(2, 1, 2, bias=False)
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert matrix_form(module).samples(x).flatten().tolist() == x.flatten().tolist()


def test_positions_count_the_kernel() -> None:
    assert [matrix_form(m).positions for m in (nn.Linear(3, 2), nn.Conv2d(2, 2, 3), nn.Conv3d(1, 1, 2))] == [1, 9, 8]


@pytest.mark.parametrize("module", [nn.LSTM(2, 2), nn.Embedding(4, 2), nn.Bilinear(2, 2, 2)])
def test_other_layers_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{type(module).__name__} has no matrix form; only Linear"):
        matrix_form(module)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 8), r"shape \(1, 3, 8, 8\), the layer takes \(batch, 4, 2 spatial axes\)"),
        ((4, 8), r"shape \(4, 8\)"),
        ((1, 1, 4, 8, 8), r"2 spatial axes"),
        ((1, 4, 2, 8), r"input of 2 positions is smaller than a kernel of 3"),
    ],
)
def test_inputs_that_do_not_fit_a_convolution(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        unfold(torch.zeros(shape), nn.Conv2d(4, 4, 3))


def test_inputs_that_do_not_fit_a_linear_layer() -> None:
    with pytest.raises(CalibrationError, match="input has 5 features, the layer takes 4"):
        matrix_form(nn.Linear(4, 2)).samples(torch.zeros(3, 5))
