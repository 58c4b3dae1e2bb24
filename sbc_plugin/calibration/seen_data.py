"""What calibration data is like, noted while it is read for something else: :class:`SeenData`."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.batches import dense, input_of, labels_of
from sbc_plugin.calibration.driver import Driver
from sbc_plugin.errors import CalibrationError


@dataclass
class Notes:
    """What one whole pass over the data has shown.

    Attributes:
        sequences: how many; 0 where only the user's own ``forward`` knows where they are.
        different: checksums of those that differ from each other.
        shapes: (steps, sequences) of each batch.
        labels: the classes that were seen.
        unlabelled: batches without labels.
        miscounted: batches with more labels than sequences, or fewer.
        total: the sum of all sequences; None where their shapes differ.
        squares: the sum of their squares.
    """

    sequences: int = 0
    different: set[bytes] = field(default_factory=set)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    unlabelled: int = 0
    miscounted: int = 0
    total: Tensor | None = None
    squares: float = 0.0

    @property
    def spread(self) -> float | None:
        """Squares of the differences from the mean sequence, of all squares; None where that is not known."""
        if self.total is None or not self.squares or not self.sequences:
            return None
        return max(1 - float(self.total.square().sum()) / self.sequences / self.squares, 0.0)

    def merged(self, other: "Notes") -> "Notes":
        """Those of both."""
        same = self.total is not None and other.total is not None and self.total.shape == other.total.shape
        return Notes(
            self.sequences + other.sequences,
            self.different | other.different,
            self.shapes + other.shapes,
            self.labels | other.labels,
            self.unlabelled + other.unlabelled,
            self.miscounted + other.miscounted,
            self.total + other.total if same and self.total is not None and other.total is not None else None,
            self.squares + other.squares,
        )


class SeenData:
    """The batches of another iterable, each looked at in passing.

    Args:
        source: the data.
        run: runs a sequence; a :class:`Driver` knows where sequences are.
    """

    def __init__(self, source: Iterable[Any], run: Any) -> None:
        self.source = source
        self._axis = run.batch_axis if isinstance(run, Driver) else None
        self._still = isinstance(run, Driver) and run.still
        self._notes: Notes | None = None

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]  # TypeError where there is none, as of any iterable

    def __iter__(self) -> Iterator[Any]:
        if self._notes is not None:
            yield from self.source
            return
        notes = Notes()
        for number, batch in enumerate(self.source):
            self._look(notes, batch, number)
            yield batch
        self._notes = notes

    def notes(self) -> Notes:
        """Of all ranks' data, which is read for it where nothing has read it."""
        if self._notes is None:
            with torch.random.fork_rng(devices=[]):
                for _ in self:
                    pass
        parts = ranks.everyone(self._notes)
        found = Notes() if parts[0] is None else parts[0]
        for part in parts[1:]:
            found = found if part is None else found.merged(part)
        return found

    @torch.no_grad()
    def _look(self, notes: Notes, batch: Any, number: int) -> None:
        labels = _labels_of(batch)
        notes.unlabelled += labels is None
        notes.labels.update([] if labels is None else labels.unique().tolist())
        x = None
        with suppress(CalibrationError):  # a batch for a forward of the user's own, or one that calibration refuses
            x = dense(input_of(batch))
        if self._axis is None or x is None or x.dim() < 2 or not x.numel() or x.is_complex() or x.is_meta:
            return
        sequences = x.detach().movedim(self._axis, 0)
        notes.miscounted += labels is not None and len(labels) != len(sequences)
        if not self._still:
            notes.shapes.append((sequences.shape[1], len(sequences)))
        for place, sequence in enumerate(sequences):  # one by one, since a batch may be large
            row = sequence.cpu().contiguous().flatten()
            notes.different.add(blake2b(row.view(torch.uint8).numpy(), digest_size=16).digest())
            row = row.double()
            if number == place == 0:
                notes.total = row
            elif notes.total is not None:
                notes.total = notes.total + row if notes.total.shape == row.shape else None
            notes.squares += float(row.square().sum())
        notes.sequences += len(sequences)


def _labels_of(batch: Any) -> Tensor | None:
    """The labels of a batch; None where what lies beside its input is no tensor, for a forward of the user's own."""
    with suppress(TypeError, ValueError, RuntimeError):
        return labels_of(batch)
    return None
