"""What becomes of the models that Norse ships, as they come from the package."""

import copy
import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from integration_tests.norse.norses_models import NorsesModel, models
from integration_tests.strangers.channels import TOLERANCE, difference, masked
from integration_tests.strangers.networks import Stranger
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.errors import CompressionError
from sbc_plugin.nir import trace
from sbc_plugin.norse import default_forward
from sbc_plugin.torch_pruning import get_pruner

HEAD = ["model", "layers at 50 % and 4 bits", "channels", "NIR"]
QUICK = Calibration(tuning=0)
ROUNDED = 1e-5  # of the largest value, of a model that runs in float32 only


def words(shipped: NorsesModel) -> list[str]:
    """The cells of a model's row."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [shipped.name, *(_word(shipped, measured) for measured in (_compressed, _cut, _written))]


def _word(shipped: NorsesModel, measured: Callable[[NorsesModel], str]) -> str:
    try:
        return measured(shipped)
    except CompressionError as error:
        first = re.split(r"; | \(queries", str(error))[0]
        return f"refused: {first[0].lower()}{first[1:]}"


def _run(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        result = default_forward(model, batch)(model, batch)
    return result[0] if isinstance(result, tuple) else result


def _compressed(shipped: NorsesModel) -> str:
    """How many layers are solved, and what is noted of them."""
    settings = {"prune": Prune(0.5), "quantize": Quantize(4), "calibration": QUICK, "progress": False}
    _, report = compress(shipped.model, [shipped.batch], **settings)
    notes = sorted({re.sub(r"[\w.]*\d[\w.]*", "...", reason) for reason in report.skipped.values()})
    return "; ".join([f"all {len(report.layers)}" if not notes else str(len(report.layers)), *notes])


def _cut(shipped: NorsesModel) -> str:
    """Whether the cut network is the dense one with zeros, and what was kept whole for it."""
    dense, model = (copy.deepcopy(shipped.model).to(shipped.dtype) for _ in range(2))
    batch = shipped.batch.to(shipped.dtype)
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) or "readout" in type(module).__name__
    ]
    kept = [model.get_submodule(name) for name in shipped.whole]
    arguments = {"pruning_ratio": 0.3, "ignored_layers": kept + layers[-1:], "calibration_data": [batch]}
    pruner = get_pruner("sbc", model, batch, **arguments)
    pruner.step()
    stranger = Stranger(0, model, batch, None, False, batch, batch, 1, model)
    expected = masked(stranger, dense, pruner.pruning_history()).to(shipped.dtype)
    error = difference(_run(expected, batch), _run(model, batch))
    tolerance = TOLERANCE if shipped.dtype == torch.float64 else ROUNDED
    said = "exact" if error <= tolerance else f"wrong by {error:.1g}"
    return f"{said}; {', '.join(f'`{name}`' for name in shipped.whole)} kept whole" if shipped.whole else said


def _written(shipped: NorsesModel) -> str:
    """Whether the network of the file answers as the model."""
    network = trace(shipped.model, shipped.batch, output=shipped.output)
    return "exact" + f", up to `{shipped.output}`" * bool(shipped.output) if len(network.nodes) else "empty"


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *map(words, models())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
