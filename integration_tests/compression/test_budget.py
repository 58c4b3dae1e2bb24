"""A budget is met from below whatever the model, chips' limits hold, and what cannot be met is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sbc_plugin
from integration_tests.models.cases import CASES
from integration_tests.models.one_shot import compress
from sbc_plugin import Budget, Calibration, Prune, Quantize, Report, compare, record_spikes
from sbc_plugin.errors import SettingsError

NAMES = ("step", "conv", "LIFRecurrentCell", "SEW")
ROOT = Path(__file__).parents[2]


def data_of(name: str) -> list[Any]:
    return [CASES[name].batch(seed=seed) for seed in (1, 2)]


def made(name: str, budget: Budget, **settings: Any) -> tuple[nn.Module, Report]:
    case = CASES[name]
    return compress(case.model(), data_of(name), budget=budget, forward=case.forward, progress=False, **settings)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    """Each weight as (rows, everything else)."""
    return [parameter.detach().flatten(1) for parameter in model.parameters() if parameter.dim() > 1]


def counted(model: nn.Module) -> int:
    """Bytes of all weights, by a count of one's own: positions by a mask or none at all, codes, and a scale a row."""
    total = 0
    for weight in weights_of(model):
        kept, codes = int((weight != 0).sum()), 1
        for row in weight.double():
            nonzero = row[row != 0].abs()
            if len(nonzero):
                steps = next(m for m in range(1, 256) if close_to_whole(nonzero / nonzero.min() * m))
                codes = max(codes, int((nonzero / nonzero.min() * steps).round().max()))
        values = 2 * codes + 1
        bits = 1.6 if values <= 3 else (values - 1).bit_length()
        dense, masked = -(-weight.numel() * bits // 1), weight.numel() + -(-kept * bits // 1)
        coded = int(min(dense, masked)) // 8 + 2 + 4 * len(weight)
        total += min(coded, 4 * weight.numel())
    return total


def close_to_whole(values: torch.Tensor) -> bool:
    return bool(((values - values.round()).abs() < 1e-4 * values).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [4.0])
def test_a_size_is_met_from_below(name: str, factor: float) -> None:
    dense = CASES[name].model()
    limit = int(record_spikes(dense, data_of(name), forward=CASES[name].forward).cost.packed_bytes / factor)
    try:
        model, report = made(name, Budget(factor=factor))
    except SettingsError as error:
        assert "too small" in str(error)  # scales alone take more in so small a network
        return
    told = compare(dense, model, data_of(name), forward=CASES[name].forward).compressed.packed_bytes
    assert told <= limit and f"{limit:,} bytes" in report.skipped["budget"] and f"{told:,} bytes" in str(report)
    # A file stores positions in the cheapest of three ways, of which two are counted here.
    assert told <= counted(model)
    again, _ = made(name, Budget(size=limit))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_most_of_the_budget_is_used_and_more_is_never_worse() -> None:
    case = CASES["conv"]
    losses, sizes = [], []
    for limit in (80, 150):
        model, report = made("conv", Budget(size=limit))
        sizes.append(compare(case.model(), model, data_of("conv"), forward=case.forward).compressed.packed_bytes)
        losses.append(sum(row.loss for row in report.layers))
        assert 0.85 * limit <= sizes[-1] <= limit
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["step", "conv", "LIFRecurrentCell"])
@pytest.mark.parametrize("part", [0.5])
def test_operations_and_energy_are_met_as_compare_counts_them(name: str, part: float) -> None:
    case = CASES[name]
    dense = record_spikes(case.model(), data_of(name), forward=case.forward).cost
    limit = part * (dense.operations.acs + dense.operations.macs)
    model, report = made(name, Budget(operations=limit))
    found = compare(case.model(), model, data_of(name), forward=case.forward).compressed
    assert found.operations.acs + found.operations.macs <= limit
    assert all(row.bits == 32 for row in report.layers)
    model, _ = made(name, Budget(energy=part * dense.energy))
    found = compare(case.model(), model, data_of(name), forward=case.forward).compressed
    assert 0 < found.energy <= part * dense.energy


