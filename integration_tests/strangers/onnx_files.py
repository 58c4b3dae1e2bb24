"""Strangers' networks through Brevitas' layers and an ONNX file: onnxruntime's answers are the model's.

``python -m integration_tests.strangers.onnx_files 500 0`` tries 500 networks from seed 0 on. Where a warning says that
onnxruntime's integer kernels change values, the file runs in a session without them, as the warning says. Runtimes add
floats in another order, so a membrane that meets its threshold to the last bits may spike in one and not in the other:
an answer that differs is right only if weights moved by a millionth change the model's own answer as well.
"""

import copy
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from integration_tests.models.onnx_running import run_steps, run_whole
from integration_tests.strangers.channels import Outcome, count, surroundings
from integration_tests.strangers.compression import same, values_of
from integration_tests.strangers.networks import Stranger, TwoOutputs, network
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.brevitas import Exported, export_onnx
from sbc_plugin.errors import CompressionError

NUDGE, NUDGES = 1e-6, 6  # of each weight; how often
CLOSE = 1e-4  # of answers that are no spikes


def settings(stranger: Stranger) -> dict[str, Any]:
    """Arguments of ``compress`` for a network, drawn from its seed."""
    draw = random.Random(stranger.seed + 5)
    arguments: dict[str, Any] = {
        "method": draw.choice(["sbc", "rtn"]),
        "prune": Prune(0.5) if draw.random() < 0.3 else None,
        "quantize": Quantize(
            draw.randint(2, 8),
            granularity=draw.choice(["channel", "tensor"]),
            scale=draw.choice(["mse", "absmax", "power_of_two"]),
            allocation=draw.choice(["uniform", "uniform", "loss"]),
        ),
        "calibration": Calibration(tuning=0),
        "progress": False,
    }
    return arguments | ({} if stranger.forward is None else {"forward": stranger.forward})


def attempt(seed: int) -> Outcome:
    """Quantise and export the network of a seed, run the file, and judge what comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based ONNX export")
        return _attempt(network(seed, more=True))


def _attempt(stranger: Stranger) -> Outcome:
    model, draw = stranger.model, random.Random(stranger.seed + 6)
    model.float()
    x = stranger.batch.float()
    given = settings(stranger)
    before, values = surroundings(model), values_of(model)
    try:
        plain, _ = compress(copy.deepcopy(model), [x], **given)
        quantised, _ = compress(model, [x], **given, backend="brevitas")
    except CompressionError as error:
        return Outcome("not quantised", str(error))
    except Exception as error:
        return Outcome("raw", f"{type(error).__name__}: {error}")
    if before != surroundings(model) or not same(values, values_of(model)):
        return Outcome("changed", "the model was changed though inplace=False")
    with torch.no_grad():
        expected, own = (stranger.run(each, x) for each in (quantised, plain))
    if not torch.equal(expected, own):
        return Outcome("wrong", "Brevitas' layers answer otherwise than the plain ones")
    example = stranger.native.float()
    still = stranger.batch.dim() == stranger.model.readout.axes + 2  # type: ignore[operator, union-attr]
    length = 1 if still else example.shape[1 - stranger.batch_axis]
    several = isinstance(stranger.model, TwoOutputs)  # of which one step has no file
    steps = None if stranger.steps and not several and draw.random() < 0.5 else length
    before, values = surroundings(quantised), values_of(quantised)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.onnx"
        try:
            exported, said = _exported(quantised, path, example, steps)
        except CompressionError as error:
            untouched = before == surroundings(quantised) and same(values, values_of(quantised)) and not path.exists()
            return Outcome("refused" if untouched else "changed", str(error))
        except Exception as error:
            return Outcome("raw", f"{type(error).__name__}: {error}")
        found = (run_steps if steps is None else run_whole)(exported, example, integer_kernels=not said)
    if before != surroundings(quantised) or not same(values, values_of(quantised)):
        return Outcome("changed", "the model, its modes or the random state are not as before")
    with torch.no_grad():
        expected = _called(stranger, quantised, example)
    outcome = judged(stranger, quantised, example, found, expected)
    return Outcome("right", said) if outcome.kind == "right" else outcome


def _exported(model: nn.Module, path: Path, example: Tensor, steps: int | None) -> tuple[Exported, str]:
    """The file, as a message says where the first call is refused; and the warning that it needs another session."""
    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("always", message="onnxruntime's integer kernels")
        try:
            exported = export_onnx(model, path, example, steps=steps)
        except CompressionError as error:
            if "free_batch=False" not in str(error):
                raise
            exported = export_onnx(model, path, example, steps=steps, free_batch=False)
    return exported, " ".join(str(each.message) for each in said)


def _called(stranger: Stranger, model: nn.Module, example: Tensor) -> Tensor:
    """The model's own answer, with the axes of its own."""
    if stranger.steps:
        return stranger.run(model, example)
    output = model(example)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def judged(stranger: Stranger, model: nn.Module, example: Tensor, found: Tensor, expected: Tensor) -> Outcome:
    if found.shape != expected.shape:
        return Outcome("wrong", f"the file answers with {tuple(found.shape)}, the model with {tuple(expected.shape)}")
    if _close(found, expected):
        return Outcome("right")
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUDGES):
        nudged = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in nudged.named_parameters():
                if "weight_quant" not in name:
                    parameter.mul_(1 + NUDGE * torch.randn(parameter.shape, generator=generator))
            for module in nudged.modules():
                if isinstance(scale := getattr(module, "value", None), Tensor):
                    scale.mul_(1 + NUDGE * torch.randn((), generator=generator))
            if not _close(_called(stranger, nudged, example), expected):
                return Outcome("rounding", "a membrane meets its threshold")
    difference = float((found - expected).abs().max())
    return Outcome("wrong", f"the file answers {difference:.3g} away in {int((found != expected).sum())} values")


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * float(other.abs().max().clamp_min(1.0)))


REPRODUCTION = """\
# {kind}: {reason}
from integration_tests.strangers.networks import network
from integration_tests.strangers.onnx_files import attempt, settings
from sbc_plugin import compress
from sbc_plugin.brevitas import export_onnx
s = network({seed}, more=True)
print(s.description, settings(s))
model, report = compress(s.model.float(), [s.batch.float()], **settings(s), backend="brevitas")
export_onnx(model, "/tmp/a.onnx", s.native.float(), steps=len(s.native))  # or steps=None
print(attempt({seed}))"""


def reproduction(seed: int, outcome: Outcome) -> str:
    """Ten lines that show the fault of a seed."""
    return REPRODUCTION.format(kind=outcome.kind, reason=" ".join(outcome.reason.split())[:300], seed=seed)


if __name__ == "__main__":
    sys.exit(bool(count(attempt, reproduction, *map(int, sys.argv[1:]))))
