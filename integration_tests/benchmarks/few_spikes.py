"""Tuning where outputs are often tied or silent, on other data and other networks than `ties`.

The data are tables, time series, tactile recordings and images; the networks are feed-forward, recurrent and
convolutional, with and without a synaptic current (*box*). Each is trained in seconds, and then its last weights are
made smaller, so that outputs spike less often. *Tied* is the fraction of test sequences on which two outputs spike most
often, or none spikes. The gain is paired, sequence by sequence; its ± is the standard error over test sequences, for
the given networks and calibration data.

Tuning aims at the dense network. So it also takes back what pruning happens to gain: of the 66 pairs of networks, one
is below the solvers alone by two standard errors, and there these were better than the dense network.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import spikes_in, tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.networks.spiking_outputs import box, convolutional, feed_forward, recurrent
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.spikes_in import Sequences
from integration_tests.benchmarks.ties import spike_counts
from sbc_plugin import Calibration, Prune, Quantize, compress

SEEDS = range(3)
TRAINED, CALIBRATION, BATCH = 0.6, 300, 50
LEARNING_RATE = 5e-3
ALONE, TUNED = "solvers alone", "tuned, default"
METHODS = {ALONE: Calibration(tuning=0), TUNED: Calibration()}


@dataclass(frozen=True)
class Subject:
    """Data and a network that is trained on them.

    Attributes:
        title: for people.
        data: called with a number of steps.
        steps: of each sequence.
        classes: of the data.
        build: called with the number of inputs and of classes.
        sparsity: that it is pruned to.
        epochs: of training.
        faint: factor of the last weights after training; below 1, outputs spike less often.
    """

    title: str
    data: Callable[[int], Sequences]
    steps: int
    classes: int
    build: Callable[[int, int], nn.Module]
    sparsity: float
    epochs: int
    faint: float = 1.0

    @property
    def network(self) -> str:
        """What it is, in words."""
        network = self.build.__name__.replace("_", "-")
        return f"{self.title}, {self.classes} classes, {self.steps} steps, {network}"

    @property
    def budgets(self) -> dict[str, dict[str, Any]]:
        """Arguments of ``compress``, by title."""
        return {
            f"{100 * self.sparsity:.0f} % sparse": {"prune": Prune(self.sparsity)},
            "2 bits": {"quantize": Quantize(2)},
        }

    @property
    def settings(self) -> str:
        """A digest of all that its lines depend on."""
        return digest(
            [self.network, self.sparsity, self.epochs, self.faint, TRAINED, CALIBRATION, BATCH, LEARNING_RATE]
        )

    def trained(self, x: Tensor, labels: Tensor) -> nn.Module:
        """A network whose spike counts are the classes' logits."""
        model = self.build(x.shape[2], self.classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(labels)).split(BATCH):
                loss = functional.cross_entropy(spike_counts(model, x[:, chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            [layer for layer in model if isinstance(layer, nn.Linear)][-1].weight *= self.faint
        return model.eval()


SUBJECTS = (
    Subject("breast cancer", spikes_in.breast_cancer, 5, 2, feed_forward, 0.97, 5),
    Subject("ItalyPowerDemand", partial(spikes_in.profiles, "ItalyPowerDemand"), 5, 2, recurrent, 0.97, 10, 0.25),
    Subject("clothes", partial(spikes_in.clothes, classes=2), 2, 2, convolutional, 0.9, 10, 0.4),
    Subject("wine", spikes_in.wine, 10, 3, box, 0.95, 20, 0.7),
    Subject("ArrowHead", partial(spikes_in.profiles, "ArrowHead"), 10, 3, feed_forward, 0.95, 20, 0.6),
    Subject("clothes", partial(spikes_in.clothes, classes=4), 2, 4, box, 0.95, 20, 0.25),
    Subject("JapaneseVowels", partial(spikes_in.series, "JapaneseVowels"), 10, 9, recurrent, 0.9, 20, 0.2),
    Subject("clothes", partial(spikes_in.clothes, classes=10), 5, 10, convolutional, 0.8, 10, 0.5),
    Subject("Braille", spikes_in.seven_letters, 25, 7, feed_forward, 0.9, 10, 0.5),
    Subject("Braille", spikes_in.ten_letters, 25, 10, recurrent, 0.9, 20, 0.2),
    Subject("GunPoint", partial(spikes_in.profiles, "GunPoint"), 50, 2, box, 0.97, 20),
)


def lines(known: Known = lambda line: False, subjects: tuple[Subject, ...] = SUBJECTS) -> Iterator[Line]:
    """Measure what is not known yet: a line a network, seed, budget and method; "dense" is the network before."""
    pairs = [(subject, seed) for subject in subjects for seed in SEEDS]
    for subject, seed in tqdm(pairs, desc="few_spikes", unit="network", leave=False, disable=None):
        place = {"network": subject.network, "seed": seed, "settings": subject.settings}
        if known(place | {"budget": list(subject.budgets)[-1], "method": TUNED}):
            continue
        torch.manual_seed(seed)
        x, labels = subject.data(subject.steps)
        x = x if subject.build is convolutional else x.flatten(2)
        seen, held_out = torch.randperm(len(labels)).tensor_split([int(TRAINED * len(labels))])
        model = subject.trained(x[:, seen], labels[seen])
        calibration = [(x[:, some], labels[some]) for some in seen[:CALIBRATION].split(BATCH)]
        test, wanted = x[:, held_out], labels[held_out]
        place |= {"tied": tied(model, test), "tested": len(wanted), "commit": commit()}
        yield place | {"budget": "-", "method": "dense", "accuracy": float(right(model, test, wanted).mean())}
        for budget, arguments in subject.budgets.items():
            found = {}
            for method, settings in METHODS.items():
                small, _ = compress(model, calibration, calibration=settings, progress=False, **arguments)
                found[method] = right(small, test, wanted)
                line = {"budget": budget, "method": method, "accuracy": float(found[method].mean())}
                differs = float((found[method] - found[ALONE]).square().mean())
                yield place | line | {"differs": differs}


def right(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """(B,), 1 where the class is right, else 0."""
    with torch.no_grad():
        return (spike_counts(model, x).argmax(1) == labels).double()


def tied(model: nn.Module, x: Tensor) -> float:
    """The fraction of sequences on which two outputs spike most often, or none spikes."""
    with torch.no_grad():
        best = spike_counts(model, x).topk(2, 1).values
    return float((best[:, 0] == best[:, 1]).double().mean())


def gain(alone: Line, tuned: Line) -> float:
    """How much more accurate the tuned network is."""
    return float(tuned["accuracy"] - alone["accuracy"])


def noise_of(alone: Line, tuned: Line) -> float:
    """The standard error of :func:`gain`, on the same sequences."""
    return math.sqrt((tuned["differs"] - gain(alone, tuned) ** 2) / (tuned["tested"] - 1))


def pairs_of(found: list[Line]) -> dict[tuple[str, str], list[tuple[Line, Line]]]:
    """Network and budget -> what the solvers alone and default tuning came to, seed by seed."""
    lines = {(line["network"], line["budget"], line["seed"], line["method"]): line for line in found}
    pairs: dict[tuple[str, str], list[tuple[Line, Line]]] = {}
    for (network, budget, seed, method), line in lines.items():
        if method == TUNED:
            pairs.setdefault((network, budget), []).append((lines[network, budget, seed, ALONE], line))
    return pairs


def mean_gain(pairs: list[tuple[Line, Line]]) -> tuple[float, float]:
    """The mean gain over seeds in points, and its standard error over test sequences."""
    noise = math.sqrt(sum(noise_of(*pair) ** 2 for pair in pairs)) / len(pairs)
    return 100 * tables.mean([gain(*pair) for pair in pairs]), 100 * noise


def table(found: list[Line]) -> str:
    """Accuracies of each network and budget, and what default tuning gains over the solvers alone."""
    rows, gains = [], []
    for (network, budget), pairs in pairs_of(found).items():
        dense = [line for line in found if (line["network"], line["method"]) == (network, "dense")]
        alone, tuned = zip(*pairs, strict=True)
        gained, noise = mean_gain(pairs)
        gains.append(gained)
        ties = tables.spread([100 * line["tied"] for line in dense], 0)
        accuracies = [tables.spread([100 * line["accuracy"] for line in lines]) for lines in (dense, alone, tuned)]
        rows.append([network, budget, ties, *accuracies, f"{gained:+.1f} ± {noise:.1f}"])
    rows.append(["mean of all", *[""] * 5, tables.spread(gains)])
    heads = ["network", "budget", "tied, %", "dense, %", *(f"{method}, %" for method in METHODS)]
    return tables.markdown([*heads, "default gains, points"], rows)
