"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sbc_plugin.errors import CheckpointError


def check_target(path: str | Path) -> Path:
    """Refuse before the work what could only fail after it; the path.

    Raises:
        CheckpointError: the target is a folder, or lies in none that one may write to.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "is a folder" if target.is_dir() else f"has no folder {folder} that one may write to"
        raise CheckpointError(f"{target} {what}; give the path of a file in a folder that exists and lets you write")
    return target


@contextmanager
def replacing(path: str | Path, failures: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end of the block; gone if the block fails.

    Args:
        path: of the file.
        failures: what a writer raises when it cannot write.

    Raises:
        CheckpointError: it cannot be written: no such folder, no right to, no space.
    """
    target = check_target(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        beside.replace(target)
    except failures as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{target} cannot be written: {reason}; nothing was changed. Give a path in a folder that has space"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
