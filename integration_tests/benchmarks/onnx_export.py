"""Exported ONNX files against the model in PyTorch: output spikes that differ over 1,000 sequences, and file sizes."""

import tempfile
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.tables import Line
from integration_tests.models.onnx_running import run_qonnx, run_steps, run_whole
from sbc_plugin import Quantize, compress
from sbc_plugin.brevitas import export_onnx
from sbc_plugin.demo import digits, network
from sbc_plugin.demo.run import ONE_SHOT

SEQUENCES, CALIBRATED, SHOWN = 1000, 100, 4
KEYS = ("network", "neuron", "bits", "scale")
OTHER_BATCH = 100  # sums in another order than with all sequences at once
BOX = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(network.TAU_MEM_INV))
LIF = norse.LIFParameters(tau_mem_inv=torch.tensor(network.TAU_MEM_INV), tau_syn_inv=torch.tensor(500.0))


def conv(neuron: str, seed: int) -> nn.Module:
    """The demo's trained network; with LIF neurons its weights are halved, for their current lasts two steps."""
    model = network.pretrained(seed)
    if neuron == "LIF":
        for index in (1, 3, 6, 8):
            model[index] = norse.LIFCell(LIF)
        for weight in model.parameters():
            weight.data.mul_(0.5)
    return model


def linear(neuron: str, seed: int) -> nn.Module:
    """512-64-10 with random weights and biases, large enough to spike."""
    torch.manual_seed(seed)
    first, second = nn.Linear(512, 64), nn.Linear(64, 10)
    cells = (norse.LIFCell(LIF), norse.LIFCell(LIF)) if neuron == "LIF" else (norse.LIFBoxCell(BOX),) * 2
    with torch.no_grad():
        for weight in (first.weight, second.weight):
            weight.copy_(8 * torch.randn_like(weight) / weight.shape[1] ** 0.5)
    return norse.SequentialState(nn.Flatten(), first, cells[0], second, cells[1])


NETWORKS = {"conv": conv, "linear": linear}


def spikes_of(model: nn.Module, x: Tensor, batch: int) -> Tensor:
    """Output of all sequences (T, N, ...), ``batch`` of them at a time."""
    parts = []
    for part in x.split(batch, 1):
        outputs, state = [], None
        with torch.no_grad():
            for step in part:
                output, state = model(step, state)
                outputs.append(output)
        parts.append(torch.stack(outputs))
    return torch.cat(parts, 1)


def lines(seeds: int = 3, sequences: int = SEQUENCES) -> Iterator[Line]:
    """One line a network, neuron, bits, scale, seed and form."""
    data = digits.load()
    x = torch.cat([data.test.x, data.training.x[:, CALIBRATED:]], 1)[:, :sequences].float()
    calibration_data = data.calibration.batches(CALIBRATED)[:1]
    for seed, neuron, (name, build) in product(range(seeds), ("LIFBox", "LIF"), NETWORKS.items()):
        model = build(neuron, seed)
        floats = 4 * sum(parameter.numel() for parameter in model.parameters())
        for bits, scale in product((4, 8), ("power_of_two", "mse")):
            quantize = Quantize(bits, scale=scale)
            small, _ = compress(
                model, calibration_data, quantize=quantize, calibration=ONE_SHOT, backend="brevitas", progress=False
            )
            settings = {"network": name, "neuron": neuron, "bits": bits, "scale": scale, "seed": seed}
            for line in compared(small, x, qonnx=bits == 4):
                yield settings | line | {"float_bytes": floats}


def compared(model: nn.Module, x: Tensor, qonnx: bool) -> Iterator[dict[str, Any]]:
    """Each form's count of output spikes that differ, and PyTorch's own when it sums in another order."""
    expected = spikes_of(model, x, x.shape[1])
    sent = {"spikes": int(expected.sum()), "values": expected.numel()}
    again = spikes_of(model, x, OTHER_BATCH)
    yield sent | {"form": f"PyTorch, batches of {OTHER_BATCH}", "differ": int((again != expected).sum())}
    forms: dict[str, Any] = {"one step": (run_steps, None, "qcdq"), "unrolled": (run_whole, len(x), "qcdq")}
    if qonnx:
        forms["QONNX, one step"] = (run_qonnx, None, "qonnx")
    for form, (run, steps, kind) in forms.items():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = x if kind == "qonnx" else x[:, :SHOWN]
            exported = export_onnx(model, Path(folder) / "model.onnx", example, kind=kind, steps=steps)
            differ = int((run(exported, x) != expected).sum())
            yield sent | {"form": form, "differ": differ, "bytes": exported.path.stat().st_size}


def table(lines: list[Line]) -> str:
    """A row a network, neuron, bits and scale: output spikes and, by form, those that differ, summed over seeds."""
    forms = list(dict.fromkeys(line["form"] for line in lines))
    files = [form for form in forms if any("bytes" in line for line in lines if line["form"] == form)]
    heads = [*KEYS, "output spikes", *(f"{form}: differ" for form in forms), *(f"{form}: kB" for form in files)]
    rows = []
    for place in sorted({tuple(line[key] for key in KEYS) for line in lines}):
        mine = [line for line in lines if tuple(line[key] for key in KEYS) == place]
        of = {form: [line for line in mine if line["form"] == form] for form in forms}
        sent = sum(line["spikes"] for line in of[forms[0]])
        differ = [sum(line["differ"] for line in of[form]) if of[form] else "" for form in forms]
        sizes = [f"{of[form][0]['bytes'] / 1000:.1f}" if of[form] else "" for form in files]
        rows.append([*map(str, place), f"{sent:,}", *map(str, differ), *sizes, f"{mine[0]['float_bytes'] / 1000:.1f}"])
    return tables.markdown([*heads, "float32 weights: kB"], rows)
