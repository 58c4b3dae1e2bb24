"""``search`` finds thresholds that are known, calibrates once, and tells what it does not know."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.cases import CASES
from sbc_plugin import Budget, Calibration, Prune, Quantize, SearchReport, compress, search
from sbc_plugin.compression.narrowing import FARTHER, HALVINGS, REFINED, Narrowing, Tried
from sbc_plugin.compression.search import BITS, SPARSITIES
from sbc_plugin.compression.series import Series
from sbc_plugin.compression.sharing import sharing
from sbc_plugin.compression.within import Within
from sbc_plugin.core.paired import PairedDrop, halves
from sbc_plugin.core.storage import packed_bytes
from sbc_plugin.errors import CalibrationError, SettingsError, ToleranceError

ONE_SHOT: dict[str, Any] = {"calibration": Calibration(tuning=0), "progress": False}
NAME = "step"


class Counted(list[Any]):
    """Batches that count how often they are run through to the end."""

    passes = 0

    def __iter__(self) -> Any:
        yield from super().__iter__()
        self.passes += 1


def batches() -> list[Tensor]:
    return [CASES[NAME].batch(seed=seed) for seed in range(1, 5)]


def labelled(model: nn.Module, batches_: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels are the model's own answers, so that it is right in all."""
    case = CASES[NAME]
    found = []
    for seed in range(100, 100 + batches_):
        x = case.batch(seed=seed)
        found.append((x, case.output(model, x).sum(0).argmax(1)))
    return found


def zeros(model: nn.Module) -> float:
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.77, 0.9])
def test_a_known_threshold_is_found_to_the_resolution_in_seven_networks(threshold: float) -> None:
    calls = []

    def evaluate(model: nn.Module) -> float:
        calls.append(zeros(model))
        return 5.0 if calls[-1] <= threshold else 2.0

    model = CASES[NAME].model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, report = search(model, batches(), evaluate=evaluate, max_drop=0.5, **ONE_SHOT)
    assert len(calls) == 8 and len(report.points) == 7 and report.best is not None
    assert len({point.sparsity for point in report.points}) == 7
    assert zeros(small) <= threshold
    # brute force: a network has floor(sparsity * weights) zeros or one more, so compare by the networks themselves
    following = SPARSITIES[SPARSITIES.index(report.best.sparsity or 0.0) + 1]
    assert zeros(compress(model, batches(), prune=Prune(following), **ONE_SHOT)[0]) > threshold
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report.check is None and report.best.low is None and report.unit == "score"
    assert report.report is not None and report.report.recipe is not None
    again, _ = compress(model, batches(), **report.report.recipe.arguments(), progress=False)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("lowest", [2, 3, 5, 8])
def test_bits_are_found_by_levels(lowest: int) -> None:
    seen: list[float] = []

    def evaluate(model: nn.Module) -> float:
        weight = next(p for p in model.parameters() if p.dim() > 1).detach()
        levels = max(len((row / row.abs().max()).unique()) for row in weight)
        seen.append(levels)
        return 0.0 if len(seen) == 1 or asked[len(seen) - 2] >= lowest else -1.0

    asked = [BITS[rung] for rung in probed(7, lambda rung: BITS[rung] >= lowest)]
    _, report = search(CASES[NAME].model(), batches(), evaluate=evaluate, max_drop=0.1, over="bits", **ONE_SHOT)
    assert report.best is not None and report.best.bits == lowest and len(report.points) <= 3
    assert report.report is not None and {layer.bits for layer in report.report.layers} == {lowest}


def probed(count: int, accepted: Any) -> list[int]:
    asked: list[int] = []

    def trial(rung: int, tuned: bool) -> Tried:
        assert not tuned
        asked.append(rung)
        return Tried(0.0 if accepted(rung) else 1.0)

    Narrowing(count, 0.5, trial, 1, "never").run()
    return asked


@pytest.mark.parametrize("count", [1, 2, 7, 63, 127])
def test_without_tuning_every_threshold_is_found_by_halves(count: int) -> None:
    for last in range(-1, count):
        asked = probed(count, lambda rung, last=last: rung <= last)
        assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count + 1))
        assert max((rung for rung in asked if rung <= last), default=-1) == last


class Simulated:
    """Networks whose drop grows along the ladder, to 1 at ``last`` without tuning and at ``further`` with it."""

    def __init__(self, last: int, further: int, steps: int = 50, needless: int = -1) -> None:
        self.last, self.further, self.steps, self.needless = last, further, steps, needless
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, rung: int, tuned: bool) -> Tried:
        assert (rung, tuned) not in self.asked
        self.asked.append((rung, tuned))
        beyond = rung - self.end(rung, tuned)
        steps, hopeless = self.steps if tuned and rung > self.needless else 0, not self.steps and self.needless < 0
        return Tried(math.exp(beyond / 5) if beyond <= 0 else 1 + beyond / 10, steps, hopeless)

    def end(self, rung: int, tuned: bool) -> int:
        return self.further if tuned and self.steps and rung > self.needless else self.last

    def best(self, tuned_only: bool = False) -> int:
        known = [rung for rung, tuned in self.asked if rung <= self.end(rung, tuned) and (tuned or not tuned_only)]
        return max(known, default=-1)


