"""One choice of the method varied at a time, at a sparsity where it counts, on the networks of the benchmark.

Each variant is the package with one setting changed, or, where that is no setting of the package, the published method
(``published.py``) with one part exchanged. All are measured as the cases are, on the same test sequences.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks import other_data, surrogate
from integration_tests.benchmarks.accuracy import Judge, Known, digest, weights_digest
from integration_tests.benchmarks.methods import all_settings
from integration_tests.benchmarks.published import SETTINGS, Published
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Few, Parts, Subject
from sbc_plugin import compress
from sbc_plugin.core.allocation import allocate_zeros
from sbc_plugin.core.kernels import Kernel, delta, iaf
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import Budget
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration, Prune
from sbc_plugin.solving import saliency

WANTED = {"digits": 0.95, "2fc-events": 0.97, "conv-events": 0.95}  # network -> a sparsity where methods differ
SPARSITY = {name: sparsity for name, sparsity in WANTED.items() if name in SUBJECTS}
NARROW = tuple(name for name in SPARSITY if name != "2fc-events")  # greedy OBS on 2,312 inputs takes minutes a variant
SEEDS = (0, 1, 2)
TESTED = 1000  # sequences


@dataclass
class Ground:
    """A dense network with its data, for all variants of a seed.

    Attributes:
        subject: which.
        seed: of the network, and of what variants draw.
    """

    subject: Subject
    seed: int

    @cached_property
    def dense(self) -> nn.Module:
        """The network."""
        return self.subject.trained(self.seed)

    @cached_property
    def parts(self) -> Parts:
        """Its data."""
        return Few(self.subject.parts(self.seed), TESTED)

    @property
    def prune(self) -> Prune:
        """The budget of every variant."""
        return Prune(SPARSITY[self.subject.name])

    def compressed(
        self, method: str = "sbc", events: Events | None = None, calibration: Calibration | None = None
    ) -> nn.Module:
        """By the package, with other calibration data or settings."""
        batches = (self.parts.calibration if events is None else events).batches(self.subject.batch)
        chosen = {} if calibration is None else {"calibration": calibration}
        forward = self.subject.case.forward
        return compress(
            self.dense, batches, method=method, prune=self.prune, forward=forward, progress=False, **chosen
        )[0]

    def published(self, change: Callable[[SpikingLayer], SpikingLayer] = lambda layer: layer) -> Published:
        """The published method, calibrated and ordered, with layers changed."""
        batches = self.parts.calibration.batches(self.subject.batch)
        method = Published(self.dense, batches, self.subject.case.forward, change)
        method.calibrate()
        method.order()
        return method

    @cached_property
    def unchanged(self) -> Published:
        """The published method as it is."""
        return self.published()


@dataclass(frozen=True)
class Variant:
    """One point of a figure.

    Attributes:
        series: which of the figure's lines it belongs to.
        value: its place: a number, or a name.
        make: the compressed network.
        steps: of the test sequences; None = all.
        networks: that it can be made for.
    """

    series: str
    value: float | str
    make: Callable[[Ground], nn.Module]
    steps: int | None = None
    networks: tuple[str, ...] = tuple(SPARSITY)


def fewer(ground: Ground, per_class: float, method: str) -> nn.Module:
    """Calibrated on so many sequences for each class, at least one in all."""
    classes = int(ground.parts.test.labels.max()) + 1
    count = max(1, round(per_class * classes))
    return ground.compressed(method, ground.parts.calibration.subset(slice(0, count)))


def elsewhere(ground: Ground, change: Callable[[Events, torch.Generator], Events], method: str) -> nn.Module:
    """Calibrated on changed data."""
    generator = torch.Generator().manual_seed(ground.seed)
    return ground.compressed(method, change(ground.parts.calibration, generator))


def with_tau(factor: float, layer: SpikingLayer) -> SpikingLayer:
    """The layer with ``factor`` times each stage's time constant: decay 1 - 1 / tau becomes 1 - 1 / (factor tau)."""
    decays = tuple((1 - (1 - decay) / factor).clamp_min(0) for decay in layer.kernel.decays)
    return replace(layer, kernel=replace(layer.kernel, decays=decays))


def with_kernel(kernel: Kernel, layer: SpikingLayer) -> SpikingLayer:
    """The layer with another impulse response."""
    return replace(layer, kernel=kernel)


def with_synapse(layer: SpikingLayer) -> SpikingLayer:
    """The layer as if a synapse with the membrane's own time constant stood before it."""
    return replace(layer, kernel=layer.kernel.then(layer.kernel))


def changed(ground: Ground, change: Callable[[SpikingLayer], SpikingLayer]) -> nn.Module:
    """The published method with its layers changed."""
    return ground.published(change).compress(ground.prune)


def with_surrogate(ground: Ground, width: float | None) -> nn.Module:
    """The published method with a surrogate derivative of this width, a fraction of the threshold; None = constant."""
    if width is None:
        return ground.unchanged.compress(ground.prune)
    batches = ground.parts.calibration.batches(ground.subject.batch)
    method = Published(ground.dense, batches, ground.subject.case.forward, surrogate.by_row)
    surrogate.calibrate(method, width)
    method.order()
    return method.compress(ground.prune)


