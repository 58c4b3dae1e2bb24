"""What the benchmark compresses: the cases of ``cases.py``, the demo's digits, and the Braille recordings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from torch import nn

from integration_tests.benchmarks import braille
from integration_tests.benchmarks.cases import BY_TENSOR, CASES, JOINT, MIXED, Case, Training, budgets
from integration_tests.benchmarks.sequence_cases import SEQUENCE_CASES
from sbc_plugin.demo import digits, network
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import Budget
from sbc_plugin.settings import Prune, Quantize


class Parts(Protocol):
    """Data in three parts; ``calibration`` is a part of ``training``, ``test`` shares nothing with either."""

    @property
    def training(self) -> Events: ...
    @property
    def calibration(self) -> Events: ...
    @property
    def test(self) -> Events: ...


@dataclass(frozen=True)
class Few:
    """Data with fewer test sequences, for a quick run."""

    parts: Parts
    tested: int

    @property
    def training(self) -> Events:
        return self.parts.training

    @property
    def calibration(self) -> Events:
        return self.parts.calibration

    @property
    def test(self) -> Events:
        return self.parts.test.subset(slice(0, self.tested))


@dataclass(frozen=True)
class Subject:
    """A case as the runner takes it.

    Attributes:
        case: for its name, title, seeds, budgets, forward and accuracy.
        trained: the dense network of a seed.
        parts: the data of a seed; FileNotFoundError where there are none.
        compared: how many test sequences spikes are compared on; accuracy is measured on all.
        batch: sequences at once.
        limits: method -> its seeds, where not all of the case's.
    """

    case: Case
    trained: Callable[[int], nn.Module]
    parts: Callable[[int], Parts]
    compared: int = 200
    batch: int = 100
    limits: dict[str, tuple[int, ...]] | None = None

    @property
    def name(self) -> str:
        """Of the case, and of its file of results."""
        return self.case.name

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds that a method is measured on."""
        return (self.limits or {}).get(method, self.case.seeds)


EVERYTHING = (
    Budget("2:4", "magnitude", prune=Prune(0.5, pattern="2:4")),
    Budget("4 bits a tensor", "rtn", quantize=Quantize(4, granularity="tensor")),
    BY_TENSOR,
    MIXED,
    JOINT,
)
# For a recurrent net: its largest weights are those that come back most often, so none is clipped.
FINE = Budget("3 bits, zero point", "rtn", quantize=Quantize(3, scale="absmax", symmetric=False))
THREE_MIXED = Budget("3 bits on average", "rtn", quantize=Quantize(3, allocation="loss"))


def of_case(case: Case) -> Subject:
    """One of ``cases.py``: its data are the same for all seeds."""
    load = cache(case.data)
    return Subject(case, case.trained, lambda seed: load())


def of_digits() -> Subject:
    """The demo's networks."""
    case = Case(
        name="digits",
        title="a small convolutional network, scikit-learn's digits as saccade events, T = 20",
        build=network.build,
        data=digits.load,  # type: ignore[arg-type]
        shape=(2, digits.SIZE, digits.SIZE),
        seeds=(0, 1, 2, 3, 4),
        budgets=(*budgets((50, 70, 80, 90, 95, 97, 98), (8, 4, 3, 2)), *EVERYTHING),
        training=Training(network.EPOCHS, network.BATCH, network.LEARNING_RATE, network.LOGITS_PER_SPIKE),
    )
    load = cache(digits.load)
    return Subject(case, network.pretrained, lambda seed: load())


def of_braille() -> Subject:
    """The recurrent network that NIR's authors trained; a seed draws the half of the recordings to calibrate with."""
    case = Case(
        name="braille",
        title="12-38-7, recurrent, Braille letters under a robot's finger, T = 256",
        build=lambda: braille.network(braille.folder()),
        data=partial(braille.halves, 0),
        shape=(braille.TAXELS,),
        seeds=tuple(range(6)),
        budgets=(*budgets((70, 80, 90), (4, 3)), FINE, THREE_MIXED, JOINT),
        training=Training(epochs=0),
    )
    return Subject(case, lambda seed: case.build(), cache(braille.halves), compared=100)


SUBJECTS = {subject.name: subject for subject in (of_digits(), *map(of_case, (*CASES, *SEQUENCE_CASES)), of_braille())}
