"""Tuning on networks whose best class is often tied: few output spikes, few steps, and sequences without any."""

from collections.abc import Iterator
from typing import Any

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import tables
from sbc_plugin import Calibration, Prune, accuracy, compress

SEEDS = range(3)
NETWORKS = (
    (2, 2, 4),
    (2, 10, 4),
    (5, 5, 6),
    (5, 50, 6),
    (10, 2, 8),
    (10, 10, 8),
    (10, 20, 8),
)  # classes, steps, epochs
METHODS = {
    "solvers alone": Calibration(tuning=0),
    "tuned, default": Calibration(),
    "tuned, values": Calibration(outputs="values"),
}
SPARSITY, TRAINED, CALIBRATION, BATCH = 0.9, 0.65, 300, 100
RATE = 4.0  # output spikes a step, times this, are trained towards 1 for the class and 0 for the others

Batch = tuple[Tensor, Tensor]


class Pictures:
    """Handwritten digits below a number of classes as random spikes: a pixel's brightness is its rate."""

    def __init__(self, classes: int, steps: int) -> None:
        found = load_digits()
        keep = torch.from_numpy(found.target) < classes
        order = torch.randperm(int(keep.sum()))
        self.rates = torch.from_numpy(found.images).float().flatten(1)[keep][order] / 16
        self.labels, self.steps = torch.from_numpy(found.target).long()[keep][order], steps

    def batch(self, indices: Tensor) -> Batch:
        """(T, B, 64) and (B,)."""
        return (torch.rand(self.steps, len(indices), 64) < self.rates[indices]).float(), self.labels[indices]


def spike_counts(model: nn.Module, x: Tensor) -> Tensor:
    """(B, classes), by the plain loop."""
    state, total = None, torch.zeros(())
    for step in x:
        spikes, state = model(step, state)
        total = total + spikes
    return total


def trained(pictures: Pictures, classes: int, epochs: int, size: int) -> nn.Module:
    """A network 64-128-classes whose rates are trained towards one-hot labels, which leaves few output spikes."""
    neuron = LIFBoxParameters(tau_mem_inv=torch.tensor(500.0))
    first, last = nn.Linear(64, 128, bias=False), nn.Linear(128, classes, bias=False)
    model = SequentialState(first, LIFBoxCell(neuron), last, LIFBoxCell(neuron))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for indices in torch.randperm(size).split(BATCH):
            x, labels = pictures.batch(indices)
            rates = RATE * spike_counts(model, x) / pictures.steps
            loss = functional.mse_loss(rates, functional.one_hot(labels, classes).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def lines(seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line a network, seed and method; "dense" is the network before."""
    for (classes, steps, epochs), seed in tqdm(
        [(network, seed) for network in NETWORKS for seed in seeds], desc="ties", leave=False, disable=None
    ):
        torch.manual_seed(seed)
        pictures = Pictures(classes, steps)
        size = int(TRAINED * len(pictures.labels))
        model = trained(pictures, classes, epochs, size)
        calibration = [pictures.batch(part) for part in torch.arange(min(CALIBRATION, size)).split(BATCH)]
        test = [pictures.batch(torch.arange(size, len(pictures.labels)))]
        with torch.no_grad():
            best = torch.cat([spike_counts(model, x) for x, _ in calibration]).topk(2, 1).values
        place = {"seed": seed, "network": f"{classes} classes, {steps} steps", "tested": len(test[0][1])}
        place["tied"] = float((best[:, 0] == best[:, 1]).double().mean())
        yield place | {"method": "dense", "accuracy": accuracy(model, test)}
        for method, settings in METHODS.items():
            small, _ = compress(model, calibration, prune=Prune(SPARSITY), calibration=settings, progress=False)
            yield place | {"method": method, "accuracy": accuracy(small, test)}


def table(found: list[tables.Line]) -> str:
    """Accuracies of each network, and what default tuning gains over the solvers alone."""
    rows, gains = [], []
    for network in dict.fromkeys(line["network"] for line in found):
        of = {
            method: {line["seed"]: line for line in found if (line["network"], line["method"]) == (network, method)}
            for method in ("dense", *METHODS)
        }
        ties = tables.spread([100 * line["tied"] for line in of["dense"].values()], 0)
        means = [tables.spread([100 * line["accuracy"] for line in of[method].values()], 1) for method in of]
        alone, default = of["solvers alone"], of["tuned, default"]
        gains += (own := [100 * (default[seed]["accuracy"] - alone[seed]["accuracy"]) for seed in alone])
        rows.append([network, ties, *means, f"{min(own):+.1f} to {max(own):+.1f}"])
    rows.append(["mean gain of all", "", "", "", "", "", f"{tables.mean(gains):+.1f}"])
    heads = ["network", "tied, %", "dense, %", *(f"{method}, %" for method in METHODS), "default gains, points"]
    return tables.markdown(heads, rows)
