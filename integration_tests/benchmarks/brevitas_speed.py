"""How long one ``update()`` takes in Brevitas: our mode and Brevitas' own, on one layer, quantizer and Hessian."""

import time
from collections.abc import Iterator
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.graph.gptq import gptq_mode
from torch import Tensor, nn

from integration_tests.benchmarks.tables import Line
from sbc_plugin.brevitas import SBCInt4WeightPerChannelFloat, sbc_mode

CHANNELS = (128, 256)
DAMPING = 0.01  # Brevitas' own, which its update() does not let one choose
BATCHES, BATCH, SIZE = 4, 8, 16


def network(seed: int, channels: tuple[int, int] = CHANNELS, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One QuantConv2d 3 x 3, its quantizer initialised, for Brevitas' mode does not do so."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        qnn.QuantConv2d(*channels, 3, padding=1, bias=False, weight_quant=SBCInt4WeightPerChannelFloat)
    )
    model.to(dtype)[0].quant_weight()
    return model.eval()


def spikes(seed: int, channels: int = CHANNELS[0]) -> list[Tensor]:
    """Batches of spikes; channels fire at different rates, as hidden layers do, and none is silent."""
    generator = torch.Generator().manual_seed(seed)
    rates = 0.02 + 0.3 * torch.rand(channels, 1, 1, generator=generator)
    shape = (BATCH, channels, SIZE, SIZE)
    return [(torch.rand(shape, generator=generator) < rates).float() for _ in range(BATCHES)]


def timed(mode: Any, data: list[Tensor], hessian: Tensor | None = None) -> float:
    """Seconds of the one update; with ``hessian`` Brevitas' own is replaced by it before."""
    with torch.no_grad(), mode as entered:
        for x in data:
            entered.model(x)
        if hessian is not None:
            entered.gpxq_layers["0"].H = hessian.clone()
        started = time.perf_counter()
        entered.update()
        return time.perf_counter() - started


def hessian_of(data: list[Tensor]) -> Tensor:
    """``2 X^T X / count`` (1, columns, columns) in the data's type; sums of spikes are exact."""
    x = torch.cat([nn.functional.unfold(batch, 3, padding=1).mT.flatten(0, 1) for batch in data])
    return (x.mT @ x)[None] * (2 / len(x))


def lines(seeds: int = 3, channels: tuple[int, int] = CHANNELS) -> Iterator[Line]:
    """One line a method, seed and type: seconds, and the share of codes that differ from Brevitas' own loop."""
    for seed in range(seeds):
        for dtype in (torch.float32, torch.float64):
            data = [x.to(dtype) for x in spikes(seed, channels[0])]
            codes: dict[str, Tensor] = {}
            for method in ("gptq_mode", "sbc_mode"):
                model: Any = network(seed, channels, dtype)
                if method == "gptq_mode":
                    seconds = timed(gptq_mode(model, dtype=dtype), data, hessian_of(data))
                else:
                    seconds = timed(sbc_mode(model, damping=DAMPING, act_order=False, dtype=dtype), data)
                codes[method] = model[0].quant_weight().int()
                differ = float((codes[method] != codes["gptq_mode"]).double().mean())
                kind = str(dtype).removeprefix("torch.")
                yield {"method": method, "seed": seed, "dtype": kind, "seconds": seconds, "differ": differ}


def table(lines: list[Line]) -> str:
    """Seconds of both, their ratio in each run, and how many codes differ."""
    rows = ["| type | seed | gptq_mode, s | sbc_mode, s | faster by | codes that differ |", "|---|---|---|---|---|---|"]
    for dtype, seed in sorted({(line["dtype"], line["seed"]) for line in lines}):
        of = {line["method"]: line for line in lines if (line["dtype"], line["seed"]) == (dtype, seed)}
        theirs, ours = of["gptq_mode"]["seconds"], of["sbc_mode"]["seconds"]
        ratio, differ = f"{theirs / ours:.1f}", f"{of['sbc_mode']['differ']:.3%}"
        rows.append(f"| {dtype} | {seed} | {theirs:.2f} | {ours:.2f} | {ratio} | {differ} |")
    return "\n".join(rows)
