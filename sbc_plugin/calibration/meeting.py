"""How the ranks of ``torch.distributed`` meet, so that all end when one fails: the groups that they talk in.

Before each exchange of data the ranks *meet*: each tells the first one how it fares, and hears from it whether all may
go on. A rank that raises meets the others once more on its way out, wherever they are, so that nobody waits for it. A
rank that was killed is noticed at once, because its connection is closed; a machine that hangs after ``WAIT``.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sbc_plugin.errors import CompressionError, RankError

WAIT = timedelta(hours=1)  # at most, for the others, of whom one may solve a large layer
MESSAGE = 4096  # bytes of what a rank says when it meets the others
GONE = "no longer answers: it was killed, or its machine or network is gone; nothing was changed"
ONE_BY_ONE = (
    "all ranks have to make this call; for one of them alone, put it into `with sbc_plugin.alone():`, or end "
    "torch.distributed first"
)

Said = dict[str, Any]


@dataclass
class Meeting:
    """The ranks that work together.

    Attributes:
        rank: of this one.
        count: of all.
        status: the group in which they meet.
        data: the group in which values are exchanged; ended where that failed, so that nobody waits in it.
        over: whether all ranks know that one has failed.
    """

    rank: int
    count: int
    status: Any
    data: Any
    over: bool = False

    @classmethod
    def called(cls) -> "Meeting":
        """Of all ranks, each of which has to call it.

        Raises:
            RankError: one did not.
        """
        try:
            groups = [dist.new_group(backend="gloo", timeout=WAIT) for _ in range(2)]
        except RuntimeError as error:
            raise RankError(f"the other ranks did not come ({_line(error)}); {ONE_BY_ONE}") from error
        status, data = groups
        return cls(dist.get_rank(), dist.get_world_size(), status, data)

    def meet(self, place: str) -> None:
        """Go on when all have come to this place.

        Raises:
            CompressionError: another rank failed, or will not come.
        """
        verdict = self._hear({"place": place})
        if verdict is not None:
            self.over = True
            told: CompressionError = _error_of(verdict)
            raise told

    def fail(self, error: BaseException) -> None:
        """Tell the others, unless they know, and say in the error which rank this is where it is not all of them."""
        if self.over:
            return
        self.over = True
        self._end_exchange()
        verdict = self._hear({"error": _line(error), "kind": type(error).__name__})
        alike = verdict is not None and verdict.get("alike")
        if isinstance(error, CompressionError) and error.args and not alike:
            error.args = (f"rank {self.rank}: {error.args[0]}", *error.args[1:])

    def on_tensors(self, place: str, run: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
        """Run a collective on each tensor where its backend can: in place, or on a copy that is brought back."""

        def each() -> None:
            for tensor in tensors:
                group, device = self._backend(tensor)
                held = tensor.detach().to(device).contiguous()
                run(held, group=group)
                if held.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(held)

        self.exchange(f"{place} of {len(tensors)}", each)

    def exchange(self, place: str, run: Callable[[], Any]) -> None:
        """Meet, and exchange values.

        Raises:
            CompressionError: another rank failed, or will not come.
        """
        self.meet(place)
        try:
            run()
        except BaseException as error:
            clear_frames(error.__traceback__)  # they hold the group, whose connections are to close now
            self._end_exchange()
            if not isinstance(error, RuntimeError):
                raise
            lost = f"{place} failed: {_line(error)}"
        else:
            return
        self.over = True
        verdict = self._hear({"lost": lost})
        told: CompressionError = _error_of(verdict or {"rank": self.rank, "error": lost})
        raise told

    def close(self) -> None:
        """End the groups."""
        self._end_exchange()
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group(self.status)

    def _end_exchange(self) -> None:
        if self.data is not None:
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group(self.data)
            self.data = None

    def _backend(self, tensor: Tensor) -> tuple[Any, torch.device]:
        """The group and the device for a tensor: NCCL for one of a GPU where the user has it, else gloo."""
        if tensor.device.type == "cuda" and "cuda:nccl" in dist.get_backend_config():
            return dist.group.WORLD, tensor.device
        return self.data, torch.device("cpu")

    def _hear(self, said: Said) -> Said | None:
        """What the first rank makes of what all have said; None: go on."""
        if self.rank == 0:
            verdict = _verdict([said, *(self._receive(other, {"gone": True}) for other in range(1, self.count))])
            for other in range(1, self.count):
                self._send(other, verdict or {})
            return verdict
        self._send(0, said)
        return self._receive(0, {"rank": 0, "error": GONE}) or None

    def _send(self, other: int, said: Said) -> None:
        """To a rank that may be gone, which shows when it is heard."""
        text = json.dumps(said)
        if len(text) > MESSAGE:
            text = json.dumps(
                {key: value[: MESSAGE // 4] if isinstance(value, str) else value for key, value in said.items()}
            )
        content = torch.frombuffer(bytearray(text.ljust(MESSAGE).encode("ascii")[:MESSAGE]), dtype=torch.uint8)
        with suppress(RuntimeError):
            dist.send(content, dst=other, group=self.status)

    def _receive(self, other: int, gone: Said) -> Said:
        content = torch.zeros(MESSAGE, dtype=torch.uint8, device="cpu")
        try:
            dist.recv(content, src=other, group=self.status)
        except RuntimeError:
            return gone
        said: Said = json.loads(content.numpy().tobytes())
        return said


def _verdict(said: list[Said]) -> Said | None:
    """The first rank that cannot go on, and why: its own error before one that is gone, and before a lost contact."""
    for rank, each in enumerate(said):
        if "error" in each:
            alike = all(other.get("error") == each["error"] for other in said)
            return {"rank": rank, "error": each["error"], "kind": each["kind"], "alike": alike}
    for rank, each in enumerate(said):
        if each.get("gone"):
            return {"rank": rank, "error": GONE}
    for rank, each in enumerate(said):
        if "lost" in each:
            return {"rank": rank, "error": each["lost"]}
    for rank, each in enumerate(said):
        if each["place"] != said[0]["place"]:
            return {"rank": rank, "error": f"is at {each['place']}, rank 0 at {said[0]['place']}; {ONE_BY_ONE}"}
    return None


def _error_of(verdict: Said) -> CompressionError:
    """What to raise on the other ranks: the same kind where it is one of this package's."""
    kinds: dict[str, type[CompressionError]] = {
        kind.__name__: kind for kind in (*CompressionError.__subclasses__(), CompressionError)
    }
    name = verdict.get("kind", RankError.__name__)
    if name in kinds:
        message = verdict["error"]
        return kinds[name](message if verdict.get("alike") else f"rank {verdict['rank']}: {message}")
    return RankError(f"rank {verdict['rank']}: {name}: {verdict['error']}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