def allocated(ground: Ground, method: str, exponent: float = 2.0) -> nn.Module:
    """The published method with the budget dealt in another way."""
    published = ground.unchanged
    layers = published.layers_of(ground.dense)
    saliencies = None
    if method == "loss":
        hessians = published.hessians
        saliencies = {
            layer.name: saliency(layer, layer.weight(), hessians[layer.name], SETTINGS.damping) for layer in layers
        }
    weights = {layer.name: layer.weight() for layer in layers}
    sparsity = ground.prune.sparsity
    zeros = allocate_zeros(weights, sparsity, method=method, exponent=exponent, saliencies=saliencies)
    return published.compress(ground.prune, zeros=zeros)


def shorter(ground: Ground, steps: int) -> nn.Module:
    """Calibrated on the first steps of each sequence."""
    calibration = ground.parts.calibration
    return ground.compressed(events=Events(calibration.x[:steps], calibration.labels))


def _calibration(**settings: Any) -> Callable[[Ground], nn.Module]:
    return partial(Ground.compressed, calibration=Calibration(**settings))


BOTH = {"sbc": "SBC", "obc": "M = I"}
ELSEWHERE = {
    "training data": lambda events, generator: events,
    "half of the classes": other_data.half_of_the_classes,
    "rate-coded": other_data.rate_coded,
    "noise": other_data.noise,
}
ABLATIONS: dict[str, tuple[str, tuple[Variant, ...]]] = {
    "samples": (
        "calibration sequences a class",
        tuple(
            Variant(title, value, partial(fewer, per_class=value, method=method))
            for method, title in BOTH.items()
            for value in (0.1, 0.3, 1.0, 3.0, 10.0)
        ),
    ),
    "distribution": (
        "calibrated on",
        tuple(
            Variant(title, name, partial(elsewhere, change=change, method=method))
            for method, title in BOTH.items()
            for name, change in ELSEWHERE.items()
        ),
    ),
    "surrogate": (
        "width of the surrogate derivative, thresholds",
        tuple(
            Variant("SBC as published", name, partial(with_surrogate, width=width), networks=("digits",))
            for name, width in {"constant": None, "1": 1.0, "0.3": 0.3, "0.1": 0.1}.items()
        ),
    ),
    "kernel": (
        "kernel of the Hessian",
        tuple(
            Variant("SBC as published", name, partial(changed, change=change), networks=NARROW)
            for name, change in {
                "M = I": partial(with_kernel, delta()),
                "tau / 2": partial(with_tau, 0.5),
                "tau": partial(with_tau, 1.0),
                "2 tau": partial(with_tau, 2.0),
                "4 tau": partial(with_tau, 4.0),
                "no leak": partial(with_kernel, iaf()),
                "synapse x membrane": with_synapse,
            }.items()
        ),
    ),
    "order": (
        "alpha of the sequential target",
        (
            *(Variant("one-shot", alpha, _calibration(order="one-shot")) for alpha in (0.0, 1.0)),
            *(
                Variant("sequential", alpha, _calibration(order="sequential", alpha=alpha))
                for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)
            ),
        ),
    ),
    "damping": (
        "damping, of the mean diagonal",
        tuple(
            Variant(title, value, partial(Ground.compressed, method=method, calibration=Calibration(damping=value)))
            for method, title in BOTH.items()
            for value in (0.0001, 0.001, 0.01, 0.1, 1.0)
        ),
    ),
    "allocation": (
        "how layers share the budget",
        tuple(
            Variant("SBC as published", name, partial(allocated, **settings), networks=NARROW)
            for name, settings in {
                "LAMP, exponent 1": {"method": "lamp", "exponent": 1.0},
                "LAMP, exponent 2": {"method": "lamp", "exponent": 2.0},
                "LAMP, exponent 3": {"method": "lamp", "exponent": 3.0},
                "uniform": {"method": "uniform"},
                "by loss": {"method": "loss"},
            }.items()
        ),
    ),
    "steps": (
        "time steps of the calibration sequences",
        tuple(
            Variant(f"run for {tested} steps", float(steps), partial(shorter, steps=steps), steps=tested)
            for tested in (20, 10)
            for steps in (4, 6, 10, 15, 20)
        ),
    ),
}


def lines(known: Known = lambda line: False, networks: tuple[str, ...] = tuple(SPARSITY)) -> Iterator[Line]:
    """Measure what is not known yet: a line for each network, ablation, variant and seed."""
    for name in networks:
        for seed in SEEDS:
            ground = Ground(SUBJECTS[name], seed)
            mark = [weights_digest(ground.dense), TESTED, all_settings(Budget("", "", ground.prune))]
            tasks = [
                ({"network": name, "ablation": ablation, "value": variant.value, "seed": seed}, variant)
                for ablation, (_, variants) in ABLATIONS.items()
                for variant in variants
                if name in variant.networks
            ]
            judges: dict[int | None, Judge] = {}
            for place, variant in tqdm(tasks, desc=f"ablations, {name}, seed {seed}", leave=False, disable=None):
                task = place | {"budget": f"{100 * ground.prune.sparsity:g} % sparse", "method": variant.series}
                task["settings"] = digest([*mark, variant.steps])
                if known(task):
                    continue
                if variant.steps not in judges:
                    test = ground.parts.test
                    test = test if variant.steps is None else Events(test.x[: variant.steps], test.labels)
                    judges[variant.steps] = Judge.of(ground.subject, ground.dense, test)
                judge = judges[variant.steps]
                dense = judge.subject.case.accuracy(ground.dense, judge.test, judge.subject.batch)
                yield task | judge.measure(variant.make(ground)) | {"dense": dense, "commit": commit()}
