"""Saccade events: against a slow camera written pixel by pixel, and against what physics demands."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.demo.saccades import TOLERANCE, saccade_events, saccade_path, shifted
from sbc_plugin.errors import SettingsError


def slow_camera(image: list[list[float]], steps: int, threshold: float, amplitude: float, dark: float) -> Tensor:
    """One image, pixel after pixel, step after step, in Python floats. (steps, 2, H, W)."""
    height, width = len(image), len(image[0])

    def intensity(row: float, column: float) -> float:
        row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
        r, c = int(row), int(column)
        below, right = min(r + 1, height - 1), min(c + 1, width - 1)
        upper = image[r][c] + (column - c) * (image[r][right] - image[r][c])
        lower = image[below][c] + (column - c) * (image[below][right] - image[below][c])
        return upper + (row - r) * (lower - upper)

    def position(time: float) -> tuple[float, float]:  # time runs from 0 to 3, one saccade a unit
        a = amplitude
        if time <= 1:
            return a * time, a * time
        if time <= 2:
            return a, a - 2 * a * (time - 1)
        return a * (3 - time), -a * (3 - time)

    events = torch.zeros(steps, 2, height, width, dtype=torch.uint8)
    for row in range(height):
        for column in range(width):
            reference = math.log(intensity(row, column) + dark)
            for step in range(steps):
                down, right = position(3 * (step + 1) / steps)
                change = math.log(intensity(row - down, column - right) + dark) - reference
                while abs(change) >= threshold * (1 - TOLERANCE):
                    sign = 1 if change > 0 else -1
                    events[step, 0 if sign > 0 else 1, row, column] = 1
                    reference += sign * threshold
                    change -= sign * threshold
    return events


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_equals_a_camera_written_pixel_by_pixel(steps: int) -> None:
    images = torch.rand(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))
    events = saccade_events(images, steps=steps, threshold=0.31, amplitude=1.7, dark=0.1)
    for image, found in zip(images, events.unbind(1), strict=True):
        # exact: random intensities do not come within rounding (1e-15) of the tolerance
        assert torch.equal(found, slow_camera(image.tolist(), steps, 0.31, 1.7, 0.1))
    assert events.dtype == torch.uint8 and 0 < events.sum() < events.numel()


def test_no_motion_or_no_contrast_gives_no_events() -> None:
    image = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert saccade_events(image, amplitude=0.0).sum() == 0
    assert saccade_events(torch.full((2, 8, 8), 0.7)).sum() == 0


def test_a_bright_bar_that_moves_fires_on_ahead_and_off_behind() -> None:
    image = torch.zeros(1, 7, 9)
    image[0, :, 4] = 1.0
    events = saccade_events(image, steps=3, amplitude=1.0)[0, 0]  # the first saccade: one pixel down, one to the right
    on, off = events
    assert on[:, 5].all() and on.sum() == 7
    assert off[:, 4].all() and off.sum() == 7


def test_opposite_contrast_swaps_the_channels() -> None:
    # two intensities and whole-pixel steps: interpolation would mix intensities before the logarithm, which is not odd
    image = (torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    events = saccade_events(image, steps=6, amplitude=2.0)
    assert events.sum() > 0
    assert torch.equal(saccade_events(1 - image, steps=6, amplitude=2.0), events.flip(2))


def test_what_is_left_of_a_change_counts_towards_the_next_event() -> None:
    # log intensity rises by 0.6 thresholds a pixel: 0.6, 1.2 (an event, 0.2 left), 1.8 (0.8), 2.4 (an event)
    ramp = torch.exp(-0.6 * torch.arange(12.0, dtype=torch.float64)).expand(1, 3, 12) - 1e-9
    events = saccade_events(ramp, steps=12, threshold=1.0, amplitude=4.0, dark=1e-9)
    assert events[:4, 0, 0, 1, 6].tolist() == [0, 1, 0, 1]


def test_path_is_a_closed_triangle() -> None:
    path = saccade_path(steps=30, amplitude=2.0)
    assert path[[0, 10, 20, 30]].tolist() == [[0.0, 0.0], [2.0, 2.0], [2.0, -2.0], [0.0, 0.0]]
    steps = path.diff(dim=0).reshape(3, 10, 2)
    assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-12, atol=1e-15)  # straight and even, up to rounding


def test_whole_pixels_are_moved_exactly() -> None:
    image = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(2))
    moved = shifted(image, rows=2.0, columns=-1.0)
    assert torch.equal(moved[:, 2:, :-1], image[:, :-2, 1:])
    assert torch.equal(moved[:, :2, :-1], image[:, :1, 1:].expand(2, 2, 5))  # the border repeats


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"threshold": 0.0}, {"dark": -1.0}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))}=.*positive"):
        saccade_events(torch.zeros(1, 4, 4), **wrong)  # type: ignore[arg-type]


def test_a_missing_batch_axis_is_named() -> None:
    with pytest.raises(SettingsError, match=r"shape \(4, 4\), expected \(N, H, W\)"):
        saccade_events(torch.zeros(4, 4))
