"""Which part of the calibration data a rank of ``torch.distributed`` takes; with one process, all of it.

All ranks give the same iterable, and take turns; or each gives a share of its own: a loader whose sampler is torch's
``DistributedSampler``, or anything that :func:`sharded` says so of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from sbc_plugin.calibration import batches, ranks
from sbc_plugin.calibration.fingerprint import digest
from sbc_plugin.calibration.same_batches import SameBatches
from sbc_plugin.calibration.seen_data import SeenData
from sbc_plugin.calibration.spool import spooled
from sbc_plugin.errors import SettingsError

WAY_OUT = (
    "give all ranks the same batches in the same order (seed a shuffle), or say that each gives its own: "
    "sbc_plugin.sharded(loader), or a loader with a DistributedSampler"
)


@dataclass(frozen=True)
class Sharded:
    """Batches that are one rank's own, see :func:`sharded`."""

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def sharded(data: Iterable[Any]) -> Iterable[Any]:
    """Say that these batches are this rank's own share, so that it takes all of them.

    For data that is dealt to ranks already: loaders that ``accelerate`` has prepared, shards of WebDataset, files by
    rank. A rank's share may be empty. With one process it is the data as it is.

    Args:
        data: iterable of batches.

    >>> list(sharded([1, 2]))
    [1, 2]
    """
    return Sharded(data)


class _Turns:
    """Every batch whose turn is this rank's, of batches that all ranks have.

    Attributes:
        length: how many batches of all ranks the latest whole pass has seen; None before.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.length: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return self._turns()

    def _turns(self) -> Iterator[Any]:
        number = -1
        for number, batch in enumerate(self.data):
            if number % ranks.count() == ranks.rank():
                yield batch
        self.length = number + 1


class _OneTurn(_Turns, Iterator[Any]):
    """The same of data that can be run through only once."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.running: Iterator[Any] = getattr(self, "running", None) or self._turns()
        return next(self.running)


def peek(calibration_data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, which is the same for all ranks, and an iterable of this rank's batches.

    Raises:
        CalibrationError: there is no batch, or the first is empty.
        SettingsError: the ranks' data are neither the same nor said to be their own.
    """
    own = isinstance(calibration_data, Sharded)
    data = calibration_data.batches if isinstance(calibration_data, Sharded) else calibration_data
    if ranks.count() == 1:
        return batches.peek(data)
    own = own or _dealt_by_sampler(data)
    found, data = batches.begun(data)
    told = "of its own share" if own else f"of digest {digest(found[0])}" if found else "missing"
    ranks.agree("calibration data", {"the first batch": told}, WAY_OUT)
    if own:
        if not any(ranks.everyone(bool(found))):
            batches.refuse_none()
        first = first_held(found)
    else:
        if not found:
            batches.refuse_none()
        first, data = found[0], (_OneTurn if isinstance(data, Iterator) else _Turns)(data)
    batches.check_batch(first, 0)
    return first, data


def kept(data: Iterable[Any]) -> Iterable[Any]:
    """Calibration data as it was given, as a list where it could be run through only once."""
    return Sharded(kept(data.batches)) if isinstance(data, Sharded) else batches.repeatable(data)


def repeatable(data: Iterable[Any], limit: int | None = None) -> Iterable[Any]:
    """This rank's batches, as a list where they could be run through only once.

    Args:
        data: of :func:`peek`.
        limit: bytes of the list that stay in memory, see :class:`~sbc_plugin.calibration.spool.Spool`.

    Raises:
        SettingsError: data that were to be the same on all ranks have not as many batches on each.
    """
    listed = spooled(data, limit) if isinstance(data, Iterator) else data
    if listed is not data:
        check_lengths(data)
    return listed


def first_of(data: Iterable[Any]) -> Any:
    """The first batch of all ranks.

    Args:
        data: this rank's batches, iterable more than once.
    """
    return first_held(list(islice(data, 1)))


def first_held(items: Sequence[Any]) -> Any:
    """The first item of the first rank that has one; at least one rank has.

    Args:
        items: this rank's batches, or pieces of them.
    """
    if ranks.count() == 1:
        return items[0]
    owner = ranks.everyone(len(items) > 0).index(True)
    item = items[0] if items else None
    on_gpu = ranks.handed(any(_each(item, lambda tensor: tensor.is_cuda)), owner)
    if not on_gpu:
        return ranks.handed(item, owner)
    sent = ranks.handed(_changed(item, Tensor.cpu), owner)
    return item if ranks.rank() == owner else _changed(sent, Tensor.cuda)


def check_lengths(data: Iterable[Any]) -> None:
    """Refuse data that were to be the same on all ranks and have not as many batches on each.

    Args:
        data: of :func:`peek`, after a whole pass.

    Raises:
        SettingsError: they have not.
    """
    while isinstance(data, SameBatches | SeenData):
        data = data.source
    if ranks.count() > 1:
        length = str(data.length) if isinstance(data, _Turns) else "its own"
        ranks.agree("calibration data", {"the number of batches": length}, WAY_OUT)


def _dealt_by_sampler(data: Iterable[Any]) -> bool:
    """Whether a loader draws from a DistributedSampler of as many ranks as there are.

    Raises:
        SettingsError: it draws for another number of ranks.
    """
    sampler = getattr(data, "sampler", None)
    sampler = (
        sampler
        if isinstance(sampler, DistributedSampler)
        else getattr(getattr(data, "batch_sampler", None), "sampler", None)
    )
    if not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1:
        return False
    if (sampler.num_replicas, sampler.rank) != (ranks.count(), ranks.rank()):
        raise SettingsError(
            f"the loader's DistributedSampler draws for rank {sampler.rank} of {sampler.num_replicas}, this is rank "
            f"{ranks.rank()} of {ranks.count()}; make it without num_replicas and rank"
        )
    return True


def _each(thing: Any, look: Callable[[Tensor], bool]) -> list[bool]:
    if isinstance(thing, Tensor):
        return [look(thing)]
    inside = thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, list | tuple) else ()
    return [seen for value in inside for seen in _each(value, look)]


def _changed(thing: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, Mapping):
        return {key: _changed(value, change) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        values = [_changed(value, change) for value in thing]
        return type(thing)(*values) if hasattr(thing, "_fields") else type(thing)(values)
    return thing
