"""torch-pruning alone: plain networks are pruned where norse, nir and nirtorch are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

PROLOGUE = """
import sys
for name in ("norse", "nir", "nirtorch"):
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError

import torch
from torch import nn
from sbc_plugin.torch_pruning import audit, exact_tracing, get_pruner, load_pruned, save_pruned

def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 3)).eval()

model, x = network(), torch.rand(32, 2, 8, 8)
assert audit(model, x).ok
"""

SCRIPTS = {
    "sbc": """
pruner = get_pruner("sbc", model, x, calibration_data=[x], ignored_layers=[model[6]], reestimate=True)
pruner.step()
assert (model[0].out_channels, model[3].out_channels, model[6].in_features) == (4, 3, 48)
assert audit(model, x).ok
save_pruned(sys.argv[1], model, pruner.pruning_history())
assert torch.equal(load_pruned(sys.argv[1], network(), x)(x), model(x))
""",
    "the host's own pruners, and single weights": """
get_pruner("l1", model, x, pruning_ratio=0.5, ignored_layers=[model[6]]).step()
assert (model[0].out_channels, model[3].out_channels, model[6].in_features) == (4, 3, 48)
assert audit(model, x).ok and model(x).shape == (32, 3)

import torch_pruning
from sbc_plugin.torch_pruning import SBCImportance
model = network()
with exact_tracing(model):
    pruner = torch_pruning.MagnitudePruner(model, x, SBCImportance([x]), pruning_ratio=0.5, ignored_layers=[model[6]])
pruner.step()
assert model[0].out_channels == 4 and model(x).shape == (32, 3)

model = network()
pruner = get_pruner("sbc", model, x, calibration_data=[x], pattern="2:4")
pruner.step()
assert pruner.sparsity == 0.5 and (model[6].weight == 0).sum() == 144
""",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_plain_networks_need_no_spiking_library(what: str, tmp_path: Path) -> None:
    script = PROLOGUE + SCRIPTS[what]
    arguments = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "small.safetensors")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
