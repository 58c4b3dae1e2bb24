"""Every wiring at every length, pruned by SBC: the original with inputs zeroed and compensated, or refused."""

import pytest
import torch
from torch import nn

from integration_tests.models.channel_cases import Kept, masked_original
from integration_tests.models.channel_networks import CASES, Transformer, make
from sbc_plugin import Calibration
from sbc_plugin.errors import CalibrationError
from sbc_plugin.norse import copy_model, default_forward
from sbc_plugin.torch_pruning import get_pruner

SILENT = [("step", 1), ("recurrent", 1)]  # no spike gets through to the last layers in a single step


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    if not isinstance(model, Transformer):
        return {}
    return {model.qkv: 2} if model.fused else {model.query: 2, model.key: 2, model.value: 2}


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("length", [1, 8, 32])
@pytest.mark.parametrize("name", CASES)
def test_pruned_model_is_the_original_with_inputs_zeroed_and_compensated(name: str, length: int, ratio: float) -> None:
    case, model = CASES[name], make(name).double()
    x = case.sequence(length).double()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    original, kept = copy_model(model), Kept(model)
    pruner = get_pruner(
        "sbc",
        model,
        case.example(length).double(),
        calibration_data=[x],
        pruning_ratio=ratio,
        calibration=Calibration(temporal=length > 1),
        num_heads=heads_of(model),
        ignored_layers=[min(linears, key=lambda layer: layer.out_features)],  # the readout
    )
    groups = pruner.step(interactive=True)
    if (name, length) in SILENT:
        with pytest.raises(CalibrationError, match="stayed silent"):
            next(groups)
        return
    for group in groups:
        kept.cut(group)
        group.prune()
    assert kept.inputs
    with torch.no_grad():
        found, expected = (default_forward(one, x)(one, x) for one in (model, masked_original(original, model, kept)))
    # float64 weights, but membranes of parameters in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
