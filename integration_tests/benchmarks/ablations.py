"""One choice of the method varied at a time, at a sparsity where it counts, on the networks of the benchmark.

Each variant is the package with one setting changed, or, where that is no setting of the package, the published method
(``published.py``) with one part exchanged. All are measured as the cases are, on the same test sequences.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks import other_data
from integration_tests.benchmarks.accuracy import Judge, Known, digest, weights_digest
from integration_tests.benchmarks.methods import all_settings
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS
from integration_tests.benchmarks.variants import (
    SPARSITY,
    TESTED,
    Ground,
    allocated,
    changed,
    elsewhere,
    fewer,
    shorter,
    with_kernel,
    with_surrogate,
    with_synapse,
    with_tau,
)
from sbc_plugin.core.kernels import delta, iaf
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import ONE_SHOT, Budget

SEEDS = (0, 1, 2)


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


def _calibration(chosen: dict[str, Any] | None = None, **settings: Any) -> Callable[[Ground], nn.Module]:
    return partial(Ground.compressed, calibration=replace(ONE_SHOT, **settings), **(chosen or {}))


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
            for value in (0.1, 1.0, 10.0)
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
            Variant("SBC as published", name, partial(changed, change=change))
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
            Variant("one-shot", 0.0, _calibration(order="one-shot")),
            *(
                Variant("sequential", alpha, _calibration(order="sequential", alpha=alpha))
                for alpha in (0.0, 0.25, 1.0)
            ),
        ),
    ),
    "damping": (
        "damping, of the mean diagonal",
        tuple(
            Variant(title, value, _calibration({"method": method}, damping=value))
            for method, title in BOTH.items()
            for value in (0.0001, 0.01, 0.1, 1.0)
        ),
    ),
    "allocation": (
        "how layers share the budget",
        tuple(
            Variant("SBC as published", name, partial(allocated, **settings))
            for name, settings in {
                "LAMP, exponent 1": {"method": "lamp", "exponent": 1.0},
                "LAMP, exponent 2": {"method": "lamp", "exponent": 2.0},
                "LAMP, exponent 3": {"method": "lamp", "exponent": 3.0},
                "uniform": {"method": "uniform"},
                "LAMP on losses": {"method": "loss"},
            }.items()
        ),
    ),
    "tuning": (
        "gradient steps towards the dense spikes and classes",
        tuple(
            Variant(title, float(steps), _calibration(settings, tuning=steps))
            for title, settings in {
                "SBC": {"method": "sbc"},
                "M = I": {"method": "obc"},
                "magnitude": {"solver": "magnitude", "refit": False},
            }.items()
            for steps in (0, 30, 100)
        ),
    ),
    "rounds": (
        "rounds of pruning",
        tuple(
            Variant(title, float(rounds), _calibration({"method": method, "rounds": rounds}, tuning=steps))
            for title, (method, steps) in {"SBC": ("sbc", 0), "SBC, tuned": ("sbc", 200), "M = I": ("obc", 0)}.items()
            for rounds in (1, 2, 3)
        ),
    ),
    "corrections": (
        "what follows the solver",
        tuple(
            Variant(title, name, _calibration({"method": method, "rescale": name == "rescaled"}, **settings))
            for method, title in BOTH.items()
            for name, settings in {
                "nothing": {},
                "rescaled": {},
                "aligned": {"align": True},
                "tuned": {"tuning": 100},
                "aligned, tuned": {"align": True, "tuning": 100},
            }.items()
        ),
    ),
    "steps": (
        "time steps of the calibration sequences",
        tuple(
            Variant(
                f"run for {tested} steps",
                float(steps),
                partial(shorter, steps=steps),
                steps=tested,
                networks=("digits",),
            )
            for tested in (20, 10)
            for steps in (4, 10, 20)
        ),
    ),
}


def lines(known: Known = lambda line: False, networks: tuple[str, ...] = tuple(SPARSITY)) -> Iterator[Line]:
    """Measure what is not known yet: a line for each network, ablation, variant and seed."""
    for seed in SEEDS:  # first, so that an interrupted run has something of every network
        for name in networks:
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
