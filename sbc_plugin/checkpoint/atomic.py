"""Files that appear whole or not at all."""

import glob
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from sbc_plugin.errors import CheckpointError

if sys.platform != "win32":
    import fcntl


def check_target(path: str | PathLike[str]) -> Path:
    """Refuse before the work what could only fail after it; the path.

    Raises:
        CheckpointError: the target is a folder, or lies in none that one may write to, or no file can have its name.
    """
    target = Path(path)
    folder = target.parent
    way_out = "give the path of a file in a folder that exists and lets you write"
    try:
        refused = target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)
        if not refused:
            beside = _beside(Path(os.path.realpath(target)))
            beside.touch(exist_ok=False)
            beside.unlink()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{target} cannot be written: {reason_of(error)}; {way_out}") from error
    if refused:
        what = "is a folder" if target.is_dir() else f"has no folder {folder} that one may write to"
        raise CheckpointError(f"{target} {what}; {way_out}")
    return target


def reason_of(error: Exception) -> str:
    """What the system said went wrong with a file.

    >>> reason_of(OSError(28, "No space left on device", "model.nir"))
    'No space left on device'
    """
    return getattr(error, "strerror", None) or str(error)


def _beside(target: Path) -> Path:
    """A name for a file that is written first, and then takes the place of ``target``."""
    return target.with_name(f".{target.stem}-{uuid4().hex}{target.suffix}")


@contextmanager
def replacing(path: str | PathLike[str], failures: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """The path of a file to write beside ``path``; at the end of the block it takes its place.

    What was written is on the disk before it is renamed. After an error nothing is left of it, and a file that was
    there is as it was. A link is followed, and a file that is replaced hands on its permissions. A process that is
    killed leaves the file beside; the next one that writes to ``path`` takes it away.

    Args:
        path: of the file.
        failures: what a writer raises when it cannot write.

    Raises:
        CheckpointError: it cannot be written: no such folder, no right to, no space.
    """
    target = check_target(os.path.realpath(path))
    beside = _beside(target)
    holder: Any = None
    try:
        _remove_abandoned(target)
        holder = beside.open("xb")
        with suppress(OSError):  # a file system without locks
            _lock(holder)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        if target.is_file():
            shutil.copymode(target, beside)
        beside.replace(target)
        if hasattr(os, "O_DIRECTORY"):  # so that the new name lasts, too
            folder = os.open(target.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except failures as error:
        raise CheckpointError(
            f"{path} cannot be written: {reason_of(error)}; nothing was changed. Give a path in a folder that has space"
        ) from error
    finally:
        if holder is not None:
            holder.close()
        beside.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes have left beside ``target``; what a living one writes is locked."""
    name = f".{glob.escape(target.stem)}-{'[0-9a-f]' * len(uuid4().hex)}{glob.escape(target.suffix)}"
    with suppress(OSError):
        for left in target.parent.glob(name):
            with suppress(OSError), left.open("rb") as file:
                if _lock(file):
                    left.unlink()


def _lock(file: Any) -> bool:
    """Hold a file until it is closed or the process ends; False where the system has no such locks.

    Raises:
        OSError: another process holds it, or its file system has no locks.
    """
    if sys.platform == "win32":
        return False
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
