"""How long tuning's first steps are, on networks of the development half: points of accuracy below the dense network.

*0.05* and *0.015* are fixed lengths, in root mean squares of a layer's weights. *begins again* is what tuning does: it
starts with 0.05, and where the first 15 steps lead more than three times as far away from the dense spikes as the
solvers were, it puts the weights back and takes steps of a quarter of the length. *In the end* is the distance after
tuning over that before it, on the pieces that decide; 1 where tuning took everything back.
"""

from collections.abc import Callable, Iterator
from unittest.mock import patch

from torch import nn
from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest, weights_digest
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Subject
from sbc_plugin import Calibration, Prune, compress
from sbc_plugin.compression import run, tuning

SEEDS, STEPS = (0, 1, 2), 200
NETWORKS = {
    "clothes-subtract": (0.8, 0.9),
    "digits-adaptive": (0.8, 0.9),
    "digits-refractory": (0.8, 0.9),
    "recurrent": (0.8, 0.9),
    "digits": (0.9, 0.97),
}
NEVER = float("inf")
WAYS = {"0.05": (0.05, NEVER), "0.015": (0.015, NEVER), "begins again": (tuning.STEP, tuning.FAR)}


def lines(known: Known = lambda line: False, networks: tuple[str, ...] = tuple(NETWORKS)) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network, sparsity, seed and way."""
    for name in networks:
        subject = SUBJECTS[name]
        for seed in tqdm(SEEDS, desc=f"step length, {name}", leave=False, disable=None):
            dense = subject.trained(seed)
            mark = [weights_digest(dense), STEPS, tuning.PROBED, tuning.SHORTER]
            for sparsity in NETWORKS[name]:
                for way, (step, far) in WAYS.items():
                    line = {"network": name, "budget": f"{100 * sparsity:g} % sparse", "seed": seed, "method": way}
                    line["settings"] = digest([*mark, step, far])
                    if not known(line):
                        yield line | {"commit": commit()} | _measured(subject, dense, seed, sparsity, step, far)


def _measured(subject: Subject, dense: nn.Module, seed: int, sparsity: float, step: float, far: float) -> Line:
    case, parts, shares = subject.case, subject.parts(seed), list[float]()
    tune: Callable[..., tuning.Tuned] = tuning.tune

    def noted(*arguments: object) -> tuning.Tuned:
        tuned = tune(*arguments)
        shares.append(tuned.after / tuned.before if tuned.before else 1.0)
        return tuned

    with patch.object(tuning, "STEP", step), patch.object(tuning, "FAR", far), patch.object(run, "tune", noted):
        small, _ = compress(
            dense, parts.calibration.batches(subject.batch), prune=Prune(sparsity), forward=case.forward,
            calibration=Calibration(tuning=STEPS), progress=False,
        )  # fmt: skip
    lost = case.accuracy(dense, parts.test) - case.accuracy(small, parts.test)
    return {"lost": lost, "share": shares[0]}


def table(found: list[Line]) -> str:
    """A row of each network and sparsity, and of their mean."""
    rows, means = [], list[list[float]]()
    for network, budget in dict.fromkeys((line["network"], line["budget"]) for line in found):
        here = [line for line in found if (line["network"], line["budget"]) == (network, budget)]
        by_way = [[line for line in here if line["method"] == way] for way in WAYS]
        if not all(by_way):  # of a run that was interrupted
            continue
        lost = [[100 * line["lost"] for line in mine] for mine in by_way]
        means.append([tables.mean(each) for each in lost])
        ends = [f"{tables.mean([line['share'] for line in mine]):.2f}" for mine in by_way]
        rows.append([network, budget, *(tables.spread(each) for each in lost), *ends])
    together = [tables.spread(list(each)) for each in zip(*means, strict=True)]
    heads = ["network", "budget", *(f"lost, {way}" for way in WAYS), *(f"in the end, {way}" for way in WAYS)]
    return tables.markdown(heads, [*rows, ["*mean*", "", *together, *[""] * len(WAYS)]])
