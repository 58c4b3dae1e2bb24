"""A layer of two weights that feed one current: each is quantised on levels of its own."""

import pytest
import torch
from torch import nn

from sbc_plugin.compression.layer import LayerSettings, solve
from sbc_plugin.core import kernels
from sbc_plugin.core.matrix_form import matrix_form
from sbc_plugin.layers import Part, SpikingLayer
from sbc_plugin.settings import Quantize

ROWS, INPUTS = 5, 6


def joint_layer() -> SpikingLayer:
    """Input weights, and recurrent weights thirty times as large."""
    torch.manual_seed(0)
    modules = {"w_in": nn.Linear(INPUTS, ROWS), "w_rec": nn.Linear(ROWS, ROWS)}
    with torch.no_grad():
        modules["w_rec"].weight *= 30
    parts = tuple(Part(name, module, "weight", matrix_form(module)) for name, module in modules.items())
    variant, gain = torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS, dtype=torch.float64)
    return SpikingLayer("w_in + w_rec", "Linear + Linear", parts, kernels.delta(), variant, gain)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("method", ["sbc", "obc", "rtn", "magnitude"])
def test_each_weight_has_levels_of_its_own(method: str, granularity: str) -> None:
    layer = joint_layer()
    hessian = torch.eye(INPUTS + ROWS, dtype=torch.float64)  # so that no weight makes up for another
    settings = LayerSettings(method, None, Quantize(3, granularity=granularity), damping=0.01)
    weight = layer.weight()
    new = solve(layer, weight, hessian, None, settings).weight
    for before, after in zip(weight.split([INPUTS, ROWS], 1), new.split([INPUTS, ROWS], 1), strict=True):
        for block in after if granularity == "channel" else [after]:
            assert block.abs().unique().numel() <= 4  # 0 to 3 times one scale
        # At a shared scale all input weights would become zero: an error as large as they are.
        assert (before - after).norm() < 0.4 * before.norm()
