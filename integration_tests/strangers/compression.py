"""Strangers' networks through ``compress``, ``save`` and ``load``: right, or refused with the model as it was.

``python -m integration_tests.strangers.compression 5000 0`` tries 5,000 networks from seed 0 on, each with settings of
its own. What comes out is judged by the arithmetic of :mod:`.grids_and_patterns`, and by the dense network.
"""

import copy
import random
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from integration_tests.strangers.channels import Outcome, count, surroundings
from integration_tests.strangers.grids_and_patterns import (
    best_for_its_zeros,
    breaks_pattern,
    by_hand,
    fits_pattern,
    off_grid,
    zeros_of,
)
from integration_tests.strangers.networks import Stranger, network
from sbc_plugin import Calibration, Prune, Quantize, Report, compress, load, save
from sbc_plugin.errors import CompressionError, SettingsError

PATTERNS = ["unstructured"] * 5 + ["2:4", "1:2", "3:4", "1:4", "block:2", "block:4"]
CODE_OF_THREE = 1.6  # bits that a code takes that holds -1, 0 or 1


@dataclass(frozen=True)
class Case:
    """One network with what is asked for.

    Attributes:
        stranger: the network and its data.
        data: calibration batches, as the model takes them.
        arguments: of ``compress``, besides model and data.
    """

    stranger: Stranger
    data: list[Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def prune(self) -> Prune | None:
        prune: Prune | None = self.arguments["prune"]
        return prune

    @property
    def quantize(self) -> Quantize | None:
        quantize: Quantize | None = self.arguments["quantize"]
        return quantize

    @property
    def calibration(self) -> Calibration:
        calibration: Calibration = self.arguments["calibration"]
        return calibration


def case(seed: int) -> Case:
    """The network of a seed with settings drawn from it."""
    stranger, draw = network(seed, more=True), random.Random(seed + 2)
    method = draw.choice(["sbc", "sbc", "sbc", "obc", "magnitude", "rtn"])
    kind = draw.choice(["prune", "prune", "quantize", "both"])
    arguments: dict[str, Any] = {
        "method": method,
        "prune": None if kind == "quantize" else _prune(draw),
        "quantize": None if kind == "prune" else _quantize(draw),
        "calibration": _calibration(draw),
        "inplace": draw.random() < 0.3,
        "progress": False,
    }
    if arguments["prune"] is not None and draw.random() < 0.15:  # what has a closed form
        given = arguments["prune"]
        prune = Prune(given.sparsity, given.pattern, given.solver, given.allocation, silent_first=False, rounds=1)
        plain = Calibration(damping=draw.choice([0.01, 0.3]), tuning=0)
        arguments |= {"method": "obc", "prune": prune, "quantize": None, "calibration": plain}
    batch, forward = stranger.batch, stranger.forward
    if draw.random() < 0.5:
        batch, forward = stranger.native, None
    if forward is not None:
        arguments["forward"] = forward
    axis = stranger.batch_axis if forward is None else 1
    data: list[Any] = [batch] if draw.random() < 0.6 else list(batch.split(2, dim=axis))
    if draw.random() < 0.3 and forward is None:
        data = [(x, torch.arange(x.shape[axis]) % 2) for x in data]
    return Case(stranger, data, arguments)


def _prune(draw: random.Random) -> Prune:
    pattern = draw.choice(PATTERNS)
    sparsity = draw.choice([0.0, 0.3, 0.5, 0.8, 0.9, 0.97])
    first, _, second = pattern.partition(":")
    if first.isdigit():
        sparsity = 1 - int(first) / int(second)
    refit = draw.random() < 0.8
    return Prune(
        sparsity,
        pattern=pattern,
        solver=draw.choice(["auto", "auto", "magnitude", "obs", "admm", "hybrid"]),
        allocation=draw.choice(["lamp", "lamp", "uniform", "loss"]),
        refit=refit,
        rescale=refit and draw.random() < 0.2,
        silent_first=draw.choice([None, None, True, False]) if pattern == "unstructured" else None,
        rounds=draw.choice([None, None, 1, 2, 3]) if not first.isdigit() else None,
    )


def _quantize(draw: random.Random) -> Quantize:
    return Quantize(
        draw.randint(2, 8),
        granularity=draw.choice(["channel", "channel", "tensor", "group:2", "group:4"]),
        scale=draw.choice(["mse", "mse", "absmax", "power_of_two"]),
        symmetric=draw.random() < 0.7,
        allocation=draw.choice(["uniform", "uniform", "loss"]),
    )


def _calibration(draw: random.Random) -> Calibration:
    return Calibration(
        order=draw.choice(["one-shot", "one-shot", "sequential"]),
        temporal=draw.random() < 0.7,
        damping=draw.choice([0.01, 0.01, 0.1]),
        max_samples=draw.choice([None, None, 64]),
        align=draw.random() < 0.2,
        tuning=draw.choice([0, 0, 0, 0, 2, 3]),
    )


def attempt(seed: int) -> Outcome:
    """Compress the network of a seed, save it and load it, and judge the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _attempt(case(seed))


def _attempt(asked: Case) -> Outcome:
    stranger = asked.stranger
    model, dense = stranger.model, copy.deepcopy(stranger.model)
    batches = copy.deepcopy(asked.data)
    before, values = surroundings(model), values_of(model)
    try:
        small, report = compress(model, asked.data, **asked.arguments)
    except CompressionError as error:
        if not same(values, values_of(model)) or before != surroundings(model):
            return Outcome("changed", f"the model was changed before the refusal: {error}")
        return Outcome("setting" if isinstance(error, SettingsError) else "refused", str(error))
    except Exception as error:
        return Outcome("raw", f"{type(error).__name__}: {error}")
    if asked.arguments["inplace"] != (small is model):
        return Outcome("changed", "inplace was not kept")
    if small is not model and not same(values, values_of(model)):
        return Outcome("changed", "the model was changed though inplace=False")
    if before != surroundings(model) or not same_data(batches, asked.data):
        return Outcome("changed", "input, modes, hooks or the random state are not as before")
    if before[:3] != surroundings(small)[:3]:
        return Outcome("changed", "the result has other modes, hooks or wishes for gradients")
    try:
        wrong = faults(asked, dense, small, report) or faults_of_files(asked, small, report)
    except (RuntimeError, AttributeError, IndexError, CompressionError) as error:
        wrong = f"{type(error).__name__}: {error}"
    return Outcome("wrong", wrong) if wrong else Outcome("right")


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, buffers, and tensors among the neurons' parameters."""
    found = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        for key, value in _fields(getattr(module, "p", None), f"{name}.p"):
            found[key] = value.detach().clone()
    return found


def _fields(parameters: Any, prefix: str) -> list[tuple[str, Tensor]]:
    if isinstance(parameters, Tensor):
        return [(prefix, parameters)]
    names = getattr(parameters, "_fields", ())
    return [pair for name in names for pair in _fields(getattr(parameters, name), f"{prefix}.{name}")]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


def equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def same_data(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return len(one) == len(other) and all(map(same_data, one, other))


def faults(asked: Case, dense: nn.Module, small: nn.Module, report: Report) -> str:
    """What is not as it was asked for, "" if all is."""
    weights = {row.name: [w for part in parts(small, row.name) for w in part] for row in report.layers}
    return (
        _faults_of_numbers(report, weights, small)
        or _faults_of_what_is_left(asked, dense, small, report)
        or _faults_of_zeros(asked, report, weights, dense)
        or _faults_of_grids(asked, report, weights)
        or _faults_of_outputs(asked, dense, small)
        or _faults_of_least_squares(asked, dense, small, report)
    )


def parts(model: nn.Module, name: str) -> list[list[Tensor]]:
    """The weights of each module of a layer of the report."""
    return [by_hand(model.get_submodule(part)) for part in name.split(" + ")]


def _faults_of_numbers(report: Report, weights: dict[str, list[Tensor]], small: nn.Module) -> str:
    for row in report.layers:
        found, size = weights[row.name], row.rows * row.columns
        if sum(w.numel() for w in found) != size or len(found[0]) != row.rows:
            return f"{row.name}: the report says {row.rows} x {row.columns}"
        if round(row.sparsity * size) != zeros_of(found):
            return f"{row.name}: the report says {row.sparsity:.4f}, {zeros_of(found)} of {size} are zero"
        if not (row.loss >= -1e-9 and row.loss < float("inf") and row.samples > 0 and row.sequences > 0):
            return f"{row.name}: {row}"
    everything = [p for p in small.parameters() if p.dim() > 1]
    total, zeros = sum(p.numel() for p in everything), sum(int((p == 0).sum()) for p in everything)
    if abs(report.sparsity - zeros / total) > 1e-9:
        return f"the report says {report.sparsity:.4%} of all weights, {zeros} of {total} are zero"
    return ""


def _faults_of_what_is_left(asked: Case, dense: nn.Module, small: nn.Module, report: Report) -> str:
    compressed = {part for row in report.layers for part in row.name.split(" + ")}
    aligns = asked.calibration.align and asked.arguments["method"] in ("sbc", "obc")
    after = values_of(small)
    for name, value in values_of(dense).items():
        owner, _, attribute = name.rpartition(".")
        weight = attribute in ("weight", "input_weights", "recurrent_weights")
        moves = attribute == "bias" or attribute.startswith("running_")
        if (owner in compressed and weight) or (aligns and moves):
            continue
        if not equal(value, after[name]):
            return f"{name} is of no layer, and changed"
    return ""


def _faults_of_zeros(asked: Case, report: Report, weights: dict[str, list[Tensor]], dense: nn.Module) -> str:
    prune = asked.prune
    if prune is None:
        return ""
    fitting = {name: found for name, found in weights.items() if fits_pattern(_whole(found), prune.pattern)}
    size = sum(w.numel() for found in fitting.values() for w in found)
    first, _, second = prune.pattern.partition(":")
    exact = asked.quantize is None
    present = {name: zeros_of([w for part in parts(dense, name) for w in part]) for name in weights}
    for name, found in weights.items():
        if name not in fitting:
            if name not in report.skipped:
                return f"{name}: the pattern does not fit, and no note says so"
            if exact and zeros_of(found) > present[name]:
                return f"{name}: the pattern does not fit, and weights are zero"
        elif prune.pattern != "unstructured" and (wrong := breaks_pattern(_whole(found), prune.pattern, None)):
            return f"{name}: {wrong}"
    if first.isdigit():
        return ""
    if first == "block":
        whole = sum(_whole_blocks(_whole(found), int(second)) for found in fitting.values())
        most = round(prune.sparsity * size)
        least = most - (int(second) - 1) * len(fitting)
        if least <= whole and (whole <= most or not exact):
            return ""
        return f"whole blocks hold {whole} zeros, {least} to {most} were asked for"
    asked_for = max(round(prune.sparsity * size), sum(present[name] for name in fitting))
    zeros = sum(zeros_of(found) for found in fitting.values())
    if zeros < asked_for or (exact and zeros != asked_for):
        return f"{zeros} zeros of {size}, {asked_for} were asked for"
    return ""


def _whole(found: list[Tensor]) -> Tensor:
    """(rows, inputs, positions) of all weights side by side: those of Linear layers only are ever joined."""
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _whole_blocks(weight: Tensor, size: int) -> int:
    runs = weight.transpose(1, 2).reshape(len(weight), -1, size)
    return int((runs == 0).all(-1).sum()) * size


def _faults_of_grids(asked: Case, report: Report, weights: dict[str, list[Tensor]]) -> str:
    quantize = asked.quantize
    if quantize is None:
        return ""
    spent, kept = 0.0, 0
    size = quantize.granularity.partition(":")[2]
    for row in report.layers:
        if size and any(w[0].numel() % int(size) for w in weights[row.name]):
            if "not quantised" not in report.skipped.get(row.name, "") or row.bits < 32:
                return f"{row.name}: groups do not divide its columns, and no note says so"
            continue
        kept += row.rows * row.columns
        symmetric = quantize.symmetric or (quantize.allocation == "loss" and row.bits == 2)
        for weight in weights[row.name]:
            power = quantize.scale == "power_of_two"
            wrong = off_grid(weight, row.bits, quantize.granularity, quantize.symmetric, power)
            if wrong:
                return f"{row.name}: {wrong}"
        code = CODE_OF_THREE if symmetric and row.bits == 2 else row.bits
        spent += code * sum(int(w.count_nonzero()) for w in weights[row.name])
        if quantize.allocation == "uniform" and row.bits != quantize.bits:
            return f"{row.name}: {row.bits} bits, {quantize.bits} were asked for"
    if quantize.allocation == "loss" and asked.prune is None and spent > quantize.bits * kept:
        return f"codes take {spent} bits, {quantize.bits * kept} were asked for"
    return ""


def _faults_of_outputs(asked: Case, dense: nn.Module, small: nn.Module) -> str:
    stranger = asked.stranger
    with torch.no_grad():
        before, after = (stranger.run(model, stranger.batch) for model in (dense, small))
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"the output is {tuple(after.shape)} {after.dtype}, it was {tuple(before.shape)} {before.dtype}"
    return "" if after.isfinite().all() else "the output is not finite"


def _faults_of_least_squares(asked: Case, dense: nn.Module, small: nn.Module, report: Report) -> str:
    """With M = I and no tuning, the weights that Linear layers keep are the best for their zeros."""
    prune, calibration = asked.prune, asked.calibration
    one_pass = prune is not None and (prune.rounds or 1) == 1 and not prune.silent_first and not prune.rescale
    plain = calibration.order == "one-shot" and calibration.tuning == 0 and calibration.max_samples is None
    hessians = asked.arguments["method"] == "obc" or (asked.arguments["method"] == "sbc" and not calibration.temporal)
    if prune is None or not (one_pass and plain and hessians and prune.refit) or asked.quantize is not None:
        return ""
    layers = [row.name for row in report.layers if isinstance(_linear(dense, row.name), nn.Linear)]
    samples = _inputs(asked.stranger, dense, layers)
    for name in layers:
        weight = parts(dense, name)[0][0][..., 0]
        found = parts(small, name)[0][0][..., 0].double()
        expected = best_for_its_zeros(weight, found != 0, samples[name], calibration.damping)
        # Solved in double precision from sums of products in single precision, and stored in the model's own.
        if (difference := float((found - expected).abs().max())) > 1e-3 * float(weight.abs().max()):
            return f"{name}: {difference:.2g} from the least-squares optimum for its zeros"
    return ""


def _linear(model: nn.Module, name: str) -> nn.Module | None:
    return None if " + " in name else model.get_submodule(name)


def _inputs(stranger: Stranger, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """All that each layer received: name -> (samples, columns)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Any:
        return lambda module, given: seen[name].append(given[0].flatten(0, -2))

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        stranger.run(model, stranger.batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(inputs) for name, inputs in seen.items()}


def faults_of_files(asked: Case, small: nn.Module, report: Report) -> str:
    """What is not equal once the model was saved and loaded into a fresh one, "" if all is."""
    fresh = network(asked.stranger.seed, more=True)
    with torch.no_grad():
        for value in fresh.model.state_dict().values():
            value.zero_()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(path, small, report)
        loaded, again = load(path, fresh.model)
        alone = load(path)
    if again != report or alone.report != report:
        return "the report that was loaded is another one"
    if not same(values_of(small), values_of(loaded)):
        return "the model that was loaded has other values"
    if any(not equal(value, alone.tensors[name]) for name, value in small.state_dict().items()):
        return "the tensors that were loaded have other values"
    with torch.no_grad():
        one, other = (asked.stranger.run(model, asked.stranger.batch) for model in (small, loaded))
    return "" if torch.equal(one, other) else "the model that was loaded answers otherwise"


REPRODUCTION = """\
# {kind}: {reason}
from integration_tests.strangers.compression import attempt, case
from sbc_plugin import compress
asked = case({seed})
print(asked.stranger.description)
print(asked.arguments)
small, report = compress(asked.stranger.model, asked.data, **asked.arguments)
print(report)
print(attempt({seed}))"""


def reproduction(seed: int, outcome: Outcome) -> str:
    """Ten lines that show the fault of a seed."""
    return REPRODUCTION.format(kind=outcome.kind, reason=" ".join(outcome.reason.split())[:300], seed=seed)


if __name__ == "__main__":
    sys.exit(bool(count(attempt, reproduction, *map(int, sys.argv[1:]))))
