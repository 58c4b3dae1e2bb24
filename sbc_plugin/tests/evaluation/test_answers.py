"""Answers of two networks, against counting by hand; and what a spike distance says, against trains made for it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sbc_plugin.core.spikes import TAU_STEPS, van_rossum_distance
from sbc_plugin.evaluation.answers import Answers, AnswerTally, Check, answered
from sbc_plugin.evaluation.comparison import meaning_of

CLASSES = 4


def outputs(seed: int, count: int = 50) -> Tensor:
    """Spike counts (B, classes), many of them tied."""
    return torch.randint(0, 4, (count, CLASSES), generator=torch.Generator().manual_seed(seed)).float()


def tallied(batches: list[tuple[Any, Tensor, Tensor]]) -> Answers | None:
    tally = AnswerTally()
    for batch, before, after in batches:
        tally.add(batch, answered(before, len(before)), answered(after, len(after)))
    return tally.result()


def test_agreement_ties_and_accuracy_are_those_counted_one_by_one() -> None:
    batches = []
    agree = tied = right = lost = won = 0
    for seed in range(3):
        before, after = outputs(seed), outputs(10 + seed)
        labels = torch.randint(0, CLASSES, (50,), generator=torch.Generator().manual_seed(20 + seed))
        batches.append(((torch.zeros(5, 50, 2), labels), before, after))
        for one, other, label in zip(before.tolist(), after.tolist(), labels.tolist(), strict=True):
            best, now = one.index(max(one)), other.index(max(other))  # the lowest of equal ones
            agree += best == now
            tied += one.count(max(one)) > 1
            right += now == label
            lost += best == label != now
            won += now == label != best
    found = tallied(batches)
    assert found is not None and found.check is not None
    assert (found.agreement, found.tied_dense) == (agree / 150, tied / 150)
    assert (found.check.accuracy, found.check.lost, found.check.won) == (right / 150, lost, won)


def test_time_is_summed_over() -> None:
    x = outputs(0)
    over_time = torch.stack([x * 0, x, x * 0])
    found = answered(over_time, 50)
    assert found is not None and torch.equal(found.best, x.argmax(1))


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(5, 50, 2),
        (torch.zeros(5, 50, 2),),
        (torch.zeros(5, 50, 2), torch.eye(CLASSES)[torch.zeros(50).long()]),  # one-hot: no numbers to fit
    ],
)
def test_without_labels_nothing_is_right(batch: Any) -> None:
    found = tallied([(batch, outputs(0), outputs(1))])
    assert found is not None and found.check is None and 0 < found.agreement < 1


@pytest.mark.parametrize("output", [torch.zeros(50), torch.zeros(7, CLASSES), torch.zeros(50, 3, 8, 8), "text", None])
def test_other_outputs_have_no_answers(output: Any) -> None:
    assert answered(output, 50) is None
    tally = AnswerTally()
    tally.add(torch.zeros(5, 50, 2), answered(output, 50), answered(output, 50))
    assert tally.result() is None


def test_numbers_to_fit_are_no_answers() -> None:
    assert tallied([((torch.zeros(5, 50, 2), torch.rand(50, CLASSES)), outputs(0), outputs(1))]) is None


def test_one_output_gives_no_agreement() -> None:
    assert tallied([(torch.zeros(5, 50, 2), outputs(0)[:, :1], outputs(1)[:, :1])]) is None


def test_labels_that_some_batches_lack_are_not_counted() -> None:
    labelled = (torch.zeros(5, 50, 2), torch.zeros(50).long())
    found = tallied([(labelled, outputs(0), outputs(1)), (labelled[0], outputs(2), outputs(3))])
    assert found is not None and found.check is None


@pytest.mark.parametrize(
    ("lost", "won", "worse"), [(0, 0, False), (3, 3, False), (6, 0, True), (40, 10, True), (0, 9, False)]
)
def test_a_loss_counts_where_chance_does_not_explain_it(lost: int, won: int, worse: bool) -> None:
    """Against the exact sign test of the sequences that changed, one-sided at 2.5 %."""
    tail = sum(math.comb(lost + won, k) for k in range(lost, lost + won + 1)) / 2 ** (lost + won)
    assert worse == (tail < 0.025)
    check = Check(0.9, 0.9 - (lost - won) / 600, 600, lost, won)
    assert check.worse == worse
    assert ("more than chance" in check.summary) == (worse or won == 9)
    assert "±" in check.summary and "600 sequences" in check.summary


def relative(before: Tensor, after: Tensor) -> float:
    distances = [
        float(van_rossum_distance(before, other, tau=TAU_STEPS, dt=1.0)) for other in (after, torch.zeros_like(before))
    ]
    return distances[0] / distances[1]


@pytest.mark.parametrize(("missing", "late"), [(7, 0), (30, 0), (0, 37), (0, 80), (100, 0)])
def test_what_a_distance_says_is_what_such_trains_have(missing: int, late: int) -> None:
    """A hundred spikes so far apart that they do not see each other, some of them missing, or a step late."""
    times = torch.arange(100) * 200
    before = torch.zeros(100 * 200 + 200, dtype=torch.float64)
    before[times] = 1
    after = torch.zeros_like(before)
    after[times[missing : 100 - late]] = 1
    after[times[100 - late :] + 1] = 1
    said = meaning_of(relative(before, after))
    if missing == 100:
        assert "silence" in said
    elif missing:
        assert f"as if {missing} % of the spikes were missing" in said
    else:
        assert f"or {late} % came a step late" in said


@pytest.mark.parametrize("distance", [math.inf, 1.0, 2.5])
def test_no_better_than_silence(distance: float) -> None:
    assert "further from the dense spikes than silence" in meaning_of(distance)
