"""How much memory a process may still take, on this machine and in its control group."""

import ctypes
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
KEPT_FREE = 0.1  # of what is left, or of the limit, for all that nobody counts
SHARE = 0.5  # of what is left may be kept by a step of tuning
SPOOLED = 8  # such a part of what is left may be taken by a list


def memory_left(limit: int | None = None) -> int | None:
    """Bytes that this process may still take; None where the system does not tell and there is no limit.

    Args:
        limit: of the resident memory of this process; None: what the machine and the control group have left.
    """
    give_back()
    if limit is not None:
        return max(int((1 - KEPT_FREE) * limit) - (_resident() or 0), 0)
    found = [bytes_ for bytes_ in (_of_machine(), *_of_groups()) if bytes_ is not None]
    return int((1 - KEPT_FREE) * min(found)) if found else None


def give_back() -> bool:
    """Give the system what is freed and which the C library keeps for later; False where that cannot be asked for.

    Else much memory that nobody uses counts as taken: half a gigabyte after a network of the size of ResNet-50 was
    traced.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # another C library than that of GNU
        return False
    return True


def fitting_pieces(most: int, room: int | None, needed: float) -> int:
    """How many sequences a step of tuning takes, at most so many; 0 where not even one fits into its share of memory.

    Args:
        most: without a lack of memory.
        room: bytes that are left; None: without an end.
        needed: bytes of one sequence.

    >>> fitting_pieces(32, 1000, 100.0), fitting_pieces(32, None, 100.0), fitting_pieces(32, 100, 100.0)
    (5, 32, 0)
    """
    return most if room is None or not needed else min(most, int(SHARE * room / needed))


def spool_limit(limit: int | None = None) -> int | None:
    """Bytes that a list of batches, or of what a model did on them, may take before the rest goes to a file.

    Args:
        limit: as of :func:`memory_left`.
    """
    left = memory_left(limit)
    return None if left is None else left // SPOOLED


def _of_machine() -> int | None:
    kibibytes = _field(PROC / "meminfo", "MemAvailable:")
    return None if kibibytes is None else 1024 * kibibytes


def _resident() -> int | None:
    kibibytes = _field(PROC / "self" / "status", "VmRSS:")
    return None if kibibytes is None else 1024 * kibibytes


def _of_groups() -> list[int | None]:
    """What is left below the limit of each control group that this process is in, versions 1 and 2."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root = GROUPS if controllers == "" else GROUPS / "memory"
        names = ("memory.max", "memory.current", "inactive_file ")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        folder = root / path.lstrip("/")
        # In a container the path may be that on the host, and its own group the root.
        for group in {root, folder, *(parent for parent in folder.parents if root in parent.parents)}:
            found.append(_left_of(group, *names))
    return found


def _left_of(group: Path, limit: str, usage: str, cache: str) -> int | None:
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None:
        return None
    # Pages of files that were not used of late are given back when memory is asked for.
    return max(most - used + (_field(group / "memory.stat", cache) or 0), 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _field(path: Path, name: str) -> int | None:
    try:
        line = next((line for line in path.read_text().splitlines() if line.startswith(name)), None)
    except OSError:
        return None
    return None if line is None else int(line[len(name) :].split()[0])
