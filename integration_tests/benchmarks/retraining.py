"""What retraining buys: iterative magnitude pruning, the lottery-ticket way, against one shot and a little fine-tuning.

Iterative pruning removes the same fraction of the weights that are left in each round, smallest first, layers by LAMP,
and trains what is left with labels after each, for two thirds of the epochs that the dense network had. Fine-tuning
trains the weights that SBC kept, with fixed zeros. Both use the training's own schedule and learning rate.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Judge, Known, digest, weights_digest
from integration_tests.benchmarks.cases import Case
from integration_tests.benchmarks.effort import measured
from integration_tests.benchmarks.methods import METHODS, Bench
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Parts
from integration_tests.benchmarks.train import fit
from sbc_plugin.demo.run import Budget
from sbc_plugin.settings import Prune

SPARSITIES = {
    "digits": (0.95, 0.98),
    "2fc-events": (0.95, 0.98),
    "letters-lif": (0.8, 0.9),
    "letters-adaptive": (0.8, 0.9),
    "mnist-integrators": (0.9, 0.95),
    "mnist-subtract": (0.8, 0.9),
    "clothes-subtract": (0.8, 0.9),
    "digits-adaptive": (0.8, 0.9),
}
SEEDS = (0, 1, 2)
ROUNDS, SHARE = 6, 2 / 3  # how many; of the training's epochs, in each
FINE_TUNING = (1, 5)  # epochs
SBC, TUNED = "SBC", "SBC, tuned"
SHOWN = {SBC: METHODS["sbc"].title}
ITERATIVE = f"iterative magnitude, {ROUNDS} rounds"


def frozen_zeros(model: nn.Module) -> Callable[[], None]:
    """A function that puts the weights that are zero now back to zero; biases and norms are free."""
    zeros = [(parameter, parameter.detach() == 0) for parameter in model.parameters() if parameter.dim() > 1]

    def put_back() -> None:
        with torch.no_grad():
            for parameter, zero in zeros:
                parameter.masked_fill_(zero, 0.0)

    return put_back


def trained_further(case: Case, model: nn.Module, parts: Parts, seed: int, epochs: int) -> nn.Module:
    """``model``, in place, after more epochs with fixed zeros."""
    recipe = replace(case.training, epochs=epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit(replace(case, training=recipe), model, parts.training, f"{case.name}, more", frozen_zeros(model))
    return model


def pruned(case: Case, model: nn.Module, parts: Parts, sparsity: float, method: str = "sbc") -> nn.Module:
    """A pruned copy, by the benchmark's row of that name."""
    batches = parts.calibration.batches(10)[:1] if method == "magnitude" else parts.calibration.batches(100)
    return METHODS[method].make(Bench(model, batches, case.forward), Budget("", "", Prune(sparsity)))[0]


def fine_tuned(case: Case, model: nn.Module, parts: Parts, seed: int, sparsity: float, epochs: int) -> nn.Module:
    """One shot, then some epochs with labels."""
    return trained_further(case, pruned(case, model, parts, sparsity), parts, seed, epochs)


def iterative(case: Case, model: nn.Module, parts: Parts, seed: int, sparsity: float) -> nn.Module:
    """Pruned by magnitude in rounds, trained after each."""
    for number in range(1, ROUNDS + 1):
        model = pruned(case, model, parts, 1 - (1 - sparsity) ** (number / ROUNDS), "magnitude")
        model = trained_further(case, model, parts, seed + number, round(SHARE * case.training.epochs))
    return model


def ways(case: Case, model: nn.Module, parts: Parts, seed: int, sparsity: float) -> dict[str, Callable[[], nn.Module]]:
    """What is compared, by title."""
    ground = (case, model, parts)
    return {
        SBC: partial(pruned, *ground, sparsity),
        TUNED: partial(pruned, *ground, sparsity, "tuned"),
        **{
            f"SBC, then {epochs} epoch{'s' * (epochs > 1)}": partial(fine_tuned, *ground, seed, sparsity, epochs)
            for epochs in FINE_TUNING
        },
        ITERATIVE: partial(iterative, *ground, seed, sparsity),
    }


def settings(method: str, sparsity: float) -> str:
    """All that a way depends on besides the network, its title and its training."""
    budget = Budget("", "", Prune(sparsity))
    if method == ITERATIVE:
        return str((sparsity, SHARE))
    return METHODS["tuned" if method == TUNED else "sbc"].settings(budget)


def lines(known: Known = lambda line: False, networks: tuple[str, ...] = tuple(SPARSITIES)) -> Iterator[Line]:
    """Measure what is not known yet: a line for each network, seed, sparsity and way."""
    for name in networks:
        subject = SUBJECTS[name]
        for seed in SEEDS:
            dense, parts = subject.trained(seed), subject.parts(seed)
            judge = Judge.of(subject, dense, parts.test)
            start = judge.measure(dense)["accuracy"]
            for sparsity in tqdm(SPARSITIES[name], desc=f"retraining, {name}, seed {seed}", leave=False, disable=None):
                mark = [weights_digest(dense), str(subject.case.training)]
                for method, work in ways(subject.case, dense, parts, seed, sparsity).items():
                    line = {"network": name, "seed": seed, "budget": f"{100 * sparsity:g} % sparse", "method": method}
                    line["settings"] = digest([*mark, settings(method, sparsity)])
                    if known(line):
                        continue
                    model, effort = measured(work)
                    yield line | judge.measure(model) | asdict(effort) | {"dense": start, "commit": commit()}


def table(found: list[Line]) -> str:
    """Accuracy and time of each way, and how often the time of one shot it takes."""
    rows = []
    for network, budget in dict.fromkeys((line["network"], line["budget"]) for line in found):
        chosen = [line for line in found if (line["network"], line["budget"]) == (network, budget)]
        shot = {line["seed"]: line for line in chosen if line["method"] == SBC}
        for method in dict.fromkeys(line["method"] for line in chosen):
            mine = [line for line in chosen if line["method"] == method]
            paired = [(line, shot[line["seed"]]) for line in mine if line["seed"] in shot]
            times = [line["processor_seconds"] / other["processor_seconds"] for line, other in paired]
            gains = [100 * (line["accuracy"] - other["accuracy"]) for line, other in paired]
            rows.append(
                [
                    f"{network}, {budget}",
                    SHOWN.get(method, method),
                    tables.spread([100 * line["accuracy"] for line in mine]),
                    tables.spread([100 * (line["dense"] - line["accuracy"]) for line in mine]),
                    tables.spread(gains) if gains and method != SBC else "",
                    f"{tables.mean([line['processor_seconds'] for line in mine]):.1f}",
                    f"{tables.mean(times):.0f}" if times else "",
                ]
            )
    heads = ["network", "way", "accuracy, %", "below dense", "above one shot", "processor s", "times one shot"]
    return tables.markdown(heads, rows)
