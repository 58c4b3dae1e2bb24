"""Every kind of layer, bits and scales in Brevitas: spike distance of rounding, M = I and SBC on sequences not seen.

The networks of `digits` are taken apart, so all weights are trained and all inputs are real: "Linear" is the layer
384 -> 64 on the spikes that it receives, "Conv2d" the second convolution, "conv net" the whole network; "recurrent" is
trained here (512-48, spikes fed back by a Linear). All methods round to the same grid, so only the codes differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import tables
from sbc_plugin import Calibration, calibrate
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer
from sbc_plugin.brevitas.grids import read_grid, write
from sbc_plugin.brevitas.layers import is_quantised
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.spikes import van_rossum_distance
from sbc_plugin.demo import digits, network

SEEDS = range(5)
BITS = (2, 3, 4, 8)
METHODS = ("rtn", "obc", "sbc")
GRANULARITIES = ("tensor", "channel", "group")
CALIBRATION, TEST, BATCH = 300, 300, 100
HIDDEN, EPOCHS = 48, 6
TAU_STEPS = 10.0


class Recurrent(nn.Module):
    """512 inputs, 48 neurons whose spikes a Linear feeds back; output: their spikes (T, N, 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_rec = nn.Linear(512, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.neuron = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(network.TAU_MEM_INV)))

    def forward(self, x: Tensor) -> Tensor:
        """The spikes of a whole sequence (T, N, 2, 16, 16), from rest."""
        spikes, state, found = x.new_zeros(x.shape[1], HIDDEN), None, []
        for step in x:
            spikes, state = self.neuron(self.w_in(step.flatten(1)) + self.w_rec(spikes), state)
            found.append(spikes)
        return torch.stack(found)


@dataclass(frozen=True)
class Subject:
    """A network with its data, batches (T, N, ...); ``group`` input channels divide every layer's."""

    name: str
    model: nn.Module
    calibration: list[Tensor]
    test: list[Tensor]
    group: int


