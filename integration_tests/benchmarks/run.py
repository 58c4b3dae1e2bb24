"""Run the benchmark's cases; then make ``docs/results.md``, its figures and the README's table from their lines.

make bench                       # all cases, two at a time: what has no line yet
make bench CASE=digits           # one
make bench QUICK=1               # one seed, few budgets, less test data; prints a table, writes nothing
python -m integration_tests.benchmarks.run --tables           # only write the pages again
python -m integration_tests.benchmarks.run digits --seeds 0 --methods sbc obc --again     # measure these anew
"""

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from integration_tests.benchmarks import (
    ablations,
    accumulation,
    accuracy,
    budget,
    default_time,
    few_spikes,
    finetuning,
    inspection,
    knowing_time,
    page,
    peers,
    records,
    retraining,
    scale,
    searching,
    step_length,
    sweeps,
    tables,
    zoo,
)
from integration_tests.benchmarks.methods import METHODS
from integration_tests.benchmarks.page import SPECIAL
from integration_tests.benchmarks.subjects import SUBJECTS, Few, Subject
from sbc_plugin.errors import CheckpointError

RESUMED = {
    "ablations": ablations.lines,
    "retraining": retraining.lines,
    "finetuning": finetuning.lines,
    "default_time": default_time.lines,
    "few_spikes": few_spikes.lines,
    "scale": scale.lines,
    "sweeps": sweeps.lines,
    "step_length": step_length.lines,
    "zoo": zoo.lines,
    "budget": budget.lines,
    "knowing_time": knowing_time.lines,
    "search": searching.lines,
    "peers": peers.lines,
    "inspection": inspection.lines,
    "accumulation": accumulation.lines,
}
# To be begun first, so that short ones are left for the end, when a processor would otherwise wait for a long one.
LONG = ("2fc-events", "retraining", "digits", "ablations", "braille", "spike-transformer", "conv-events", "sew-resnet")
QUICK = ("95 % sparse", "2 bits", "90 % sparse, 4 bits")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys([*SUBJECTS, *RESUMED, *SPECIAL]))
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)}; all if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these")
    parser.add_argument("--budgets", nargs="+", metavar="TITLE", help="only these, e.g. '95 %% sparse'")
    parser.add_argument("--again", action="store_true", help="measure anew what has a line already")
    parser.add_argument("--quick", action="store_true", help="one seed, few budgets; prints, and writes nothing")
    parser.add_argument("--tables", action="store_true", help="only write the pages from the lines that are there")
    parser.add_argument("--no-pages", action="store_true", help="measure only")
    parser.add_argument("--processes", type=int, default=2, help="cases at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of all processes together (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in names]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(names)}")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    cases, failed = [] if options.tables else options.cases or list(SUBJECTS if options.quick else names), 0
    if len(cases) > 1 and options.processes > 1 and not options.quick:
        failed = _apart(cases, options, sys.argv[1:] if arguments is None else arguments)
    else:
        for case in cases:
            _run(case, options)
    if not (options.quick or options.no_pages):
        page.write()
    return failed


def _apart(cases: list[str], options: argparse.Namespace, arguments: list[str]) -> int:
    """Each case in a process of its own, some at a time; how many failed."""
    program = [sys.executable, "-m", "integration_tests.benchmarks.run"]
    others = [argument for argument in arguments if argument not in cases]
    others += ["--no-pages", "--threads", str(max(1, options.threads // options.processes))]

    def run(case: str) -> bool:
        return subprocess.run([*program, case, *others], check=False).returncode != 0

    with ThreadPoolExecutor(options.processes) as pool:
        return sum(pool.map(run, long_first(cases)))


def long_first(cases: list[str]) -> list[str]:
    """In the order in which they are begun."""
    return sorted(cases, key=lambda case: LONG.index(case) if case in LONG else len(LONG))


def _run(case: str, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    try:
        if case == "scale" and options.quick:
            print(scale.table(list(scale.lines(scale=scale.Scale((scale.QUICK,), images=8)))))
        elif case in RESUMED:
            records.resume(case, RESUMED[case], again=options.again)
        elif case in SPECIAL:
            records.write(case, SPECIAL[case].lines())
        elif options.quick:
            print(quick_table(SUBJECTS[case], options.methods))
        else:
            chosen = {"seeds": options.seeds, "methods": options.methods, "budgets": options.budgets}
            records.resume(case, partial(accuracy.lines, SUBJECTS[case], **chosen), again=options.again)
    except (FileNotFoundError, CheckpointError) as error:
        print(f"{case}: skipped, {error}", file=sys.stderr)
    else:
        print(f"{case}: {(time.perf_counter() - started) / 60:.1f} min", file=sys.stderr)


def quick(subject: Subject, budgets: tuple[str, ...] = QUICK, tested: int = 300) -> Subject:
    """The subject with one seed, some of its budgets and ``tested`` test sequences."""
    chosen = tuple(budget for budget in subject.case.budgets if budget.title in budgets)
    case = replace(subject.case, seeds=subject.case.seeds[:1], budgets=chosen)
    return replace(subject, case=case, parts=lambda seed: Few(subject.parts(seed), tested), compared=50)


def quick_table(subject: Subject, methods: list[str]) -> str:
    """What a quick run measures, as a table."""
    small = quick(subject)
    with tempfile.TemporaryDirectory() as folder:
        records.resume(subject.name, partial(accuracy.lines, small, methods=methods), Path(folder))
        found = records.read(subject.name, Path(folder))
    order = [accuracy.DENSE, *(budget.title for budget in small.case.budgets)]
    return f"{subject.name}\n{tables.by_method(found, order)}"


if __name__ == "__main__":
    raise SystemExit(main())
