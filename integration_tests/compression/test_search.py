"""``search`` finds thresholds that are known, calibrates once, and tells what it does not know."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.cases import CASES
from sbc_plugin import Calibration, Prune, Quantize, SearchReport, compress, search
from sbc_plugin.compression.search import BITS, SPARSITIES, bisect
from sbc_plugin.core.paired import PairedDrop, halves
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
    bisect(count, lambda rung: bool(asked.append(rung) or accepted(rung)))
    return asked


@pytest.mark.parametrize("count", [1, 2, 7, 127])
def test_bisection_is_right_for_every_threshold(count: int) -> None:
    for last in range(-1, count):
        asked = probed(count, lambda rung, last=last: rung <= last)
        assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count + 1))
        assert bisect(count, lambda rung, last=last: rung <= last) == last


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says how good"),
        ({"evaluate": zeros, "test_data": [(torch.zeros(6, 3, 5), torch.zeros(3).long())]}, "leave one of them out"),
        ({"evaluate": 3}, "cannot be called"),
        ({"evaluate": lambda model: math.nan}, "finite number"),
        ({"evaluate": lambda model: "much"}, "finite number"),
        ({"evaluate": zeros, "over": "size"}, "'sparsity' or 'bits'"),
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

                chosen = bisect(127, lambda rung, seen=seen, t=tolerance: 100 * drop(rung, seen).drop <= t)
                if chosen >= 0:
                    check = drop(chosen, other)
                    held += check.low <= lost[chosen] - won[chosen] <= check.high
                    total += 1
    assert total > 600 and held / total >= 0.93
