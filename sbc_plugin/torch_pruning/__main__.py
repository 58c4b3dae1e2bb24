"""Run a script of torch-pruning's as it is, with "sbc" among its methods: ``python -m sbc_plugin.torch_pruning``.

The script gets the name of a method that it knows in the place of "sbc", and SBC stands in the place of that method
(:mod:`.registration`). Calibration data are the first batches of a training ``DataLoader`` that the script makes.
"""

import argparse
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from sbc_plugin.torch_pruning.graph.dependency_graph import replaced
from sbc_plugin.torch_pruning.registration import REPLACEABLE, register

LINE = "sbc_plugin.torch_pruning.register(calibration_data=..., in_place_of={!r})"


class ScriptLoaders:
    """The first batches of a loader of training data that a script has made by the time they are asked for.

    A loader that shuffles comes first, then any that does not; of several the first one made. The batches are kept, so
    that every calibration sees the same ones, and the script's own random numbers go on as if nobody had looked.

    Args:
        batches: how many to take.
        in_place_of: named in the message for scripts without a loader.
    """

    def __init__(self, batches: int, in_place_of: str) -> None:
        self.batches, self.in_place_of = batches, in_place_of
        self.made: list[DataLoader[Any]] = []
        self._taken: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            SystemExit: the script has made no loader.
        """
        if not self._taken:
            self._take()
        yield from self._taken

    def watched(self) -> Any:
        """A context manager: loaders that are made inside its block are known."""
        original = DataLoader.__init__

        @wraps(original)
        def init(loader: Any, *args: Any, **named: Any) -> None:
            original(loader, *args, **named)
            self.made.append(loader)

        return replaced(DataLoader, "__init__", init)

    def _take(self) -> None:
        if not self.made:
            sys.exit(
                "sbc: the script has made no DataLoader before it prunes, so there is nothing to calibrate on; give it "
                f"one more line before it makes the pruner, {LINE.format(self.in_place_of)}, and run it by itself"
            )
        loader = next((one for one in self.made if _shuffles(one)), self.made[0])
        with _random_state_kept(loader):
            self._taken = list(islice(loader, self.batches))
        shuffled = "shuffled" if _shuffles(loader) else "not shuffled"
        print(
            f"sbc: calibrates on {len(self._taken)} batches of DataLoader {self.made.index(loader) + 1} of "
            f"{len(self.made)} that the script made ({type(loader.dataset).__name__}, {shuffled})",
            file=sys.stderr,
        )


@contextmanager
def _random_state_kept(loader: Any) -> Iterator[None]:
    own = (getattr(holder, "generator", None) for holder in (loader, getattr(loader, "sampler", None)))
    states = [(generator, generator.get_state()) for generator in own if isinstance(generator, torch.Generator)]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _shuffles(loader: Any) -> bool:
    sampler = getattr(loader, "sampler", None)
    return not isinstance(sampler, SequentialSampler) and getattr(sampler, "shuffle", True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a script; its exit codes and errors are its own.

    Args:
        arguments: of the command line; those of this process by default.

    Raises:
        SystemExit: as the script says; or with one sentence where it made no pruner that SBC could take the place of.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sbc_plugin.torch_pruning",
        description="Run a pruning script with SBC in the place of one of torch-pruning's methods.",
    )
    parser.add_argument("--in-place-of", default="l1", choices=REPLACEABLE, metavar="NAME", help="default: l1")
    parser.add_argument("--sbc-batches", type=int, default=8, metavar="N", help="batches to calibrate on; default: 8")
    parser.add_argument("script", type=Path, help="the script; `sbc` in its arguments becomes NAME")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own, such as --method sbc")
    given = parser.parse_args(arguments)
    if given.sbc_batches < 1:
        parser.error(f"--sbc-batches {given.sbc_batches}: at least 1")
    if not given.script.is_file():
        parser.error(f"there is no script {str(given.script)!r}")
    loaders = ScriptLoaders(given.sbc_batches, given.in_place_of)
    argv, path = sys.argv, sys.path[0]
    with loaders.watched(), register(loaders, in_place_of=given.in_place_of) as registration:
        try:
            sys.argv = [str(given.script), *(_renamed(value, given.in_place_of) for value in given.arguments)]
            sys.path[0] = str(given.script.resolve().parent)
            runpy.run_path(str(given.script), run_name="__main__")
        finally:
            sys.argv, sys.path[0] = argv, path
    if not registration.pruners:
        sys.exit(
            f"sbc: the script ended without a pruner of {given.in_place_of!r}, so SBC pruned nothing; name the method "
            f"that it uses with --in-place-of NAME, one of {', '.join(REPLACEABLE)}"
        )


def _renamed(value: str, name: str) -> str:
    """The script's argument, with "sbc" as a value replaced by the method's name."""
    option, equals, after = value.partition("=")
    if value == "sbc":
        return name
    return f"{option}={name}" if equals and after == "sbc" and option.startswith("-") else value


if __name__ == "__main__":
    main()
