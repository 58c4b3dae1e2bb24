"""Half of the weights zero and 4 bits for the others: one joint pass against pruning first and quantising afterwards.

What a user of Brevitas can do after pruning is to round, or to run its ``gptq_mode``. That one stops a forward at a
layer's first call, so on a spiking network it sees the first step alone; here it gets, layer by layer, the recorded
inputs of all steps. It pushes errors onto pruned weights, so zeros are lost; "masked again" sets them to zero again.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from brevitas.graph.gptq import gptq_mode
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import Tensor, nn
from tqdm import tqdm

from integration_tests.benchmarks import tables
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer
from sbc_plugin.core.spikes import van_rossum_distance
from sbc_plugin.demo import digits, network
from sbc_plugin.demo.run import ONE_SHOT
from sbc_plugin.norse import default_forward

SEEDS = range(5)
PRUNE, QUANTIZE = Prune(0.5), Quantize(4)
STEPS, SEQUENCES, LATENT = 20, 300, 6
JOINT = "joint"
ALONE = ("SBC pruning alone", "SBC 4 bits alone")


def spikes(seed: int, *shape: int) -> Tensor:
    """Correlated input spikes (STEPS, SEQUENCES, *shape): rates are made from a few latent numbers a sequence."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.Size(shape).numel()
    mixing = torch.randn(LATENT, features, generator=torch.Generator().manual_seed(0))
    rates = torch.sigmoid(torch.randn(SEQUENCES, LATENT, generator=generator) @ mixing - 1.5)
    drawn = torch.rand(STEPS, SEQUENCES, features, generator=generator) < rates
    return drawn.float().reshape(STEPS, SEQUENCES, *shape)


def toy(seed: int, convolution: bool) -> nn.Module:
    """Two weights of random numbers and a readout, each with LIFBox neurons; a third to two thirds spike."""
    neuron = LIFBoxParameters(tau_mem_inv=torch.tensor(network.TAU_MEM_INV))
    layers: list[nn.Module] = [nn.Linear(48, 64, bias=False), nn.Linear(64, 64, bias=False)]
    between: list[nn.Module] = []
    if convolution:
        layers = [nn.Conv2d(2, 8, 3, bias=False), nn.Conv2d(8, 8, 3, stride=2, bias=False)]
        between = [nn.Flatten()]
    readout = nn.Linear(32 if convolution else 64, 10, bias=False)
    generator = torch.Generator().manual_seed(seed)
    for layer in (*layers, readout):
        weight: Any = layer.weight
        size = weight[0].numel()
        weight.data = 6.0 * (torch.randn(weight.shape, generator=generator) + 0.2) / size**0.5
    cells = [LIFBoxCell(neuron) for _ in range(3)]
    made: nn.Module = SequentialState(layers[0], cells[0], layers[1], cells[1], *between, readout, cells[2])
    return made


def cases(seed: int) -> Iterator[tuple[str, nn.Module, list[Tensor], list[Tensor]]]:
    """Name, network, calibration batches and held-out batches."""
    data = digits.load()
    batches = [[x for x, _ in events.batches(100)] for events in (data.calibration, data.test)]
    yield "digits", network.pretrained(seed), batches[0], batches[1]
    for name, shape in (("toy, linear", (48,)), ("toy, convolutions", (2, 7, 7))):
        yield name, toy(seed, len(shape) > 1), [spikes(2 * seed + 1, *shape)], [spikes(2 * seed + 2, *shape)]


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """Output spikes (T, N, neurons)."""
    with torch.no_grad():
        return torch.cat([default_forward(model, x)(model, x) for x in batches], 1)


def rounded(model: nn.Module) -> nn.Module:
    """In Brevitas, scales of least squared error, codes to nearest."""
    return quantize_layers(model, weight_quantizer(f"int{QUANTIZE.bits}"))[0]


def brevitas_gptq(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Brevitas' own GPTQ, each layer on the inputs of all steps that the quantised ones before it send."""
    new = rounded(model)
    for layer in quantised(new):
        inputs: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, given, into=inputs: into.append(given[0]))
        outputs(new, batches)
        handle.remove()
        with torch.no_grad(), gptq_mode(nn.Sequential(layer), use_quant_activations=False, act_order=True) as context:
            for x in inputs:
                context.model(x)
            context.update()
    return new


