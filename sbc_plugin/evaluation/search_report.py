"""What ``search`` tried and chose: :class:`SearchReport`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sbc_plugin.errors import CheckpointError
from sbc_plugin.evaluation.answers import Check, counted_sequences
from sbc_plugin.evaluation.points import HEADS, POINTS, Point
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.text import as_json, of_fields, table


@dataclass(frozen=True)
class SearchReport:
    """Every network that was tried, and which one was chosen.

    Attributes:
        over: "sparsity", "bits" or "size".
        max_drop: the tolerance.
        unit: of drops: "points" of accuracy, or "score", the unit of ``evaluate``.
        dense: the dense network; it and ``points`` were measured on the half of the test data that serves the search.
        points: in the order in which they were tried.
        sequences: of that half; 0 with ``evaluate``.
        chosen: which of the points; None if none stays within the tolerance.
        check: the chosen one on the other half; None with ``evaluate``, or where none was chosen.
        report: of the call of ``compress`` that made the chosen one; its recipe makes it again.
        seconds: of the whole search.
    """

    over: str
    max_drop: float
    unit: str
    dense: Point
    points: list[Point]
    sequences: int = 0
    chosen: int | None = None
    check: Check | None = None
    report: Report | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def best(self) -> Point | None:
        """The point that was chosen."""
        return None if self.chosen is None else self.points[self.chosen]

    @property
    def noise(self) -> str:
        """One sentence where so few sequences cannot tell a drop as small as the tolerance; else empty."""
        if self.check is None:
            return ""
        low, high = self.check.interval
        width = (high - low) / 2
        if width <= self.max_drop:
            return ""
        seen = counted_sequences(self.check.sequences)
        start = f"{seen} cannot tell {self.max_drop:g} points: their interval is ±{width:.1f}"
        if not self.max_drop > 0:
            return f"{start}, and no number of sequences can"
        needed = 2 * self.check.paired.sequences_for(self.max_drop / 100)
        return f"{start}; test data of about {needed:,} sequences could"

    def marks(self, other: str = "") -> list[str]:
        """Of each point: whether it was chosen, and the factor in size that it had to meet, if any."""
        marks = ["chosen" if number == self.chosen else other for number in range(len(self.points))]
        if self.over != "size":
            return marks
        return [f"{mark} 1 / {point.factor:g}".strip() for mark, point in zip(marks, self.points, strict=True)]

    @property
    def answer(self) -> str:
        """What was found, in one line."""
        best = self.best
        if best is None:
            mildest = max(self.points, key=lambda each: each.packed_bytes, default=None)
            if mildest is None:
                return f"no network stays within max_drop={self.max_drop:g}, and none that is small enough can be made"
            return (
                f"no network stays within max_drop={self.max_drop:g}: the least compressed of {len(self.points)} that "
                f"were tried, {self._asked(mildest)}, loses {self._amount(mildest.drop)}"
            )
        ratio = f"{self.dense.packed_bytes / best.packed_bytes:.1f} times smaller, " if best.packed_bytes else ""
        start = f"{self._asked(best)}: {ratio}{best.packed_bytes / 1000:,.1f} kB"
        if self.check is None:
            return f"{start}; {self.dense.accuracy:.4g} -> {best.accuracy:.4g}, which has no interval and no check"
        low, high = self.check.interval
        verdict = f"{self.max_drop:g} is possible"
        if high <= self.max_drop:
            verdict = f"within {self.max_drop:g}"
        elif low > self.max_drop:
            verdict = f"MORE THAN {self.max_drop:g}, against what the search saw: search again with more test data"
        return (
            f"{start}; accuracy {self.check.accuracy_dense:.1%} -> {self.check.accuracy:.1%} on "
            f"{counted_sequences(self.check.sequences)} that the search did not see: a drop of "
            f"{self.check.drop:.1f} points, 95 % interval {low:.1f} to {high:.1f} ({verdict})"
        )

    def _asked(self, point: Point) -> str:
        if self.over == "size":
            return f"a budget of 1 / {point.factor:g} of the size"
        return f"sparsity {point.sparsity:.2%}" if self.over == "sparsity" else f"{point.bits} bits"

    def _amount(self, drop: float) -> str:
        return f"{drop:.1f} points" if self.unit == POINTS else f"{drop:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        report = None if self.report is None else self.report.to_dict()
        parts = {name: getattr(self, name) for name in ("over", "max_drop", "unit", "sequences", "chosen", "seconds")}
        check = None if self.check is None else asdict(self.check)
        points = [asdict(each) for each in self.points]
        told = {"answer": self.answer, "noise": self.noise}
        return parts | {"dense": asdict(self.dense), "points": points, "check": check, "report": report} | told

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON."""
        return as_json(self.to_dict(), indent)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SearchReport":
        """What :meth:`to_dict` gave.

        Raises:
            CheckpointError: it is no such thing.
        """
        try:
            check, report, chosen = (content[name] for name in ("check", "report", "chosen"))
            points = [of_fields(Point, each) for each in content["points"]]
            if chosen not in (None, *range(len(points))):
                raise CheckpointError(f"this is no report of search(): point {chosen} of {len(points)} was chosen")
            return cls(
                str(content["over"]),
                float(content["max_drop"]),
                str(content["unit"]),
                of_fields(Point, content["dense"]),
                points,
                int(content["sequences"]),
                None if chosen is None else int(chosen),
                None if check is None else of_fields(Check, check),
                None if report is None else Report.from_dict(report),
                float(content["seconds"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"this is no report of search(): {error!r}; give what to_dict() returned") from error

    def __str__(self) -> str:
        """A table of what was tried, and a last line with the answer."""
        points = [self.dense, *self.points]
        rows = [[mark, *point.cells(self.unit)] for mark, point in zip(["dense", *self.marks()], points, strict=True)]
        lines = table(["network", *HEADS], rows)
        if self.sequences:
            lines.append(
                f"measured on {counted_sequences(self.sequences)} of the test data; {self.seconds:.1f} s in all"
            )
        return "\n".join([*lines, *([self.noise] if self.noise else []), self.answer])
