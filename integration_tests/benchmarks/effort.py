"""What a piece of work took: wall time, processor time, and memory at its peak."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sbc_plugin.calibration.memory import give_back

T = TypeVar("T")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Effort:
    """Time and memory; of several pieces of work times add up, and the highest peak counts.

    Attributes:
        seconds: of wall time.
        processor_seconds: of all threads.
        peak_bytes: resident memory at its highest, above what was resident before; None where Linux does not tell.

    >>> Effort(1.0, 2.0, 30) + Effort(1.0, 1.0, 20)
    Effort(seconds=2.0, processor_seconds=3.0, peak_bytes=30)
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_bytes: int | None = 0

    def __add__(self, other: "Effort") -> "Effort":
        peaks = [peak for peak in (self.peak_bytes, other.peak_bytes) if peak is not None]
        return Effort(
            self.seconds + other.seconds,
            self.processor_seconds + other.processor_seconds,
            max(peaks) if len(peaks) == 2 else None,
        )


def measured(work: Callable[[], T]) -> tuple[T, Effort]:
    """What ``work`` returns, and what it took.

    Memory is the kernel's own high-water mark of this process, set back before: allocations of every library count.
    """
    before = _resident("VmRSS") if _set_back() else None
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    seconds, processor_seconds = time.perf_counter() - wall, time.process_time() - processor
    peak = None if before is None else max(_resident("VmHWM") - before, 0)
    return result, Effort(round(seconds, 3), round(processor_seconds, 3), peak)


def _set_back() -> bool:
    """Give freed memory back and set the high-water mark to what is resident now; False where that cannot be done."""
    if not give_back():  # else memory that was freed earlier would be used again, unseen
        return False
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])
