"""One budget for zeros and bits, against the best uniform pair of the same size.

`compress(..., budget=Budget(factor=20))` chooses zeros and bits of each layer. A pair is LAMP's sparsity and 2, 3, 4 or
8 bits in all layers; its sparsity is as low as the same packed size allows. *By calibration* is the pair whose spikes
on the calibration data are closest to the dense network's, which a user can know; *by test* is the one that is most
accurate on the test data, which nobody can know before. Accuracies are of the test data. Gains are paired, sequence by
sequence; ± is their standard error over test sequences, for the given networks. *One shot* is without tuning; by
default both are tuned alike.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Subject
from sbc_plugin import Budget, Calibration, CalibrationStatistics, Prune, Quantize, calibrate, compress
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression.objective import Targets, distance_on, targets
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import ONE_SHOT
from sbc_plugin.errors import SettingsError

SEEDS = (0, 1, 2)
FACTOR, MORE = 20, {"recurrent": (10, 40), "digits": (40,)}
BITS = (2, 3, 4, 8)
NAMES = tuple(name for name in SUBJECTS if name != "mnist-autoencoder")  # which has no classes
TRIES, NEAR = 6, 0.99  # of a pair's sparsity, and a size that is near enough to the budget
TUNED = ("recurrent", "digits")
OURS, BEST = "budget", "best pair"


class Network:
    """A dense network, what it did on its calibration data, and its test data."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, parts = subject, subject.parts(seed)
        self.dense, self.test = subject.trained(seed), parts.test
        self.data = list(parts.calibration.batches(subject.batch))
        self.known: CalibrationStatistics = calibrate(self.dense, self.data, forward=subject.case.forward)
        self.aims: Targets = targets(self._runner(self.dense), self.data, classes=True)

    def _runner(self, model: nn.Module) -> Runner:
        return Runner.of(model, self.data[0], self.subject.case.forward)

    def small(self, calibration: Calibration, **settings: Any) -> nn.Module:
        """What compress makes of it."""
        forward = self.subject.case.forward
        return compress(
            self.dense, self.data, calibration=calibration, statistics=self.known, forward=forward, progress=False,
            **settings,
        )[0]  # fmt: skip

    def made(self, calibration: Calibration, **settings: Any) -> nn.Module:
        """The same with statistics of its own."""
        forward = self.subject.case.forward
        return compress(
            self.dense, self.data, calibration=calibration, forward=forward, progress=False, **settings
        )[0]  # fmt: skip

    def right(self, model: nn.Module, test: Events | None = None) -> Tensor:
        """(test sequences,), 1 where the class is right; of all test data, or of these."""
        scores = self.subject.case.scores
        with torch.no_grad():
            found = [scores(model, x).argmax(1) == labels for x, labels in (test or self.test).batches(250)]
        return torch.cat(found).double()

    def distance(self, model: nn.Module) -> float:
        """Of the spikes on the calibration data, from the dense network's."""
        runner, pieces = self._runner(model), list(self.aims.all)
        with torch.no_grad():
            return sum(float(distance_on(runner, self.aims, piece)) for piece in pieces) / len(pieces)


def size_of(model: nn.Module) -> int:
    """Bytes of all packed weights."""
    return sum(packed_bytes(tensor.detach().flatten(1)) for tensor in model.parameters() if tensor.dim() > 1)


def pair(network: Network, bits: int, limit: float) -> tuple[float, nn.Module] | None:
    """The lowest sparsity at which so many bits in all layers fit, and the network; None if none was found."""
    low, high, best = 0.0, 0.999, None
    # Scales take what zeros do not change: a float32 a row, or a little more where cells hold two weights.
    scales = 4 * sum(len(tensor) for tensor in network.dense.parameters() if tensor.dim() > 1)
    room = 8 * (limit - scales) / (size_of(network.dense) / 4)  # bits for each weight
    sparsity = min(max(1 - room / (bits + 2), 0.0), 0.99)
    for attempt in range(2 * TRIES):
        model = network.small(ONE_SHOT, prune=Prune(sparsity), quantize=Quantize(bits))
        size = size_of(model)
        if size <= limit:
            best, high = (sparsity, model), sparsity
            if size >= NEAR * limit or sparsity == 0 or attempt >= TRIES:
                break
        else:
            low = sparsity
        guess = 1 - (1 - sparsity) * (limit * (1 + NEAR) / 2 - scales) / (size - scales)
        inside = low < guess < high and attempt < TRIES
        sparsity = 0.0 if low == 0 and guess <= 0 else guess if inside else (low + high) / 2
    return best


