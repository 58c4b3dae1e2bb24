"""A folder of pieces: values under names, each in a safetensors file that is whole or not there; never pickled.

A folder belongs to one job and, while it is open, to one process. A piece says to which job it belongs and has a
checksum.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sbc_plugin.calibration.fingerprint import of_batch
from sbc_plugin.checkpoint.atomic import reason_of, replacing
from sbc_plugin.checkpoint.records import decode, encode
from sbc_plugin.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

FORMAT = 1
KEY = "sbc_plugin_piece"  # in the metadata of safetensors
LOCK, JOB, SUFFIX = "lock", ("job",), ".safetensors"
WAY_OUT = "give another folder, or none to start without"
Name = tuple[str, ...]

_OPEN: set[str] = set()  # the folders that this process holds, by their real paths


@dataclass(frozen=True)
class Kept:
    """A piece that was found.

    Attributes:
        value: as it was written.
    """

    value: Any


@dataclass
class Folder:
    """The pieces of one job.

    Attributes:
        path: of the folder.
        records: classes of which pieces may hold instances.
        job: the checksum of the job's description, which every piece repeats.
    """

    path: Path
    records: Sequence[type]
    job: str = ""

    def write(self, name: Name, value: Any) -> None:
        """Keep a value, in the place of the one that this name had.

        Raises:
            CheckpointError: it cannot be written: no right to, no space.
        """
        tensors: list[Tensor] = []
        tree = encode(value, self.records, tensors)
        head = {"format": FORMAT, "job": self.job, "name": list(name), "tree": tree}
        signed = json.dumps(head | {"sha256": _checksum(head, tensors)})
        with replacing(self.file(name), (OSError, SafetensorError)) as file:
            safetensors.torch.save_file(
                {str(number): tensor for number, tensor in enumerate(_apart(tensors))}, file, {KEY: signed}
            )

    def read(self, name: Name) -> Kept | None:
        """The value of this name; None if there is none, or none that is whole.

        Raises:
            CheckpointError: it belongs to another job, is of a newer format, or cannot be read.
        """
        file = self.file(name)
        try:
            with safe_open(file, framework="pt") as opened:
                head = json.loads(opened.metadata()[KEY])
                tensors = [opened.get_tensor(each) for each in sorted(opened.keys(), key=int)]
            if head.pop("sha256") != _checksum(head, tensors) or head["name"] != list(name):
                return None
            version, job = int(head["format"]), str(head["job"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {reason_of(error)}; {WAY_OUT}") from error
        except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError, RecursionError):
            return None
        if version > FORMAT:
            raise CheckpointError(f"{file} has format {version}, this version reads {FORMAT}; update sbc-plugin")
        if job != self.job:
            raise CheckpointError(f"{file} belongs to another job; {WAY_OUT}")
        return Kept(decode(head["tree"], self.records, tensors))

    def is_empty(self) -> bool:
        """Whether no value was written yet but that of the job."""
        own = self.file(JOB).name
        return all(file.suffix != SUFFIX or file.name.startswith((".", own)) for file in self.path.iterdir())

    def holds(self, name: Name) -> bool:
        """Whether there is a file of this name, whole or not."""
        return self.file(name).exists()

    def remove(self, name: Name) -> None:
        """Let go of a piece that is not needed any more."""
        self.file(name).unlink(missing_ok=True)

    def remove_all_but(self, names: Sequence[Name]) -> None:
        """Let go of all pieces but these, and of what a killed process has left beside them."""
        kept = {LOCK, self.file(JOB).name, *(self.file(name).name for name in names)}
        for file in self.path.iterdir():
            if file.suffix == SUFFIX and file.name not in kept:
                file.unlink(missing_ok=True)

    def file(self, name: Name) -> Path:
        """A name that every system allows, whatever a layer is called."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(name)).strip("-")[:40]
        digest = hashlib.sha256(json.dumps(name).encode()).hexdigest()[:12]
        return self.path / f"{readable}-{digest}{SUFFIX}"


@contextmanager
def opened(path: str | PathLike[str], records: Sequence[type]) -> Iterator[Folder]:
    """The folder at a path, made if there is none, and held until the end of the block.

    A process that is killed holds it no longer. Where the system has no such locks, nothing is held.

    Args:
        path: of a folder that is empty, new, or one of these.
        records: classes of which pieces may hold instances.

    Raises:
        CheckpointError: another process holds it, it holds something else, or one may not write to it.
    """
    folder = Folder(Path(path), records)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        real = os.path.realpath(path)
        foreign = _foreign(folder)
        file = None if foreign or real in _OPEN else (folder.path / LOCK).open("a")  # to close it would end the lock
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be used: {reason_of(error)}; give a folder that one may write to"
        ) from error
    if foreign:
        raise CheckpointError(f"{path} is no folder of a job, it holds {foreign[0]!r}; give a new or an empty folder")
    if file is None or not _lock(file):
        raise CheckpointError(f"{path} is in use by a run that goes on; wait for its end, or give another folder")
    _OPEN.add(real)
    try:
        with file:
            yield folder
    finally:
        _OPEN.discard(real)


def _foreign(folder: Folder) -> list[str]:
    """What a folder holds that is no folder of a job; what a process leaves that is killed at once is no such thing."""
    own = folder.file(JOB)
    if own.exists():
        return []
    return sorted(name for name in os.listdir(folder.path) if name != LOCK and not name.startswith(f".{own.stem}-"))


def _lock(file: Any) -> bool:
    """Lock a file for this process; False if another one holds it.

    By ``lockf``, because ``flock`` would be handed on to the processes of a data loader, which outlive a killed one.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, each with memory of its own, as safetensors asks for."""
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [
        tensor.clone() if place in places[:number] else tensor
        for number, (tensor, place) in enumerate(zip(tensors, places, strict=True))
    ]


def _checksum(head: dict[str, Any], tensors: list[Tensor]) -> str:
    return of_batch([json.dumps(head, sort_keys=True), *tensors])