def our_mode(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """``sbc_mode`` on a pruned model."""
    new = rounded(model)
    with torch.no_grad(), sbc_mode(new, keep_zeros=True) as sbc:
        for _ in range(sbc.num_layers):
            for x in batches:
                sbc.model(x)
            sbc.update()
    return new


def masked_again(model: nn.Module, sparse: nn.Module) -> nn.Module:
    """The pruned weights of ``sparse`` are zero in the quantised model too; changed in place."""
    before = [m for m in sparse.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer, pruned in zip(quantised(model), before, strict=True):
        layer.weight.data.mul_(pruned.weight != 0)
    return model


def quantised(model: nn.Module) -> list[Any]:
    """The Brevitas layers in order."""
    return [module for module in model.modules() if hasattr(module, "quant_weight")]


def pipelines(dense: nn.Module, batches: list[Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Each way to a sparse network of few bits, by name."""

    def small(calibration: Calibration = ONE_SHOT, **settings: Any) -> nn.Module:
        return compress(dense, batches, calibration=calibration, progress=False, **settings)[0]

    for name, method in (("magnitude", "magnitude"), ("SBC pruning", "sbc")):
        sparse = small(method=method, prune=PRUNE)
        if method == "sbc":
            yield ALONE[0], sparse
        yield f"{name}, rounding", rounded(sparse)
        with_gptq = brevitas_gptq(sparse, batches)
        yield f"{name}, gptq_mode", with_gptq
        yield f"{name}, gptq_mode, masked again", masked_again(with_gptq, sparse)
        yield f"{name}, sbc_mode(keep_zeros=True)", our_mode(sparse, batches)
    yield ALONE[1], small(quantize=QUANTIZE)
    yield JOINT, small(prune=PRUNE, quantize=QUANTIZE)
    sequential = replace(ONE_SHOT, order="sequential")
    yield f"{JOINT}, sequential", small(prune=PRUNE, quantize=QUANTIZE, calibration=sequential)


def zeros(model: nn.Module) -> float:
    """The fraction of weights that are zero, in Brevitas' layers of those that they compute with."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = [layer.quant_weight().value if hasattr(layer, "quant_weight") else layer.weight for layer in layers]
    return float((torch.cat([weight.detach().flatten() for weight in weights]) == 0).double().mean())


def lines(seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line for each seed, network and pipeline: squared Van Rossum distance of held-out output spikes, relative."""
    for seed in tqdm(seeds, desc="joint", unit="seed", leave=False, disable=None):
        for name, dense, known, held_out in cases(seed):
            wanted = outputs(dense, held_out)
            silence = van_rossum_distance(wanted, torch.zeros_like(wanted), tau=10.0, dt=1.0).sum()
            for method, model in pipelines(dense, known):
                found = outputs(model, held_out)
                difference = van_rossum_distance(wanted, found, tau=10.0, dt=1.0).sum()
                yield {
                    "seed": seed,
                    "network": name,
                    "method": method,
                    "zeros": zeros(model),
                    "distance": float(difference / silence),
                }


def table(found: list[dict[str, Any]]) -> str:
    """Distance of each pipeline, and the joint pass's as a fraction of it on the same network."""
    rows = []
    for name in dict.fromkeys(line["network"] for line in found):
        chosen = [line for line in found if line["network"] == name]
        joint = {line["seed"]: line["distance"] for line in chosen if line["method"] == JOINT}
        for method in dict.fromkeys(line["method"] for line in chosen):
            mine = [line for line in chosen if line["method"] == method]
            ratios = [joint[line["seed"]] / line["distance"] for line in mine]
            rows.append(
                [
                    name,
                    method,
                    f"{100 * tables.mean([line['zeros'] for line in mine]):.1f}",
                    tables.spread([line["distance"] for line in mine], 4),
                    "" if method == JOINT else tables.spread(ratios, 2),
                ]
            )
    return tables.markdown(["network", "pipeline", "zeros, %", "output error", "joint / this"], rows)
