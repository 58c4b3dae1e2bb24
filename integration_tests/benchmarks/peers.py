"""Our solvers and those of others, each written from its paper, on the same Hessians.

All run in one process on the same weight and Hessian, damped by 1 % of its mean diagonal. Where a solver only finds a
mask, seconds hold an exact refit. Seconds are of the processor; in brackets are those on the clock. The loss is
relative to that of removing the whole layer. 2,312 columns are those of `solver_speed`; the others are correlated
spikes that a leaky membrane filters, with random weights. A solver that would take more than two minutes is stopped,
and so written. Brevitas' rounding loop and ours are compared in `brevitas_speed`.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from integration_tests.benchmarks import peer_solvers, solver_speed, tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.peer_solvers import LIMIT, Budget
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin import calibrate
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.prune import prune
from sbc_plugin.core.pruning.refit import refit

BUDGETS = {"80 % sparse": 0.8, "97 % sparse": 0.97, "2:4": 0.5}
REAL = 2312
# (columns, rows, samples for each column, threads): all over columns, and the others varied at 1,024 columns
CELLS = [
    (256, 64, 4, 1),
    (1024, 64, 4, 1),
    (REAL, 64, 4, 1),
    (1024, 64, 0.25, 1),
    (1024, 512, 4, 1),
    (1024, 64, 4, 2),
    (4608, 64, 0.25, 1),
    (9216, 64, 0.25, 1),
    (16384, 64, 0.25, 1),
    (REAL, 500, 4, 1),
]
STEPS, LATENT, DECAY, DRIFT = 32, 32, 0.9, 0.9  # of a sequence; causes that spikes share; of the membrane, of causes
MANY = 1024  # columns from which on time is foretold
CHUNK = 4096  # samples that are made at once


def spikes(columns: int, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Samples (n, columns): spikes at rates that follow a few drifting causes, filtered by a leaky membrane."""
    mix = 1.5 * torch.randn(LATENT, columns, generator=generator) / math.sqrt(LATENT)
    base = torch.randn(columns, generator=generator) - 3
    for first in range(0, samples, CHUNK):
        count = min(CHUNK, samples - first)
        sequences = -(-count // STEPS)
        cause = torch.randn(sequences, LATENT, generator=generator)
        membrane, found = torch.zeros(sequences, columns), []
        for _ in range(STEPS):
            fresh = torch.randn(sequences, LATENT, generator=generator)
            cause = DRIFT * cause + math.sqrt(1 - DRIFT**2) * fresh
            fires = torch.rand(sequences, columns, generator=generator) < torch.sigmoid(cause @ mix + base)
            membrane = DECAY * membrane + fires
            found.append(membrane)
        yield torch.cat(found)[:count]


@cache
def _real() -> tuple[Tensor, Tensor]:
    x, labels = solver_speed.events()
    network: Any = solver_speed.trained(x, labels)
    found: Any = calibrate(network, [x])
    return network[0].weight.detach(), found["0"].hessian()


def layer(columns: int, rows: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Weight (rows, columns) and Hessian (columns, columns) of a cell."""
    if columns == REAL:
        weight, hessian = _real()
        return weight[:rows], hessian
    generator = torch.Generator().manual_seed(columns)
    accumulator = HessianAccumulator(columns)
    for samples in spikes(columns, round(ratio * columns), generator):
        accumulator.add(samples)
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns), accumulator.hessian()


def _ours(weight: Tensor, hessian: LayerHessian, budget: Budget, solver: str) -> Tensor:
    return prune(
        weight, hessian, budget.zeros, solver=solver, pattern="2:4" if budget.two_of_four else "unstructured"
    ).weight


def _posed(weight: Tensor, hessian: LayerHessian) -> tuple[Tensor, Tensor]:
    """Weight and damped Hessian as SparseGPT's authors pose the problem: 0 and 1 where an input never spikes."""
    return weight.where(~hessian.dead, 0.0), hessian.positive_definite()[0]


def _greedy(weight: Tensor, hessian: LayerHessian, budget: Budget, exact: bool) -> Tensor | None:
    step = 1 if exact or budget.two_of_four else -(-weight.shape[1] // 256)
    mask = peer_solvers.greedy(*_posed(weight, hessian), budget, step)
    return None if mask is None else refit(weight, mask, hessian)


SOLVERS: dict[str, Callable[[Tensor, LayerHessian, Budget], Tensor | None]] = {
    "auto": partial(_ours, solver="auto"),
    "admm": partial(_ours, solver="admm"),
    "magnitude, refit": partial(_ours, solver="magnitude"),
    "SparseGPT": lambda w, h, budget: peer_solvers.sparsegpt(*_posed(w, h), budget),
    "ALPS": lambda w, h, budget: peer_solvers.alps(*_posed(w, h), budget),
    "OBS as published": partial(_greedy, exact=False),
    "ExactOBS": partial(_greedy, exact=True),
}
SLOW = ("OBS as published", "ExactOBS")


def lines(known: Known = lambda line: False) -> Iterator[Line]:
    """Measure what is not known yet: a line of each cell, budget and solver."""
    # Those that go row by row come last, so that an interrupted run leaves all the others.
    for (columns, rows, ratio, threads), slow in [(cell, slow) for slow in (False, True) for cell in CELLS]:
        name = f"{columns} x {rows}, {ratio:g} samples a column"
        settings = digest([str((columns, rows, ratio, threads))])
        wanted = [
            {"network": name, "budget": budget, "value": threads, "method": solver, "settings": settings}
            for budget in BUDGETS
            for solver in SOLVERS
            if (solver in SLOW) == slow
        ]
        wanted = [line for line in wanted if not known(line)]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            if wanted:
                weight, matrix = layer(columns, rows, ratio)
            for line in wanted:
                yield line | {"columns": columns, "rows": rows} | measured(weight, LayerHessian(matrix), line)
        finally:
            torch.set_num_threads(before)


# What each solver took on the layers so far: columns, rows, seconds. Time grows at least with the cube of the columns.
_taken: dict[tuple[str, str], list[tuple[int, int, float]]] = {}


def measured(weight: Tensor, hessian: LayerHessian, line: Line) -> Line:
    """Seconds and loss of one solver; none where it was stopped, here or on a layer that is smaller."""
    rows, columns = weight.shape
    two_of_four = line["budget"] == "2:4"
    budget = Budget(round(BUDGETS[line["budget"]] * rows * columns), two_of_four)
    taken = _taken.setdefault((line["method"], line["budget"]), [])
    peer = line["method"] not in ("auto", "admm", "magnitude, refit")
    stopped = peer and any(t * (columns / c) ** 3 > LIMIT for c, r, t in taken if MANY <= c <= columns and r <= rows)
    wall, processor = time.perf_counter(), time.process_time()
    new = None if stopped else SOLVERS[line["method"]](weight, hessian, budget)
    seconds, clock = time.process_time() - processor, time.perf_counter() - wall
    taken.append((columns, rows, math.inf if new is None else seconds))
    if new is None:
        return {"stopped": True, "commit": commit()}
    if (found := int((new == 0).sum())) < budget.zeros:
        raise RuntimeError(f"{line['method']}: {found} zeros, {budget.zeros} asked for")
    return {"loss": hessian.loss(weight, new), "seconds": seconds, "wall_seconds": clock, "commit": commit()}


def over_columns(found: list[Line]) -> list[Line]:
    """The lines of the plot over columns: 64 rows and one thread, four samples a column where there are such."""
    plain = [line for line in found if line["rows"] == 64 and line["value"] == 1 and "loss" in line]
    rich = {line["columns"] for line in plain if "4 samples" in line["network"]}
    return [line for line in plain if "4 samples" in line["network"] or line["columns"] not in rich]


def table(found: list[Line]) -> str:
    """Seconds and loss of each solver, a row a layer and budget; and where a peer is ahead of `auto`."""
    rows, behind = [], []
    for name, threads, budget in dict.fromkeys((line["network"], line["value"], line["budget"]) for line in found):
        here = {
            line["method"]: line
            for line in found
            if (line["network"], line["value"], line["budget"]) == (name, threads, budget)
        }
        rows.append([f"{name}, {threads} thread{'s' * (threads > 1)}", budget, *(_cell(here.get(s)) for s in SOLVERS)])
        ours = here.get("auto", {"stopped": True})
        for solver, line in here.items():
            if solver not in ("auto", "admm") and "loss" in ours and "loss" in line:
                faster, better = line["seconds"] < ours["seconds"], line["loss"] < ours["loss"]
                if better:
                    how = "in less time as well" if faster else "in more time"
                    losses = f"{line['loss']:.4g} against {ours['loss']:.4g}"
                    behind.append(f"{solver} on {name} at {budget} ({losses}), {how}")
    text = "Where a peer loses less than `auto`: " + ("; ".join(behind) or "nowhere") + "."
    return f"{tables.markdown(['layer', 'budget', *SOLVERS], rows)}\n\n{text}"


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    if "loss" not in line:
        return "> 2 min"
    return f"{line['loss']:.4g}; {line['seconds']:.2f} s ({line['wall_seconds']:.2f})"
