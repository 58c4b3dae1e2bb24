"""Whole channels out of the demo's five networks, without fine-tuning: SBC against torch-pruning's own importances."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import tables
from sbc_plugin.demo import digits, network
from sbc_plugin.torch_pruning import get_pruner

SEEDS = range(5)
METHODS = ("sbc", "l1", "l2", "lamp", "taylor", "hessian", "random")
BUDGETS: dict[str, dict[str, Any]] = {
    "50 % of each layer": {"pruning_ratio": 0.5},
    "80 % of each layer": {"pruning_ratio": 0.8},
    "50 %, global": {"pruning_ratio": 0.5, "global_pruning": True, "max_pruning_ratio": 0.95},
    "80 %, global": {"pruning_ratio": 0.8, "global_pruning": True, "max_pruning_ratio": 0.95},
}


def counts(model: nn.Module, events: digits.Events) -> Tensor:
    """Output spikes of each sequence, (N, 10)."""
    with torch.no_grad():
        return torch.cat([network.spike_counts(model, x) for x, _ in events.batches(300)])


def gradients(model: nn.Module, events: digits.Events) -> dict[str, dict[str, Tensor]]:
    """What "taylor" and "hessian" start from: the mean gradient, and the mean square of each sequence's gradient.

    torch-pruning's own ``accumulate_grad`` keeps the last sample only, so the squares are averaged here.
    """
    names = [name for name, _ in model.named_parameters()]
    sums = {kind: {name: torch.zeros_like(p) for name, p in model.named_parameters()} for kind in ("taylor", "hessian")}
    for x, label in events.batches(1):
        loss = functional.cross_entropy(network.spike_counts(model, x) * network.LOGITS_PER_SPIKE, label)
        for name, gradient in zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            sums["taylor"][name] += gradient / len(events)
            sums["hessian"][name] += gradient.square() / len(events)
    return sums


def lines(seeds: range = SEEDS, methods: tuple[str, ...] = METHODS) -> Iterator[dict[str, Any]]:
    """A line for each seed, budget and method: accuracy and squared error of output counts, on held-out digits."""
    data = digits.load()
    calibration = data.calibration.batches(100)
    for seed in tqdm(seeds, desc="channels", unit="seed", leave=False, disable=None):
        dense = counts(network.pretrained(seed), data.test)
        wanted = {"taylor", "hessian"} & set(methods)
        scores = gradients(network.pretrained(seed), data.calibration) if wanted else {}
        for budget, arguments in BUDGETS.items():
            for method in methods:
                model = network.pretrained(seed)
                for name, parameter in model.named_parameters():
                    parameter.grad = scores[method][name].clone() if method in scores else None
                torch.manual_seed(seed)
                started = time.perf_counter()
                get_pruner(
                    method, model, (data.calibration.x[0, :1].float(),), ignored_layers=[model[7]], **arguments,
                    **({"calibration_data": calibration} if method == "sbc" else {}),
                ).step()  # fmt: skip
                seconds = time.perf_counter() - started
                pruned = counts(model, data.test)
                yield {
                    "seed": seed,
                    "budget": budget,
                    "method": method,
                    "accuracy": float((pruned.argmax(1) == data.test.labels).float().mean()),
                    "output_error": float((pruned - dense).square().sum() / dense.square().sum()),
                    "weights": sum(parameter.numel() for parameter in model.parameters()),
                    "seconds": seconds,
                }


def table(found: list[tables.Line]) -> str:
    """Accuracy, output error and size of each budget and method, means over seeds with standard errors."""
    rows = []
    for budget in dict.fromkeys(line["budget"] for line in found):
        for method in dict.fromkeys(line["method"] for line in found):
            mine = [line for line in found if (line["budget"], line["method"]) == (budget, method)]
            rows.append(
                [
                    budget,
                    "SBC" if method == "sbc" else method,
                    tables.spread([100 * line["accuracy"] for line in mine]),
                    tables.spread([line["output_error"] for line in mine], 3),
                    f"{tables.mean([line['weights'] for line in mine]):,.0f}",
                    f"{tables.mean([line['seconds'] for line in mine]):.1f}",
                ]
            )
    return tables.markdown(
        ["channels removed", "method", "accuracy, %", "output error", "weights left", "seconds"], rows
    )
