"""Data that is the same each time it is read passes, any other is refused before it is used."""

from typing import Any

import pytest
import torch

from sbc_plugin.calibration.same_batches import SameBatches
from sbc_plugin.errors import CheckpointError

A, B, C = (torch.full((2, 1, 3), float(i)) for i in range(3))


class Changing:
    """Other batches each time."""

    def __init__(self, *times: list[Any]) -> None:
        self.times = iter(times)

    def __iter__(self) -> Any:
        return iter(next(self.times))


def test_batches_pass_unchanged_however_far_they_are_read() -> None:
    data = SameBatches([A, B, C], A)
    assert next(iter(data)) is A and data.known()[1] is False
    assert [id(x) for x in data] == [id(x) for x in (A, B, C)] and len(data) == 3
    known, complete = data.known()
    assert len(known) == 3 and complete and not data.grown
    later = SameBatches([A.clone(), B.clone(), C.clone()], A, (known, True))
    later.check()
    assert len(list(later)) == 3 and not later.grown


def test_the_first_batches_are_compared_and_later_ones_added() -> None:
    known, complete = SameBatches([A, B, C], A).known()
    assert len(known) == 1 and not complete
    later = SameBatches([A, B], A, (known, complete))
    later.check()  # reads no more than is known
    assert len(later.known()[0]) == 1 and not later.grown
    list(later)
    assert later.grown and later.known()[1]


@pytest.mark.parametrize(
    ("second", "message", "passed"),
    [
        ([B, A, C], "batch 0 is another", 0),
        ([A, C, B], "batch 1 is another", 1),
        ([A, B], "there are 2 batches, and there were 3", 2),
        ([], "there are 0 batches, and there were 3", 0),
        ([A, B, C, A], "batch 3 is another", 3),
        ([A, B.double(), C], "batch 1 is another", 1),
    ],
)
def test_a_second_pass_that_differs_is_refused_before_it_is_used(second: list[Any], message: str, passed: int) -> None:
    data = SameBatches(Changing([A, B, C], second), A)
    list(data)
    seen = []
    with pytest.raises(CheckpointError, match=rf"{message} .*shuffle=False"):
        for x in data:
            seen.append(x)
    assert len(seen) == passed


def test_checking_leaves_random_numbers_alone() -> None:
    class Drawing:
        def __iter__(self) -> Any:
            torch.rand(1)
            return iter([A, B])

    data = SameBatches(Drawing(), A)
    before = torch.get_rng_state()
    data.check()
    assert torch.equal(torch.get_rng_state(), before)


def test_data_without_a_length_has_none() -> None:
    with pytest.raises(TypeError):
        len(SameBatches((x for x in [A]), A))