def lines(known: Known = lambda line: False, names: tuple[str, ...] = NAMES) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network, factor, seed and method."""
    ways = {"one shot": ONE_SHOT, "default": Calibration()}
    cases = [
        (way, name, seed) for seed in SEEDS for way in ways for name in names if way == "one shot" or name in TUNED
    ]
    for way, name, seed in tqdm(cases, desc="budget", unit="network", leave=False, disable=None):
        network = None
        for factor in (FACTOR, *MORE.get(name, ())):
            place = {"network": name, "seed": seed, "budget": f"{factor}x", "settings": digest([BITS, NEAR, 1])}
            if not known(place | {"method": f"{BEST}, {way}"}):
                network = network or Network(SUBJECTS[name], seed)
                yield from _measured(network, factor, way, ways[way], place | {"commit": commit()})


def _measured(network: Network, factor: int, way: str, calibration: Calibration, place: Line) -> Iterator[Line]:
    limit = size_of(network.dense) / factor
    try:
        ours = network.small(calibration, budget=Budget(factor=factor))
    except SettingsError as error:
        yield place | {"method": f"{BEST}, {way}", "refused": str(error)}
        return
    right = network.right(ours)
    dense = float(network.right(network.dense).mean())

    def line(method: str, model: nn.Module, **more: Any) -> Line:
        found = network.right(model)
        told = {"accuracy": float(found.mean()), "bytes": size_of(model), "distance": network.distance(model)}
        differs = float((found - right).square().mean())
        return place | {"method": method} | told | {"differs": differs, "tested": len(found), "dense": dense} | more

    yield line(f"{OURS}, {way}", ours, limit=limit)
    found: dict[int, tuple[float, nn.Module]] = {}
    for bits in BITS:
        if (fit := pair(network, bits, limit)) is not None:
            found[bits] = fit
            if way == "one shot":
                yield line(f"{bits} bits, {way}", fit[1], sparsity=fit[0])
    if not found:
        return
    best = min(found, key=lambda bits: network.distance(found[bits][1]))
    sparsity, model = found[best]
    if way == "default":
        model = network.small(calibration, prune=Prune(sparsity), quantize=Quantize(best))
    yield line(f"{BEST}, {way}", model, sparsity=sparsity, bits=best)


def _noise(ours: Line, other: Line) -> float:
    gain = ours["accuracy"] - other["accuracy"]
    return math.sqrt(max(other["differs"] - gain**2, 0.0) / (other["tested"] - 1))


def table(found: list[Line]) -> str:
    """Accuracies of each network and size, the gains, and how often which is better."""
    rows, verdicts = [], {}
    for name, budget in dict.fromkeys((line["network"], line["budget"]) for line in found):
        for way in ("one shot", "default"):
            here = [line for line in found if (line["network"], line["budget"]) == (name, budget)]
            by = {
                seed: {line["method"]: line for line in here if line["seed"] == seed and "refused" not in line}
                for seed in SEEDS
            }
            seeds = [seed for seed in SEEDS if f"{BEST}, {way}" in by[seed]]
            if not seeds:
                continue
            ours = [by[seed][f"{OURS}, {way}"] for seed in seeds]
            known = [by[seed][f"{BEST}, {way}"] for seed in seeds]
            pairs = [[by[s][m] for m in by[s] if m.endswith("bits, one shot")] for s in seeds]
            hindsight = [max(each, key=lambda line: line["accuracy"]) for each in pairs] if way == "one shot" else []
            gains = [a["accuracy"] - b["accuracy"] for a, b in zip(ours, known, strict=True)]
            noise = math.sqrt(sum(_noise(a, b) ** 2 for a, b in zip(ours, known, strict=True))) / len(seeds)
            gain = sum(gains) / len(gains)
            verdict = "better" if gain > noise else "worse" if gain < -noise else "level"
            verdicts[name, budget, way] = verdict
            accuracies = [[100 * line["accuracy"] for line in lines] for lines in (ours, known, hindsight)]
            rows.append(
                [
                    name,
                    budget,
                    way,
                    tables.spread([100 * line["dense"] for line in ours]),
                    *(tables.spread(each) if each else "" for each in accuracies),
                    f"{100 * gain:+.1f} ± {100 * noise:.1f}",
                    verdict,
                ]
            )
    counts = {verdict: list(verdicts.values()).count(verdict) for verdict in ("better", "level", "worse")}
    told = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    heads = ["network", "size", "way", "dense, %", "budget, %", "pair by calibration, %", "pair by test, %"]
    text = tables.markdown([*heads, "gain, points", "by one standard error"], rows)
    return f"{text}\n\nOf {len(verdicts)} cases, the budget is {told}."