@pytest.mark.parametrize("count", [7, 63, 127])
def test_few_networks_are_tuned_and_the_answer_is_near_the_best(count: int) -> None:
    stretch, behind = max(1, count // 16), []
    for last in range(-1, count):
        for gain in (0, stretch, 2 * stretch):
            further = min(last + gain, count - 1)
            if further < 0:
                continue
            networks = Simulated(last, further)
            Narrowing(count, 1.0, networks, stretch).run()
            behind.append(further - networks.best())
            tuned = sum(each for _, each in networks.asked)
            assert networks.best() >= max(last - count // 16, 0) and len(networks.asked) - tuned <= HALVINGS + REFINED
            assert tuned <= 3 or all(rung > last for rung, each in networks.asked if not each)
    assert max(behind) <= max(count // 8, 1) and sum(behind) / len(behind) <= count / 20


def test_given_steps_tune_the_answer_and_tuning_that_stands_back_leaves_the_rest_to_the_solvers() -> None:
    for last in range(127):
        networks = Simulated(last, min(last + 8, 126))
        Narrowing(127, 1.0, networks, 8, "always").run()
        assert networks.best(tuned_only=True) >= last - 16
        standing = Simulated(last, 126, steps=0)
        Narrowing(127, 1.0, standing, 8).run()
        assert standing.best() >= max(last - 4, 0) and sum(tuned for _, tuned in standing.asked) <= 1
        assert len(standing.asked) <= (HALVINGS + 1 + REFINED if last > 15 else 8)
        standing = Simulated(last, 126, steps=0, needless=126)
        Narrowing(127, 1.0, standing, 8).run()
        assert standing.best() >= max(last - 4, 0) and sum(tuned for _, tuned in standing.asked) <= 1 + FARTHER


@pytest.mark.parametrize("needless", [4, 10, 20])
def test_where_tuning_is_not_needed_yet_a_search_goes_farther(needless: int) -> None:
    for last in range(16, 100):
        networks = Simulated(last, last + 28, needless=last + needless)
        Narrowing(127, 1.0, networks, 8).run()
        tuned = [rung for rung, each in networks.asked if each and rung > last + needless]
        assert networks.best() >= last + 12 and 1 <= len(tuned) <= 2


def test_an_answer_is_tuned_where_compress_would_tune_it() -> None:
    for last in range(16, 127):
        networks = Simulated(last, last)
        Narrowing(127, 1.0, networks, 8).run()
        assert networks.best(tuned_only=True) == networks.best() >= last - 8


def test_where_tuning_does_harm_the_solvers_alone_answer() -> None:
    for last in range(127):
        networks = Simulated(last, -1)
        Narrowing(127, 1.0, networks, 8).run()
        assert networks.best() >= last - 16 and networks.best() >= 0


def test_all_points_share_one_calibration() -> None:
    data = Counted(batches())
    search(CASES[NAME].model(), data, evaluate=zeros, max_drop=2.0, **ONE_SHOT)
    assert data.passes == 1


def test_labels_decide_and_the_other_half_checks() -> None:
    model = CASES[NAME].model()
    data = labelled(model)
    small, report = search(model, batches(), test_data=iter(data), max_drop=20.0, **ONE_SHOT)
    labels = torch.cat([y for _, y in data])
    right = torch.cat([CASES[NAME].output(small, x).sum(0).argmax(1) == y for x, y in data])
    one, other = halves(labels)
    assert report.best is not None and report.check is not None and report.sequences == int(one.sum())
    assert report.best.accuracy == pytest.approx(float(right[one].double().mean()))
    assert report.best.drop == pytest.approx(100 * (1 - float(right[one].double().mean()))) and report.best.drop <= 20
    assert report.check.sequences == int(other.sum()) and report.check.lost == int((~right[other]).sum())
    expected = PairedDrop(int(other.sum()), int((~right[other]).sum()), 0)
    assert report.check.interval == pytest.approx((100 * expected.low, 100 * expected.high))
    assert report.dense.accuracy == 1.0 and report.check.accuracy_dense == 1.0
    lines = str(report).splitlines()
    assert lines[-1] == report.answer and f"{report.check.sequences} sequences that the search did not see" in lines[-1]
    assert SearchReport.from_dict(json.loads(report.to_json())) == report


def test_a_tolerance_within_the_noise_is_told() -> None:
    model = CASES[NAME].model()
    _, report = search(model, batches(), test_data=labelled(model), max_drop=0.5, over="bits", **ONE_SHOT)
    assert report.check is not None
    assert (
        report.noise.startswith("15 sequences cannot tell 0.5 points: their interval is ±") and "about" in report.noise
    )
    assert report.noise in str(report)
    assert "no number of sequences" in replace(report, max_drop=0.0).noise and not replace(report, max_drop=60.0).noise


def test_where_nothing_stays_within_the_tolerance_an_error_has_all_that_was_tried() -> None:
    with pytest.raises(ToleranceError, match=r"no network stays within max_drop=0.1.*sparsity 3.72%") as caught:
        search(
            CASES[NAME].model(), batches(), evaluate=lambda model: float(zeros(model) == 0), max_drop=0.1, **ONE_SHOT
        )
    report = caught.value.report
    assert isinstance(report, SearchReport) and report.best is None and len(report.points) == 7
    assert SearchReport.from_dict(json.loads(report.to_json())) == report


def test_other_settings_go_to_every_network() -> None:
    prune = Prune(0.1, allocation="uniform", silent_first=False)
    _, report = search(
        CASES[NAME].model(), batches(), evaluate=lambda model: 0, prune=prune, quantize=Quantize(5), ignore=["0"],
        **ONE_SHOT,
    )  # fmt: skip
    assert report.report is not None and report.report.recipe is not None
    assert report.report.recipe.prune == replace(
        prune, sparsity=SPARSITIES[-1], rounds=report.report.recipe.prune.rounds
    )  # type: ignore[union-attr]
    assert "0" not in [layer.name for layer in report.report.layers] and report.points[0].bits == 5


@pytest.mark.parametrize("chip", [None, Budget(size=1, fan_in=4)])
def test_a_size_is_found_and_its_recipe_makes_the_same_bits(chip: Budget | None) -> None:
    model = CASES[NAME].model()
    sizes: list[int] = []

    def evaluate(small: nn.Module) -> float:
        sizes.append(sum(packed_bytes(p.detach().flatten(1)) for p in small.parameters() if p.dim() > 1))
        return float(sizes[-1] >= limit)

    limit = sum(4 * p.numel() for p in model.parameters() if p.dim() > 1) / 9
    small, report = search(
        model, batches(), evaluate=evaluate, max_drop=0.5, over="size", budget=chip, **ONE_SHOT
    )  # fmt: skip
    best = report.best
    assert best is not None and best.factor is not None and f"1 / {best.factor:g} of the size" in report.answer
    for point, size in zip(report.points, sizes[1:], strict=True):
        assert point.factor is not None and size == point.packed_bytes <= sizes[0] / point.factor
    assert best.packed_bytes == min(size for size in sizes if size >= limit)
    if chip is not None:
        weights = [p for p in small.parameters() if p.dim() > 1]
        assert all(int((weight.flatten(1) != 0).sum(1).max()) <= 4 for weight in weights)
    assert report.report is not None and report.report.recipe is not None
    again, _ = compress(model, batches(), **report.report.recipe.arguments(), progress=False)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())
    assert SearchReport.from_dict(json.loads(report.to_json())) == report


def test_curves_of_a_budget_are_measured_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    solved = Within.solved

    def counted(self: Within, layer: Any, share: Any) -> Any:
        asked.append((layer.name, share))
        return solved(self, layer, share)

    monkeypatch.setattr(Within, "solved", counted)
    with sharing():
        compress(CASES[NAME].model(), batches(), budget=Budget(factor=6), **ONE_SHOT)
        first = len(asked)
        compress(CASES[NAME].model(), batches(), budget=Budget(factor=6), **ONE_SHOT)
    again = asked[first:]
    compress(CASES[NAME].model(), batches(), budget=Budget(factor=6), **ONE_SHOT)
    alone = asked[first + len(again) :]
    assert len(again) < first / 2 and alone == asked[:first]


def test_networks_are_tuned_at_last_and_the_report_counts_their_steps() -> None:
    model = CASES[NAME].model()
    threshold = {False: 0.5, True: 0.8}
    steps: list[int] = []

    def evaluate(small: nn.Module) -> float:
        return float(zeros(small) <= threshold[bool(steps and steps[-1])])

    made = Series.made

    def noting(self: Series, budgets: Any, statistics: Any, tuned: bool = True) -> Any:
        steps.append(int(tuned))
        return made(self, budgets, statistics, tuned)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Series, "made", noting)
        small, report = search(
            model, batches(), evaluate=evaluate, max_drop=0.5, calibration=Calibration(tuning=2), progress=False
        )
    assert steps[:3] == [0, 0, 0] and 1 <= sum(steps) <= 3
    assert [point.steps for point in report.points] == [2 * each for each in steps]
    assert report.best is not None and report.best.steps == 2 and 0.5 < zeros(small) <= 0.8
    assert report.report is not None and report.report.recipe is not None
    again, _ = compress(model, batches(), **report.report.recipe.arguments(), progress=False)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_answer_is_tuned_also_where_the_solvers_alone_were_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Series, "tuned", "if needed")
    _, report = search(
        CASES[NAME].model(),
        batches(),
        evaluate=lambda small: float(zeros(small) <= 0.5),
        max_drop=0.5,
        calibration=Calibration(tuning=2),
        progress=False,
    )
    asked = [(point.sparsity, point.steps) for point in report.points]
    assert report.best is not None and report.best.steps == 2 and report.best.sparsity is not None
    assert (report.best.sparsity, 0) in asked and report.best.sparsity <= 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says how good"),
        ({"evaluate": zeros, "test_data": [(torch.zeros(6, 3, 5), torch.zeros(3).long())]}, "leave one of them out"),
        ({"evaluate": 3}, "cannot be called"),
        ({"evaluate": lambda model: math.nan}, "finite number"),
        ({"evaluate": lambda model: "much"}, "finite number"),
        ({"evaluate": zeros, "over": "speed"}, "'sparsity', 'bits', 'size'"),
        ({"evaluate": zeros, "over": "size", "prune": Prune(0.5)}, "leave one of the two out"),
        ({"evaluate": zeros, "over": "size", "budget": 5}, "is no Budget"),
        ({"evaluate": zeros, "budget": Budget(factor=5)}, "budget="),
        ({"evaluate": zeros, "max_drop": -1}, "max_drop=-1"),
        ({"evaluate": zeros, "max_drop": math.nan}, "max_drop=nan"),
        ({"evaluate": zeros, "inplace": True}, "inplace="),
        ({"evaluate": zeros, "checkpoint": "x"}, "checkpoint="),
        ({"evaluate": zeros, "sparsity": 0.5}, "sparsity= is unknown"),
        ({"evaluate": zeros, "prune": Prune(0.5, "2:4")}, "fixes the sparsity"),
        ({"evaluate": zeros, "prune": 0.5}, "is no Prune"),
        ({"evaluate": zeros, "method": "best"}, "method='best'"),
        ({"evaluate": zeros, "statistics": {}}, "statistics"),
    ],
)
def test_arguments_that_contradict_are_refused_before_the_work(given: dict[str, Any], message: str) -> None:
    data = Counted(batches())
    with pytest.raises(SettingsError, match=message):
        search(CASES[NAME].model(), data, **{"progress": False, **given})
    assert data.passes == 0


