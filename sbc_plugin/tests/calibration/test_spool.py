"""What does not fit into memory comes back from the file as it was."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sbc_plugin.calibration.spool import Chosen, Spool, size_of, spooled
from sbc_plugin.errors import CalibrationError


@dataclass(frozen=True)
class _Seen:
    spikes: dict[str, Tensor]
    scores: Tensor | None


def _item(number: int) -> tuple[Tensor, _Seen]:
    spikes = torch.full((3, 2), number, dtype=torch.uint8)
    return torch.full((5,), float(number)), _Seen({"1": spikes}, None if number % 2 else torch.ones(2))


@pytest.mark.parametrize("limit", [None, 0, 40, 70, 10**6])
def test_items_come_back_in_order_as_they_were(limit: int | None) -> None:
    spool = spooled(map(_item, range(6)), limit)
    assert len(spool) == 6
    for number in (3, 0, 5, 3, -1):
        x, seen = spool[number]
        wanted_x, wanted = _item(range(6)[number])
        assert torch.equal(x, wanted_x) and x.dtype == wanted_x.dtype
        assert torch.equal(seen.spikes["1"], wanted.spikes["1"]) and seen.spikes["1"].dtype == torch.uint8
        assert (seen.scores is None) == (wanted.scores is None)
    assert [int(x[0]) for x, _ in spool] == list(range(6))
    with pytest.raises(IndexError):
        spool[6]


def test_no_more_than_the_limit_stays_in_memory() -> None:
    size = size_of(_item(0))
    assert size == 5 * 4 + 6 + 2 * 4
    spool = spooled(map(_item, [0] * 5), 2 * size)
    assert spool.on_disk == 3
    spool.append(_item(0))  # also a small one goes behind the others
    assert spool.on_disk == 4 and len(spool) == 6


def test_slices_and_choices_read_from_the_whole() -> None:
    spool = Spool[Tensor](0)
    for number in range(10):
        spool.append(torch.tensor(number))
    assert [int(each) for each in spool[4::5]] == [4, 9]
    assert [int(each) for each in Chosen(spool, [7, 1, 2])[1:]] == [1, 2]
    assert len(spool[2:2]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(CalibrationError, match=r"go to a file in .*No space left .*TMPDIR"):
            Spool[Tensor](0).append(torch.zeros(3))
