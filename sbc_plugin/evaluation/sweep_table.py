"""What ``sweep`` measured: :class:`SweepTable`, and the JSON lines that hold it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbc_plugin.errors import CheckpointError
from sbc_plugin.evaluation.points import HEADS, POINTS, Point
from sbc_plugin.evaluation.text import as_json, of_fields, table

KEY = "settings"  # of a line: a checksum of all that decides its numbers but for sparsity and bits


@dataclass(frozen=True)
class SweepTable:
    """All combinations of sparsities and bits, measured alike.

    Attributes:
        unit: of drops: "points" of accuracy, or "score", the unit of ``evaluate``.
        dense: the dense network.
        points: a row each, in the order that was asked for.
    """

    unit: str
    dense: Point
    points: list[Point]

    def pareto(self, cost: str = "packed_bytes") -> list[Point]:
        """Points that no other one beats: each that costs less is less accurate; the cheapest first.

        Args:
            cost: "packed_bytes" or "operations".
        """
        best: list[Point] = []
        for point in sorted([self.dense, *self.points], key=lambda each: (getattr(each, cost), -each.accuracy)):
            if not best or point.accuracy > best[-1].accuracy:
                best.append(point)
        return best

    @property
    def answer(self) -> str:
        """The smallest network whose loss may be chance, in a sentence; where nothing tells, the most accurate one."""
        known = [point for point in self.points if point.low is not None]
        within = [point for point in known if point.low is not None and point.low <= 0]
        if known and not within:
            return f"Each of {len(known)} networks loses more than chance: sweep milder ones."
        best = min(within, key=lambda each: each.packed_bytes, default=None)
        start = "The smallest network that loses no more than chance"
        if best is None:
            best = max(self.points, key=lambda each: (each.accuracy, -each.packed_bytes), default=None)
            start = "The best network"
        if best is None:
            return "No network was made."
        sparsity, bits, accuracy, drop, interval, size = best.cells(self.unit)[:6]
        what = [f"sparsity {sparsity}"] * (best.sparsity is not None) + [f"{bits} bits"] * (best.bits is not None)
        ratio = f", {self.dense.packed_bytes / best.packed_bytes:.1f} times smaller" if best.packed_bytes else ""
        before = self.dense.cells(self.unit)[2]
        end = f"a loss of {drop} points, 95 % interval {interval}" if within else "which has no interval"
        chosen = f"; chosen among {len(self.points)}, so check it on other data" if len(self.points) > 1 else ""
        return f"{start}: {', '.join(what)}: {size} kB{ratio}; {before} -> {accuracy}, {end}{chosen}."

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON."""
        return as_json(self.to_dict(), indent)

    @classmethod
    def from_dict(cls, content: Any) -> "SweepTable":
        """What :meth:`to_dict` gave.

        Raises:
            CheckpointError: it is no such thing.
        """
        try:
            return of_fields(cls, content)
        except TypeError as error:
            raise CheckpointError(f"this is no table of sweep(): {error}; give what to_dict() returned") from error

    def __str__(self) -> str:
        """The table that people read; a star where nothing smaller is as accurate."""
        best = self.pareto()
        rows = [
            [("dense" if point is self.dense else "*" if point in best else ""), *point.cells(self.unit)]
            for point in (self.dense, *self.points)
        ]
        what = "accuracy" if self.unit == POINTS else "score"
        return "\n".join([*table(["network", *HEADS], rows), f"*: no smaller network has this {what}"])


class SweepFile:
    """A file of JSON lines, one a network, to which rows are added as they come.

    A last line without its end, which an interruption leaves, is dropped; all others have to be rows.

    Args:
        path: of the file; made if there is none.
        settings: the checksum of this sweep; rows of others stay in the file, and are not read.

    Attributes:
        known: (sparsity, bits) -> the row that is there.

    Raises:
        CheckpointError: the file cannot be read or written, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], settings: str) -> None:
        self.path, self.settings = Path(path), settings
        self.known: dict[tuple[float | None, int | None], Point] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error
        whole, end, _ = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if end else [], start=1):
            self._read(line, number)
        if not end and content and not content.startswith(b'{"sparsity"'[: len(content)]):
            raise CheckpointError(f"{self.path}, line 1: this is no table of sweep(); give a file of its own")
        if len(whole) + len(end) < len(content):
            self._change(lambda: os.truncate(self.path, len(whole) + len(end)))

    def _read(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            key = row.pop(KEY)
            point = of_fields(Point, row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}, line {number}: this is no row of sweep() ({error!r:.200}); give a file of its own"
            ) from error
        if key == self.settings:
            self.known[point.sparsity, point.bits] = point

    def add(self, point: Point) -> None:
        """Write a row, so that it stays there whatever comes.

        Raises:
            CheckpointError: it cannot be written.
        """

        def append() -> None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(as_json(asdict(point) | {KEY: self.settings}) + "\n")
                file.flush()
                os.fsync(file.fileno())

        self._change(append)
        self.known[point.sparsity, point.bits] = point

    def _change(self, change: Any) -> None:
        try:
            change()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror or error}") from error
