"""The ranks of ``torch.distributed``: what they sum, deal and hand out, and how all of them end when one fails.

Work that ranks do together stands in a :func:`joined` block. Outside of one, and where there is one process only, every
function here does nothing and hands back what it got, so that the code around reads as for one process.

Where one rank fails, all do, see :mod:`sbc_plugin.calibration.meeting`.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sbc_plugin.calibration.meeting import Meeting
from sbc_plugin.errors import SettingsError

Item = TypeVar("Item")


_here: ContextVar[Meeting | None] = ContextVar("_here", default=None)
_apart: ContextVar[bool] = ContextVar("_apart", default=False)


def count() -> int:
    """How many ranks work together here; 1 outside of a :func:`joined` block."""
    ranks = _here.get()
    return 1 if ranks is None else ranks.count


def rank() -> int:
    """The number of this one, from 0."""
    ranks = _here.get()
    return 0 if ranks is None else ranks.rank


@contextmanager
def joined() -> Iterator[None]:
    """Work together with all ranks of ``torch.distributed`` inside the block, where there are several.

    If the block fails on one rank, it fails on all of them, with the same kind of error where it is one of this
    package's. A block inside another belongs to that.

    Raises:
        RankError: a rank was killed, raised an error of another kind, or did not come.
        CompressionError: the one raised inside, or raised inside on another rank.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if _here.get() is not None or _apart.get() or not several:
        yield
        return
    ranks = Meeting.called()
    token = _here.set(ranks)
    try:
        yield
        ranks.meet("the end")
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        _here.reset(token)
        ranks.close()


@contextmanager
def alone() -> Iterator[None]:
    """Work as one process inside the block, though ``torch.distributed`` is initialised.

    Ranks may then do different things, or only one of them something: ``compress`` and the other functions of this
    package neither wait for the others nor share the data with them.
    """
    here, apart = _here.set(None), _apart.set(True)
    try:
        yield
    finally:
        _here.reset(here)
        _apart.reset(apart)


def numbered(items: Iterable[Item]) -> Iterator[tuple[int, Item]]:
    """This rank's items, numbered as all ranks' together: they take turns.

    >>> list(numbered("ab"))
    [(0, 'a'), (1, 'b')]
    """
    first, step = rank(), count()
    return ((first + step * place, item) for place, item in enumerate(items))


def deal(costs: Sequence[float]) -> list[int]:
    """The rank that each piece of work goes to: the dearest first, each to the rank that has least to do.

    >>> deal([1.0, 5.0])
    [0, 0]
    """
    owners, load = [0] * len(costs), [0.0] * count()
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        owners[place] = load.index(min(load))
        load[owners[place]] += costs[place]
    return owners


def meet(place: str) -> None:
    """Go on when all ranks have come to this place.

    Raises:
        RankError: one will not come.
        CompressionError: one of this package's errors was raised on another rank.
    """
    ranks = _here.get()
    if ranks is not None:
        ranks.meet(place)


def total(tensors: Sequence[Tensor]) -> None:
    """Sum each of the tensors over all ranks, in place. Raises as :func:`meet`."""
    ranks = _here.get()
    if ranks is not None:
        ranks.on_tensors("a sum", dist.all_reduce, tensors)


def spread(tensors: Sequence[Tensor], owner: int = 0) -> None:
    """Copy the owner's tensors into those of all ranks, in place. Raises as :func:`meet`."""
    ranks = _here.get()
    if ranks is not None:
        ranks.on_tensors("a broadcast", lambda tensor, group: dist.broadcast(tensor, src=owner, group=group), tensors)


def everyone(thing: Item) -> list[Item]:
    """What each rank holds, by rank: numbers, text, or tensors on the CPU. Raises as :func:`meet`."""
    ranks = _here.get()
    if ranks is None:
        return [thing]
    own = _as_bytes(thing)
    sizes = [torch.zeros(1, dtype=torch.long, device="cpu") for _ in range(ranks.count)]
    ranks.exchange("sizes", lambda: dist.all_gather(sizes, torch.tensor([len(own)], device="cpu"), group=ranks.data))
    largest = max(int(size) for size in sizes)
    found = [own.new_zeros(largest) for _ in sizes]
    padded = torch.cat([own, own.new_zeros(largest - len(own))])
    ranks.exchange("an exchange", lambda: dist.all_gather(found, padded, group=ranks.data))
    return [_from_bytes(content[: int(size)]) for content, size in zip(found, sizes, strict=True)]


def listed(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors of all ranks, by rank: on the CPU where there are several. Raises as :func:`meet`."""
    if count() == 1:
        return tensors
    return [tensor for held in everyone([tensor.detach().cpu() for tensor in tensors]) for tensor in held]


def handed(thing: Item, owner: int = 0) -> Item:
    """What the owner holds: numbers, text, or tensors on the CPU. Raises as :func:`meet`."""
    ranks = _here.get()
    if ranks is None:
        return thing
    own = _as_bytes(thing if ranks.rank == owner else None)  # before they meet, because it may fail
    size = torch.tensor([len(own)], device="cpu")
    ranks.exchange("a size", lambda: dist.broadcast(size, src=owner, group=ranks.data))
    content = own if ranks.rank == owner else own.new_zeros(int(size))
    ranks.exchange("a broadcast of values", lambda: dist.broadcast(content, src=owner, group=ranks.data))
    return thing if ranks.rank == owner else _from_bytes(content)


def sums(*numbers: float) -> list[float]:
    """Each of the numbers, summed over all ranks; raises as :func:`meet`.

    >>> sums(1, 2.5)
    [1, 2.5]
    """
    return [sum(found) for found in zip(*everyone(numbers), strict=True)]


def agree(what: str, mine: Mapping[str, str], way_out: str) -> None:
    """Refuse to go on where the ranks hold different things.

    Args:
        what: they hold.
        mine: name -> its value, or a digest.
        way_out: what to do about it.

    Raises:
        SettingsError: something differs: names it, and two ranks. Also as :func:`meet`.
    """
    found = everyone(dict(mine))
    for number, theirs in enumerate(found):
        names = [name for name in {**found[0], **theirs} if found[0].get(name) != theirs.get(name)]
        if names:
            here, there = (held.get(names[0], "nothing") for held in (found[0], theirs))
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise SettingsError(
                f"{what} differ between ranks: {names[0]}{more} is {there} on rank {number}, "
                f"{here} on rank 0; {way_out}"
            )


def _as_bytes(thing: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)


def _from_bytes(content: Tensor) -> Any:
    """What another rank of the same job has sent, which runs the same script."""
    return pickle.loads(content.numpy().tobytes())