def test_operations_with_bits() -> None:
    case = CASES["conv"]
    dense = record_spikes(case.model(), data_of("conv"), forward=case.forward).cost
    model, report = made("conv", Budget(energy=dense.energy / 2, bits=(4,), power_of_two=True))
    assert {row.bits for row in report.layers} == {4}
    assert compare(case.model(), model, data_of("conv"), forward=case.forward).compressed.energy <= dense.energy / 2


@pytest.mark.parametrize("tuning", [0, 3])
def test_tuned_or_not_the_budget_holds(tuning: int) -> None:
    case = CASES["conv"]
    model, report = sbc_plugin.compress(
        case.model(), data_of("conv"), budget=Budget(size=100), calibration=Calibration(tuning=tuning),
        forward=case.forward, progress=False,
    )  # fmt: skip
    found = compare(case.model(), model, data_of("conv"), forward=case.forward).compressed
    assert 0.8 * 100 <= found.packed_bytes <= 100
    assert report.settings["budget"] == Budget(size=100) and report.settings["prune"] is None
    assert Report.from_dict(json.loads(report.to_json())).settings["budget"] == Budget(size=100)


def test_chips_limits_hold() -> None:
    model, report = made("conv", Budget(size=1000, bits=(3, 4), fan_in=5, core_weights=40, power_of_two=True))
    assert {row.bits for row in report.layers} <= {3, 4}
    for weight in weights_of(model):
        assert int((weight != 0).sum(1).max()) <= 5 and int((weight != 0).sum()) <= 40
        for row in weight:
            if row.any():
                steps = row[row != 0].abs() / 2.0 ** torch.floor(torch.log2(row.abs().max()))
                assert close_to_whole(64 * steps.double())


def test_a_core_that_is_too_small_names_the_layer() -> None:
    model, _ = made("conv", Budget(size=1000, core_bytes=40))
    assert model is not None
    with pytest.raises(SettingsError, match=r"layer '\w+': its .* weights take .* bytes .* a core holds 3"):
        made("conv", Budget(size=1000, core_bytes=3))


@pytest.mark.parametrize(
    "budget", [Budget(size=5), Budget(factor=1000), Budget(operations=1e-3), Budget(energy="1 fJ")]
)
def test_a_budget_that_cannot_be_met_is_refused(budget: Budget) -> None:
    case = CASES["conv"]
    model = case.model()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(SettingsError, match=r"budget of .* is too small"):
        compress(model, data_of("conv"), budget=budget, forward=case.forward, inplace=True, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune": Prune(0.5)}, "prune gives them"),
        ({"quantize": Quantize(4)}, "quantize gives them"),
        ({"method": "magnitude"}, "no|none of"),
        ({"calibration": Calibration(order="sequential")}, "all layers at once"),
        ({"budget": 100}, "is no Budget"),
    ],
)
def test_what_contradicts_a_budget(settings: dict[str, Any], said: str) -> None:
    case = CASES["step"]
    with pytest.raises(SettingsError, match=said):
        compress(case.model(), data_of("step"), **{"budget": Budget(size=100), "progress": False} | settings)


def test_an_interrupted_budget_ends_in_the_same_bits(tmp_path: Path) -> None:
    wanted, _ = made("conv", Budget(size=100))
    for _ in range(2):
        found, report = made("conv", Budget(size=100), checkpoint=tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))
        assert "delivered" in report.skipped["budget"]


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "chips").iterdir()), ids=lambda file: file.name)
def test_the_documented_chips_are_budgets(file: Path) -> None:
    if file.suffix == ".toml":
        pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    assert (
        Budget.from_file(file).counts == "size" and "Source" in file.read_text()
    ) or "data sheet" in file.read_text()
