"""What ranks are told and dealt, as far as one process shows; several are in ``integration_tests/distributed``."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sbc_plugin.calibration import meeting, ranks, shares
from sbc_plugin.calibration.fingerprint import digest
from sbc_plugin.errors import CalibrationError, CompressionError, RankError, SettingsError


@pytest.fixture
def of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of three ranks, which exchange nothing."""
    monkeypatch.setattr(ranks, "count", lambda: 3)
    monkeypatch.setattr(ranks, "rank", lambda: 1)


def test_one_process_makes_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "broadcast", "all_gather", "new_group", "send", "recv"):
        monkeypatch.delattr(dist, name)
    tensor = torch.ones(2)
    with ranks.joined():
        ranks.meet("here")
        ranks.total([tensor])
        ranks.spread([tensor])
        ranks.agree("models", {"a": "b"}, "")
        listed = [tensor]
        assert ranks.handed(tensor) is tensor and ranks.everyone(3) == [3] and ranks.listed(listed) is listed
    assert tensor.tolist() == [1, 1]
    data = [tensor, tensor]
    first, own = shares.peek(data)
    assert first is tensor and own is data


@pytest.mark.parametrize("costs", [(5.0, 4.0, 3.0, 3.0, 3.0), (1.0,), (), (7.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0)])
def test_deal_is_near_the_best_of_all(of_three: None, costs: tuple[float, ...]) -> None:
    """Largest first is at most 4/3 - 1/(3 ranks) of the best makespan (Graham, 1969)."""

    def longest(owners: tuple[int, ...]) -> float:
        loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
        return max(loads)

    best = min(longest(owners) for owners in product(range(3), repeat=len(costs)))
    assert longest(tuple(ranks.deal(costs))) <= (4 / 3 - 1 / 9) * best + 1e-9


def test_ranks_take_turns(of_three: None) -> None:
    assert list(ranks.numbered("ab")) == [(1, "a"), (4, "b")]
    turns = shares._Turns(range(8))
    assert list(turns) == [1, 4, 7] and turns.length == 8
    assert list(turns) == [1, 4, 7]  # again
    once = shares._OneTurn(iter(range(5)))
    assert next(once) == 1 and list(once) == [4] and once.length == 5


def test_what_a_verdict_says() -> None:
    here: meeting.Said = {"place": "a sum"}
    there: meeting.Said = {"place": "the end"}
    failed: meeting.Said = {"error": "no", "kind": "CalibrationError"}
    gone: meeting.Said = {"gone": True}
    lost: meeting.Said = {"lost": "a sum failed"}
    assert meeting._verdict([here, here]) is None
    for said, rank, text in (
        ([here, failed, gone], 1, "no"),
        ([here, gone, lost], 1, meeting.GONE),
        ([lost, here, gone], 2, meeting.GONE),
        ([here, lost, there], 1, "a sum failed"),
    ):
        verdict = meeting._verdict(said)
        assert verdict is not None and (verdict["rank"], verdict["error"]) == (rank, text)
    verdict = meeting._verdict([here, there])
    assert verdict is not None and "all ranks have to make this call" in verdict["error"]


@pytest.mark.parametrize(
    ("verdict", "kind", "text"),
    [
        ({"rank": 1, "error": "no", "kind": "CalibrationError"}, CalibrationError, "rank 1: no"),
        ({"rank": 0, "error": "no", "kind": "CalibrationError", "alike": True}, CalibrationError, "no"),
        ({"rank": 2, "error": "5", "kind": "KeyError"}, RankError, "rank 2: KeyError: 5"),
        ({"rank": 2, "error": meeting.GONE}, RankError, f"rank 2: {meeting.GONE}"),
    ],
)
def test_the_same_kind_of_error_on_all_ranks(verdict: meeting.Said, kind: type[CompressionError], text: str) -> None:
    error = meeting._error_of(verdict)
    assert type(error) is kind and str(error) == text


def test_a_digest_tells_apart_what_differs() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    others = [
        x.T, x.double(), x.reshape(3, 2), -x, x.int(), [x], (x, 1), {"x": x}, {"y": x}, x.bfloat16(),
        torch.zeros(0), torch.zeros(0, 1), "x", None, torch.complex(x, x), torch.complex(x, x).conj(), object(), 0.0, 0,
    ]  # fmt: skip
    digests = [digest(other) for other in [x, *others]]
    assert len(set(digests)) == len(digests)
    assert digest(x.clone()) == digest(x) == digest(x.to_sparse()) == digest(x.T.T)


def test_shares_of_a_sampler(of_three: None) -> None:
    data = TensorDataset(torch.zeros(6, 1))

    def loader(num_replicas: int, rank: int) -> DataLoader[object]:
        return DataLoader(data, sampler=DistributedSampler(data, num_replicas, rank, shuffle=False))

    assert shares._dealt_by_sampler(loader(num_replicas=3, rank=1))
    assert not shares._dealt_by_sampler(loader(num_replicas=1, rank=0))
    assert not shares._dealt_by_sampler(DataLoader(data)) and not shares._dealt_by_sampler([1, 2])
    with pytest.raises(SettingsError, match="draws for rank 0 of 2, this is rank 1 of 3"):
        shares._dealt_by_sampler(loader(num_replicas=2, rank=0))


def test_sharded_data_is_the_data_where_there_is_one_process() -> None:
    first, data = shares.peek(shares.sharded(iter([torch.ones(1, 1), torch.zeros(1, 1)])))
    assert first.item() == 1 and [x.item() for x in data] == [1, 0]
    kept = shares.kept(shares.sharded(iter([1, 2])))
    assert list(kept) == list(kept) == [1, 2]
    with pytest.raises(CalibrationError, match="no batch"):
        shares.peek(shares.sharded([]))
