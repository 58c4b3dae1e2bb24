"""One line for each seed, budget and method of a subject: what compression costs in accuracy and spikes, and saves."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks.effort import Effort, measured
from integration_tests.benchmarks.methods import METHODS, Bench
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import Subject
from sbc_plugin import Recording, compare, record_spikes
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import Budget
from sbc_plugin.errors import CompressionError
from sbc_plugin.evaluation.comparison import Comparison

DENSE = "-"  # the budget of the dense network's line
Known = Callable[[Line], bool]


def lines(
    subject: Subject,
    known: Known = lambda line: False,
    *,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    budgets: Sequence[str] | None = None,
) -> Iterator[Line]:
    """Measure what is not known yet, seed after seed.

    Args:
        subject: what to compress.
        known: whether there is a line with the same keys already: case, seed, budget, method and settings.
        seeds: all of the subject's if None.
        methods: of ``METHODS``.
        budgets: titles of some of the subject's; all if None.
    """
    for seed in subject.case.seeds if seeds is None else seeds:
        dense, parts = subject.trained(seed), subject.parts(seed)
        base = {"case": subject.name, "seed": seed}
        sizes = [len(parts.calibration), len(parts.test), subject.compared, subject.batch]
        mark = digest([weights_digest(dense), *sizes])
        open_tasks = [
            (task, budget)
            for budget in subject.case.budgets
            if budgets is None or budget.title in budgets
            for method in methods
            if METHODS[method].takes(budget) and seed in subject.seeds_of(method)
            if not known(task := base | _task(budget, method, mark))
        ]
        first = base | {"budget": DENSE, "method": "none", "settings": mark}
        if not open_tasks and known(first):
            continue
        judge = Judge.of(subject, dense, parts.test)
        bench = Bench(dense, parts.calibration.batches(subject.batch), subject.case.forward)
        if not known(first):
            yield _line(first | {"bits": 32}, dense, Effort(), judge)
        for task, budget in tqdm(open_tasks, desc=f"{subject.name}, seed {seed}", leave=False, disable=None):
            try:
                model, effort = METHODS[task["method"]].make(bench, budget)
            except CompressionError as error:
                yield task | {"failed": f"{type(error).__name__}: {error}", "commit": commit()}
                continue
            yield _line(task | {"bits": budget.quantize.bits if budget.quantize else 32}, model, effort, judge)


@dataclass(frozen=True)
class Judge:
    """What compressed networks are measured with; the dense one runs once.

    Attributes:
        subject: for accuracy and forward.
        test: sequences that nothing was fitted to.
        batches: of them, those that spikes are compared on.
        recording: of the dense network on these.
    """

    subject: Subject
    test: Events
    batches: list[Any]
    recording: Recording

    @classmethod
    def of(cls, subject: Subject, dense: nn.Module, test: Events) -> "Judge":
        """Run the dense network."""
        batches = test.subset(slice(0, subject.compared)).batches(subject.batch)
        return cls(subject, test, batches, record_spikes(dense, batches, forward=subject.case.forward))

    def measure(self, model: nn.Module) -> Line:
        """Accuracy on all test sequences, spikes and costs on some."""
        comparison = compare(self.recording, model, self.batches, forward=self.subject.case.forward)
        return {"accuracy": self.subject.case.accuracy(model, self.test, self.subject.batch)} | figures(comparison)


def figures(comparison: Comparison) -> Line:
    """What a comparison says about the compressed model; means over neuron modules."""
    neurons, cost = comparison.neurons, comparison.compressed
    count = max(len(neurons), 1)
    return {
        "distance": comparison.distance,
        "rate_distance": sum(neuron.rate_distance for neuron in neurons) / count,
        "dead": sum(neuron.dead for neuron in neurons) / count,
        "sparsity": cost.sparsity,
        "operations": cost.operations.acs + cost.operations.macs,
        "energy": cost.energy,
        "packed_bytes": cost.packed_bytes,
    }


def _task(budget: Budget, method: str, mark: str) -> Line:
    settings = digest([method, METHODS[method].settings(budget), mark])
    return {"budget": budget.title, "method": method, "settings": settings}


def _line(line: Line, model: nn.Module, effort: Effort, judge: Judge) -> Line:
    found, spent = measured(lambda: judge.measure(model))
    return line | found | asdict(effort) | {"measuring_seconds": spent.seconds, "commit": commit()}


def weights_digest(model: nn.Module) -> str:
    state = model.state_dict()
    return digest([[name, hashlib.sha256(state[name].numpy().tobytes()).hexdigest()] for name in sorted(state)])


def digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
