"""The folder of a compression: which job it is, that it is the same job again, and its :class:`Journal`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.driver import result_of
from sbc_plugin.calibration.fingerprint import of_batch, of_model
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Statistics
from sbc_plugin.calibration.layer_by_layer import alike
from sbc_plugin.calibration.same_batches import SameBatches
from sbc_plugin.calibration.shares import repeatable
from sbc_plugin.checkpoint.folder import JOB, Folder, opened
from sbc_plugin.compression.budgets import Budget
from sbc_plugin.compression.journal import ANSWER, DATA, NOT_KEPT, Journal
from sbc_plugin.compression.state import State
from sbc_plugin.compression.tuning import Tuned
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import CheckpointError, SettingsError
from sbc_plugin.evaluation.report import LayerReport
from sbc_plugin.settings import Quantize
from sbc_plugin.version import __version__

RECORDS = (Budget, Grid, HessianAccumulator, LayerReport, Quantize, Solution, State, Statistics, Tuned)

Description: TypeAlias = dict[str, dict[str, str]]  # "settings", "model", ... -> name -> value, or its checksum


@dataclass(frozen=True)
class Job:
    """All that decides the result of a compression.

    Attributes:
        runner: of the dense model.
        first: the first batch.
        data: all batches.
        settings: by name of the argument: numbers, texts, settings objects, statistics' checksums.
    """

    runner: Runner
    first: Any
    data: Iterable[Any]
    settings: Mapping[str, Any]

    def description(self) -> Description:
        """The job as texts."""
        settings: dict[str, str] = {}
        for name, value in self.settings.items():
            if is_dataclass(value) and not isinstance(value, type):
                settings[name] = type(value).__name__
                settings |= {f"{name}.{key}": repr(part) for key, part in asdict(value).items()}
            else:
                settings[name] = repr(value)
        devices = sorted({str(tensor.device) for tensor in self.runner.model.parameters()})
        return {
            "version": {"sbc-plugin": __version__, "torch": str(torch.__version__)},
            "settings": settings | {"device of the model": ", ".join(devices)},
            "model": of_model(self.runner.model),
            "data": {"first batch": of_batch(self.first)},
        }


@contextmanager
def journal_in(folder: str | PathLike[str] | None, job: Job) -> Iterator[tuple[Journal, Iterable[Any]]]:
    """The journal of a job, and its data, which has to be the same each time it is read; both for the block.

    Args:
        folder: where the journal is kept, made if there is none; None keeps nothing. Of several ranks each keeps its
            own in a folder there, which may be on a disk of its own.
        job: what is done.

    Raises:
        CheckpointError: the folder is of another job, in use, or cannot be written; or the data changes.
        CalibrationError: a batch holds something that cannot be compared.
        SettingsError: no path of a folder.
    """
    if folder is None:
        yield NOT_KEPT, job.data
        return
    if not isinstance(folder, str | PathLike):
        raise SettingsError(f"checkpoint={folder!r} is no path of a folder; give one, or None")
    several = ranks.count() > 1
    with opened(Path(folder, f"rank {ranks.rank()} of {ranks.count()}") if several else folder, RECORDS) as pieces:
        _check_same_job(pieces, job.description())
        known = _known_batches(pieces)
        # The first batch of all is not the first of each rank's share.
        data = SameBatches(repeatable(job.data), None if several else job.first, known)
        if known is not None:
            data.check()
        journal = Journal(pieces, data)
        _check_answer(journal, job)
        yield journal, data


def _check_same_job(folder: Folder, job: Description) -> None:
    """Let a folder that is empty be of this job.

    Raises:
        CheckpointError: it is of another one.
    """
    kept = folder.read(JOB)
    if kept is None and folder.holds(JOB):
        raise CheckpointError(f"{folder.path}: which job it is of cannot be read any more; delete it, and start again")
    if kept is None:
        folder.write(JOB, job)
    elif difference := _difference(kept.value, job):
        raise CheckpointError(
            f"{folder.path} is of another job: {difference}; give the arguments of that job, or another folder"
        )
    folder.job = of_batch(job)


def _known_batches(folder: Folder) -> tuple[list[str], bool] | None:
    """The checksums of the batches that were read before; None if nothing was made of them yet.

    Raises:
        CheckpointError: something was, and of which batches cannot be told.
    """
    kept = folder.read(DATA)
    if kept is not None:
        batches: tuple[list[str], bool] = kept.value
        return batches
    if folder.is_empty():
        return None
    raise CheckpointError(
        f"{folder.path}: of which data its content was made cannot be read any more; delete it, and start again"
    )


def _difference(there: Description, here: Description) -> str:
    """The first difference of two jobs, in words; "" if there is none."""
    for part, now in here.items():
        before = there.get(part, {})
        for name in (*before, *(now.keys() - before.keys())):
            old, new = before.get(name, "nothing"), now.get(name, "nothing")
            if old == new:
                continue
            if part == "data":
                return (
                    "the first batch of calibration data is another; if the data is the same, read it with "
                    "shuffle=False and without random transforms"
                )
            if part == "model":
                kind = "is not the same" if name in now and name in before else "is in one of the models alone"
                return f"{name!r} of the model {kind}"
            return f"{name} is {old:.60} there and {new:.60} here"
    return ""


def _check_answer(journal: Journal, job: Job) -> None:
    """Refuse a model that has the same weights and answers otherwise: another forward, or other code.

    Raises:
        CheckpointError: it does.
    """

    def answer() -> Tensor | None:
        result = result_of(job.runner(job.first))
        return result.detach().double().nan_to_num() if isinstance(result, Tensor) else None

    started = journal.latest(ANSWER) is None
    before = journal.once(ANSWER, answer)
    now = before if started else answer()
    if (before is None) != (now is None) or (before is not None and now is not None and not alike(now, before)):
        raise CheckpointError(
            "the model answers the first batch otherwise than at the start of the job, though its weights are the "
            "same: its code, forward or batch_first has changed; give another folder"
        )
