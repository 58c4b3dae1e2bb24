"""What a run has computed so far, so that the same run goes on there after it was interrupted: :class:`Journal`.

A run is a sequence of computations, each of which follows from the job and from those before it. So nothing needs to
be said about where a run was: it is run again from the start, and what was computed then is read instead.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import torch

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.same_batches import SameBatches
from sbc_plugin.checkpoint.folder import Folder, Name
from sbc_plugin.core.adam import Adam

SECONDS = 30.0  # from one time that the state of a loop is kept to the next
SHARE = 20  # times what it took to keep it: a large state is kept more rarely
DATA = ("data",)  # the name of the batches' checksums
ANSWER = "answer"  # of the dense model to the first batch

Given = ParamSpec("Given")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Journal:
    """Keeps what is computed under names, in a folder; without a folder it only computes.

    Attributes:
        folder: of the job; None keeps nothing.
        data: the calibration data, whose checksums have to be kept before anything that was made from it.
        place: in front of every name.
    """

    folder: Folder | None = None
    data: SameBatches | None = None
    place: Name = field(default=())

    def within(self, *place: str) -> "Journal":
        """The same journal for a part of the run, whose names count within it."""
        return replace(self, place=(*self.place, *place))

    def once(self, name: str, compute: Callable[Given, Value], *arguments: Given.args, **named: Given.kwargs) -> Value:
        """``compute(*arguments, **named)``, or what it returned when the run was here before, on all ranks alike.

        Random numbers go on as they did then.

        Args:
            name: of the value; no two within one place are the same.
            compute: what to compute; what it changes beside is not kept.
            *arguments: of it.
            **named: of it.

        Raises:
            CheckpointError: the value cannot be written or read.
        """
        kept = self.latest(name)
        if not all(ranks.everyone(kept is not None)):
            kept = None
        return self._known_or(kept, name, lambda: compute(*arguments, **named))

    def own(self, name: str, compute: Callable[Given, Value], *arguments: Given.args, **named: Given.kwargs) -> Value:
        """The same of a value that this rank computes without the others."""
        return self._known_or(self.latest(name), name, lambda: compute(*arguments, **named))

    def _known_or(self, kept: Any, name: str, compute: Callable[[], Value]) -> Value:
        if kept is None:
            value = compute()
            self.keep(name, (value, torch.get_rng_state()))
            return value
        found: Value
        found, random = kept
        torch.set_rng_state(random)
        return found

    def latest(self, name: str) -> Any:
        """What was kept last under a name; None if nothing was.

        A damaged file counts as nothing, with a warning: its value follows from what is there without it, so it will be
        the same again.
        """
        if self.folder is None:
            return None
        place = (*self.place, name)
        kept = self.folder.read(place)
        if kept is None and self.folder.holds(place):
            warnings.warn(f"{self.folder.file(place)} is damaged, and is made again", stacklevel=2)
        return None if kept is None else kept.value

    def keep(self, name: str, value: Any) -> None:
        """Keep a value in the place of the one that the name had.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.folder is None:
            return
        if self.data is not None and self.data.grown:
            self.folder.write(DATA, self.data.known())
        self.folder.write((*self.place, name), value)

    def forget(self, name: str) -> None:
        """Let go of a value that is not needed any more."""
        if self.folder is not None:
            self.folder.remove((*self.place, name))

    def finish(self, name: str) -> None:
        """Let go of all values but this one, and what tells the job: the run is over."""
        if self.folder is not None:
            self.folder.remove_all_but([DATA, (ANSWER,), (*self.place, name)])


NOT_KEPT = Journal()


class Steps:
    """The steps of a descent that are still to be taken, its state being kept every now and then between two of them.

    Args:
        adam: takes the steps; brought to where it was when the run was here before.
        journal: keeps its state.

    >>> list(Steps(Adam([torch.zeros(1)], [0.1], steps=3)))
    [0, 1, 2]
    """

    NAME = "tuning"

    def __init__(self, adam: Adam, journal: Journal = NOT_KEPT) -> None:
        self._adam, self._journal = adam, journal
        kept = journal.latest(self.NAME)
        taken = ranks.everyone(None if kept is None else kept["taken"])
        if kept is not None and len(set(taken)) == 1:  # ranks that were killed between two states begin anew
            adam.restore(kept)

    def __len__(self) -> int:
        return self._adam.steps - self._adam.taken

    def __iter__(self) -> Iterator[int]:
        due = time.perf_counter() + SECONDS
        for step in range(self._adam.taken, self._adam.steps):
            yield step
            if (started := time.perf_counter()) >= due:
                self._journal.keep(self.NAME, self._adam.state())
                took = time.perf_counter() - started
                due = time.perf_counter() + max(SECONDS, SHARE * took)
