"""What the default of `compress` costs beside one shot, and what it brings.

Both run on the same networks and calibration data, one after the other in one process; seconds are of the processor.
*Expected* is what equation 12 of docs/theory.md lets expect of the one-shot result, from the calibration data and
without labels, beside what is *lost* on the test data. The default does not tune where little is expected to be lost;
then it takes what one shot takes, and two passes over the data more.
"""

import math
from collections.abc import Iterator
from functools import partial

from torch import nn

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.effort import measured
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Subject
from sbc_plugin import Calibration, Report, compress
from sbc_plugin.calibration.counting import FREE, LITTLE, MOST, MOST_FOR_LITTLE, PRODUCT
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression.objective import expected_losses, targets
from sbc_plugin.compression.plan import SCALE_STEPS, TUNING_STEPS
from sbc_plugin.compression.run import NEGLIGIBLE
from sbc_plugin.demo.run import ONE_SHOT, Budget

SEEDS = (0, 1, 2)
BUDGETS = {
    "digits": ("70 % sparse", "90 % sparse", "95 % sparse", "97 % sparse", "2 bits", "90 % sparse, 4 bits"),
    "recurrent": ("80 % sparse", "90 % sparse", "95 % sparse", "2 bits", "90 % sparse, 4 bits"),
    "2fc-events": ("95 % sparse", "98 % sparse", "2 bits"),
    "conv-events": ("80 % sparse", "90 % sparse", "95 % sparse", "2 bits"),
    "vgg-static": ("80 % sparse", "95 % sparse", "2 bits"),
    "sew-resnet": ("80 % sparse", "95 % sparse", "2 bits"),
    "ms-resnet": ("80 % sparse", "95 % sparse", "2 bits"),
    "spike-transformer": ("80 % sparse", "90 % sparse", "2 bits"),
    "braille": ("70 % sparse", "90 % sparse"),
}
WAYS = {"one shot": ONE_SHOT, "default": Calibration()}


def lines(known: Known = lambda line: False, names: tuple[str, ...] = tuple(BUDGETS)) -> Iterator[Line]:
    """Measure what is not known yet: a line of each network, budget, seed and way."""
    settings = digest([str(WAYS), TUNING_STEPS, SCALE_STEPS, NEGLIGIBLE, LITTLE, MOST, MOST_FOR_LITTLE, FREE, PRODUCT])
    for name in names:
        subject = SUBJECTS[name]
        for budget in (budget for budget in subject.case.budgets if budget.title in BUDGETS[name]):
            for seed in SEEDS:
                line = {"network": name, "budget": budget.title, "seed": seed, "settings": settings}
                if not all(known(line | {"method": way}) for way in WAYS):
                    yield from _measured(subject, budget, line)


def _measured(subject: Subject, budget: Budget, line: Line) -> Iterator[Line]:
    case, parts, dense = subject.case, subject.parts(line["seed"]), subject.trained(line["seed"])
    data = list(parts.calibration.batches(subject.batch))
    line |= {"dense": case.accuracy(dense, parts.test), "commit": commit()}

    def made(calibration: Calibration) -> tuple[nn.Module, Report]:
        return compress(
            dense, data, prune=budget.prune, quantize=budget.quantize, calibration=calibration, forward=case.forward,
            progress=False,
        )  # fmt: skip

    for way, calibration in WAYS.items():
        (model, report), effort = measured(partial(made, calibration))
        prune = report.settings["prune"]
        line |= {
            "method": way,
            "accuracy": case.accuracy(model, parts.test),
            "tuning": report.settings["calibration"].tuning,
        }
        line |= {"processor_seconds": effort.processor_seconds, "rounds": prune.rounds if prune else None}
        if way == "one shot":
            aims = targets(Runner.of(dense, data[0], case.forward), data, classes=True)
            losses = expected_losses(Runner.of(model, data[0], case.forward), aims)
            line |= {"expected": None if losses is None else float(losses.mean())}
        yield dict(line)


def table(found: list[Line]) -> str:
    """Each network and budget: seconds of both ways, their ratio, and what each loses."""
    rows, ratios = [], []
    for network, title in dict.fromkeys((line["network"], line["budget"]) for line in found):
        here = [line for line in found if (line["network"], line["budget"]) == (network, title)]
        ways = {way: {line["seed"]: line for line in here if line["method"] == way} for way in WAYS}
        seeds = sorted(set(ways["one shot"]) & set(ways["default"]))
        if not seeds:  # of a run that was interrupted
            continue
        alone, default = ([ways[way][seed] for seed in seeds] for way in WAYS)
        seconds = [tables.mean([line["processor_seconds"] for line in lines]) for lines in (alone, default)]
        ratios.append(seconds[1] / seconds[0])
        lost = [[100 * (line["dense"] - line["accuracy"]) for line in lines] for lines in (alone, default)]
        gained = [one - other for one, other in zip(*lost, strict=True)]
        taken = sorted({"some" if line["tuning"] is None else str(line["tuning"]) for line in default})
        rows.append(
            [
                network,
                title,
                *(f"{each:.1f}" for each in seconds),
                f"{ratios[-1]:.1f}",
                "/".join(taken),
                tables.spread([100 * line["expected"] for line in alone]),
                *(tables.spread(each) for each in lost),
                tables.spread(gained),
            ]
        )
    heads = [
        "network",
        "budget",
        "one shot, s",
        "default, s",
        "ratio",
        "steps",
        "expected",
        "lost, one shot",
        "lost, default",
    ]
    mean = math.exp(tables.mean([math.log(ratio) for ratio in ratios]))
    text = f"The geometric mean of the ratios is {mean:.1f}, the largest {max(ratios):.1f}."
    return f"{tables.markdown([*heads, 'gain'], rows)}\n\n{text}"
