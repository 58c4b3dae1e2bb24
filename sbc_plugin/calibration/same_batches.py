"""Calibration data that has to be the same each time it is read: :class:`SameBatches`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sbc_plugin.calibration.fingerprint import of_batch
from sbc_plugin.errors import CheckpointError


class SameBatches:
    """Batches, each compared with what it was when the data was read before, by its checksum.

    Args:
        data: iterable more than once.
        first: its first batch; None where that is not known.
        checksums: of the batches as they were read before, and whether these were all.

    Attributes:
        source: the data.
        grown: whether more checksums are known than were given or told by :meth:`known`.
    """

    def __init__(self, data: Iterable[Any], first: Any = None, checksums: tuple[list[str], bool] | None = None) -> None:
        self.source = data
        self._checksums, self._all = (
            ([] if first is None else [of_batch(first)], False) if checksums is None else checksums
        )
        self.grown = checksums is None

    def known(self) -> tuple[list[str], bool]:
        """The checksums of the batches that were read so far, and whether these are all."""
        self.grown = False
        return list(self._checksums), self._all

    def check(self) -> None:
        """Read all batches that are known, and leave random numbers as they are.

        Raises:
            CheckpointError: one is another than before.
        """
        with torch.random.fork_rng(devices=[]):
            for number, _ in enumerate(self, 1):
                if number == len(self._checksums) and not self._all:
                    break

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]  # TypeError where there is none, as of any iterable

    def __iter__(self) -> Iterator[Any]:
        read = 0
        for number, batch in enumerate(self.source):
            checksum = of_batch(batch)
            if number == len(self._checksums) and not self._all:
                self._checksums.append(checksum)
                self.grown = True
            if checksum != (self._checksums[number] if number < len(self._checksums) else None):
                raise CheckpointError(_other(f"batch {number} is another than"))
            read = number + 1
            yield batch
        if read < len(self._checksums):
            raise CheckpointError(_other(f"there are {read} batches, and there were {len(self._checksums)}"))
        self.grown, self._all = self.grown or not self._all, True


def _other(what: str) -> str:
    return (
        f"calibration data: {what} when it was read before; with a checkpoint it has to be the same each time: read it "
        "with shuffle=False and without random transforms; for other data give another folder"
    )