def test_test_data_without_labels_or_in_another_order_is_refused() -> None:
    model = CASES[NAME].model()
    with pytest.raises(CalibrationError, match="batch 0 of test_data holds no labels"):
        search(model, batches(), test_data=batches(), **ONE_SHOT)
    with pytest.raises(CalibrationError, match="holds one sequence"):
        x, y = labelled(model)[0]
        search(model, batches(), test_data=[(x[:, :1], y[:1])], **ONE_SHOT)

    class Shuffled(list[Any]):
        def __iter__(self) -> Any:
            self.append(self.pop(0))
            return super().__iter__()

    with pytest.raises(CalibrationError, match="not the same at each pass"):
        search(model, batches(), test_data=Shuffled(labelled(model)), **ONE_SHOT)


def test_the_told_interval_holds_the_drop_on_unseen_data() -> None:
    """Searches over simulated networks, 6 of them x 3 tolerances, many times: the choice must not bias the check."""
    generator = torch.Generator().manual_seed(0)
    held = total = 0
    for network in range(6):
        lost = [0.4 * ((rung + 1) / 127) ** (2 + network) for rung in range(127)]  # of all sequences, by rung
        won = [0.3 * share for share in lost]
        for tolerance in (0.5, 1.0, 3.0):
            for _ in range(40):
                seen, other = torch.rand(2, 150, generator=generator)

                def drop(rung: int, draw: Tensor, lost: list[float] = lost, won: list[float] = won) -> PairedDrop:
                    return PairedDrop(150, int((draw < lost[rung]).sum()), int((draw > 1 - won[rung]).sum()))

                asked = probed(127, lambda rung, seen=seen, t=tolerance: 100 * drop(rung, seen).drop <= t)
                within = [rung for rung in asked if 100 * drop(rung, seen).drop <= tolerance]
                if (chosen := max(within, default=-1)) >= 0:
                    check = drop(chosen, other)
                    held += check.low <= lost[chosen] - won[chosen] <= check.high
                    total += 1
    assert total > 600 and held / total >= 0.93
