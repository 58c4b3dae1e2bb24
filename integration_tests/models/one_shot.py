"""``compress`` by its solvers alone, for tests of them: what a call leaves open about tuning is 0 here."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

import sbc_plugin
from sbc_plugin import Calibration, Report

ONE_SHOT = Calibration(tuning=0)


def compress(
    model: nn.Module, data: Iterable[Any], *, calibration: Calibration = ONE_SHOT, **settings: Any
) -> tuple[nn.Module, Report]:
    """As :func:`sbc_plugin.compress`, not tuned unless ``calibration`` says how much."""
    calibration = replace(calibration, tuning=calibration.tuning or 0)
    return sbc_plugin.compress(model, data, calibration=calibration, **settings)