def recurrent(seed: int, training: digits.Events) -> nn.Module:
    """Trained to tell digits by the spike counts of its neurons, through a readout that is thrown away."""
    torch.manual_seed(seed)
    model, readout = Recurrent(), nn.Linear(HIDDEN, 10)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= network.GAIN / 2
    optimizer = torch.optim.Adam([*model.parameters(), *readout.parameters()], lr=5e-3)
    for _ in range(EPOCHS):
        for x, labels in training.subset(torch.randperm(len(training))).batches(64):
            loss = functional.cross_entropy(readout(model(x).sum(0)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def subjects(seed: int) -> Iterator[Subject]:
    """The four networks of a seed."""
    data = digits.load()
    sets = [
        [x for x, _ in events.subset(slice(size)).batches(BATCH)]
        for events, size in ((data.calibration, CALIBRATION), (data.test, TEST))
    ]
    whole: Any = network.pretrained(seed)
    modules = list(whole.children())
    before = [SequentialState(*modules[:end]) for end in (5, 2)]
    for name, prefix, model, group in (
        ("Linear", before[0], SequentialState(*modules[5:7]), 32),
        ("Conv2d", before[1], SequentialState(*modules[2:4]), 4),
    ):
        yield Subject(name, model, *([spikes(prefix, x) for x in batches] for batches in sets), group)
    yield Subject("conv net", whole, *sets, 2)
    yield Subject("recurrent", recurrent(seed, data.training), *sets, 16)


def spikes(model: nn.Module, x: Tensor) -> Tensor:
    """Output spikes (T, N, ...) of one batch."""
    with torch.no_grad():
        if isinstance(model, Recurrent):
            return model(x)  # type: ignore[no-any-return]
        found, state = [], None
        for step in x:
            out, state = model(step, state)
            found.append(out)
        return torch.stack(found)


def in_brevitas(subject: Subject, bits: int, granularity: str) -> Any:
    """The network with quantised layers, scales of least squared error of the weights, codes rounded."""
    granularity = f"group:{subject.group}" if granularity == "group" else granularity
    return quantize_layers(subject.model, weight_quantizer(f"int{bits}", granularity))[0]


def solved(model: Any, hessians: dict[str, Tensor]) -> Any:
    """GPTQ on given Hessians: what ``sbc_mode(order="one-shot")`` does, without gathering them for each cell anew."""
    for joint, hessian in hessians.items():
        parts = [model.get_submodule(name) for name in joint.split(" + ")]
        grids = [read_grid(part) for part in parts]
        weights = [part.weight.detach().flatten(1) for part in parts]
        whole = replace(
            grids[0],
            scale=torch.cat([grid.scale for grid in grids], 1),
            zero_point=torch.cat([grid.zero_point for grid in grids], 1),
        )
        new = gptq(torch.cat(weights, 1), LayerHessian(hessian), whole)
        for part, grid, block in zip(parts, grids, new.split([w.shape[1] for w in weights], 1), strict=True):
            write(part, block, grid)
    return model


def by_mode(subject: Subject, model: Any) -> Any:
    """The same by ``sbc_mode`` itself."""
    with torch.no_grad(), sbc_mode(model, order="one-shot") as sbc:
        for x in subject.calibration:
            sbc.model(x)
        for _ in range(sbc.num_layers):
            sbc.update()
    return model


def codes(model: nn.Module) -> Tensor:
    """All integers, one after the other."""
    found = [module.quant_weight() for module in model.modules() if is_quantised(module)]  # type: ignore[operator]
    return torch.cat([weight.int().flatten() for weight in found])


def distance(subject: Subject, dense: list[Tensor], model: nn.Module) -> float:
    """Squared Van Rossum distance on the test batches, relative to that of silence."""
    moved = silent = 0.0
    for before, x in zip(dense, subject.test, strict=True):
        after = spikes(model, x)
        moved += float(van_rossum_distance(before, after, tau=TAU_STEPS, dt=1.0).sum())
        silent += float(van_rossum_distance(before, torch.zeros_like(before), tau=TAU_STEPS, dt=1.0).sum())
    return moved / silent


def lines(seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line a network, bits, granularity, seed and method.

    Raises:
        RuntimeError: ``sbc_mode`` finds other integers.
    """
    for seed in tqdm(seeds, desc="brevitas_grid", unit="seed", leave=False, disable=None):
        for subject in subjects(seed):
            dense = [spikes(subject.model, x) for x in subject.test]
            hessians = {
                method: {
                    name: found.hessian()
                    for name, found in calibrate(
                        subject.model, subject.calibration, calibration=Calibration(temporal=method == "sbc")
                    ).items()
                }
                for method in ("obc", "sbc")
            }
            one = solved(in_brevitas(subject, 3, "channel"), hessians["sbc"])
            if not torch.equal(codes(one), codes(by_mode(subject, in_brevitas(subject, 3, "channel")))):
                raise RuntimeError(f"{subject.name}, seed {seed}: sbc_mode finds other integers than core")
            for bits, granularity, method in product(BITS, GRANULARITIES, METHODS):
                model = in_brevitas(subject, bits, granularity)
                found = distance(subject, dense, solved(model, hessians[method]) if method != "rtn" else model)
                place = {"network": subject.name, "bits": bits, "granularity": granularity}
                yield {"seed": seed, **place, "method": method, "distance": found}


def table(found: list[tables.Line]) -> str:
    """Mean distances of each cell, and in how many seeds SBC is nearer than either baseline."""
    rows = []
    for cell in dict.fromkeys((line["network"], line["bits"], line["granularity"]) for line in found):
        of = {
            method: {
                line["seed"]: line["distance"]
                for line in found
                if (line["network"], line["bits"], line["granularity"], line["method"]) == (*cell, method)
            }
            for method in METHODS
        }
        better = [sum(of["sbc"][seed] < of[other][seed] for seed in of["sbc"]) for other in ("rtn", "obc")]
        means = [tables.spread(list(of[method].values()), 3) for method in METHODS]
        shares = [f"{count} of {len(of['sbc'])}" for count in better]
        rows.append([f"{cell[0]}, {cell[1]} bits", cell[2], *means, *shares])
    averages = [tables.mean([line["distance"] for line in found if line["method"] == method]) for method in METHODS]
    rows.append(["mean of all", "", *(f"{value:.4f}" for value in averages), "", ""])
    heads = ["network", "scale a", "rounding", "M = I", "SBC", "SBC nearer than rounding", "than M = I"]
    return tables.markdown(heads, rows)
