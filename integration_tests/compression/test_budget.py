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
from sbc_plugin import Budget, Calibration, Prune, Recipe, Report, compare, record_spikes
from sbc_plugin.checkpoint.folder import Folder
from sbc_plugin.compression import plan
from sbc_plugin.errors import SettingsError

WIDTHS = (2, 4)  # fewer than by default, so that tables are small
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


@pytest.mark.parametrize(("name", "factor"), [("step", 2.0), ("conv", 4.0), ("LIFRecurrentCell", 3.0), ("SEW", 3.0)])
def test_a_size_is_met_from_below(name: str, factor: float) -> None:
    dense = CASES[name].model()
    limit = int(record_spikes(dense, data_of(name), forward=CASES[name].forward).cost.packed_bytes / factor)
    model, report = made(name, Budget(factor=factor, bits=WIDTHS))
    told = compare(dense, model, data_of(name), forward=CASES[name].forward).compressed.packed_bytes
    assert told <= limit and f"{limit:,} bytes" in report.skipped["budget"] and f"{told:,} bytes" in str(report)
    # A file stores positions in the cheapest of three ways, of which two are counted here.
    assert told <= counted(model)


def test_most_of_the_budget_is_used_and_more_is_never_worse() -> None:
    case = CASES["conv"]
    losses, sizes = [], []
    for limit in (60, 95):
        model, report = made("conv", Budget(size=limit, bits=WIDTHS))
        sizes.append(compare(case.model(), model, data_of("conv"), forward=case.forward).compressed.packed_bytes)
        losses.append(sum(row.loss for row in report.layers))
        assert 0.85 * limit <= sizes[-1] <= limit
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["conv", "LIFRecurrentCell"])
def test_operations_and_energy_are_met_as_compare_counts_them(name: str) -> None:
    case, part = CASES[name], 0.5
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
    with pytest.raises(SettingsError, match=r"layer '\w+': its .* weights take .* bytes .* a core holds 3"):
        made("conv", Budget(size=1000, core_bytes=3, bits=(4,)))


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


def test_prune_beside_a_budget_is_refused() -> None:
    with pytest.raises(SettingsError, match="budget chooses zeros and bits, and prune gives them"):
        compress(CASES["step"].model(), data_of("step"), budget=Budget(size=100), prune=Prune(0.5), progress=False)


def test_layers_to_ignore_stay_and_are_not_counted() -> None:
    """A limit that the other layers meet, although the ignored one alone takes more."""
    case = CASES["conv"]
    dense = case.model()
    name = max(made("conv", Budget(size=150, bits=WIDTHS))[1].layers, key=lambda row: row.rows * row.columns).name
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    alone = 4 * dense.get_submodule(name).weight.numel()
    limit = min(alone - 1, 60)
    model, report = made("conv", Budget(size=limit, bits=WIDTHS), ignore=[name])
    assert name not in {row.name for row in report.layers} and name in report.skipped
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and not any(key.startswith(f"{name}.") for key in moved)
    told = compare(dense, model, data_of("conv"), forward=case.forward).compressed.packed_bytes
    assert 0 < told - alone <= limit  # in floating point, with no zeros, its weights take all of their bytes
    assert f"{told - alone:,} bytes delivered" in report.skipped["budget"]


@pytest.mark.parametrize("tuning", [None, 3])
def test_a_tuned_budget_holds_and_its_recipe_gives_the_same_bits(
    tuning: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TUNING_STEPS", 3)
    case, budget = CASES["conv"], Budget(size=100, bits=WIDTHS)

    def once(**settings: Any) -> tuple[nn.Module, Report]:
        return sbc_plugin.compress(case.model(), data_of("conv"), forward=case.forward, progress=False, **settings)

    model, report = once(budget=budget, calibration=Calibration(tuning=tuning))
    found = compare(case.model(), model, data_of("conv"), forward=case.forward).compressed
    assert 0.8 * 100 <= found.packed_bytes <= 100
    assert report.settings["budget"] == budget and report.settings["prune"] is None
    assert Report.from_dict(json.loads(report.to_json())).settings["budget"] == budget
    assert report.recipe is not None and report.recipe.budget == budget and report.recipe.prune is None
    again, other = once(**Recipe.from_dict(json.loads(json.dumps(report.recipe.to_dict()))).arguments())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert other.recipe == report.recipe


def test_an_interrupted_budget_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the place of the write that would keep what the second phase came to."""
    budget, write, left = Budget(size=100, bits=WIDTHS), Folder.write, [0]

    def counted(self: Folder, name: Any, value: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise InterruptedError
        write(self, name, value)

    monkeypatch.setattr(Folder, "write", counted)
    wanted, report = made("conv", budget)
    for number in (1, 3):
        left[0] = number
        with pytest.raises(InterruptedError):
            made("conv", budget, checkpoint=tmp_path)
    for _ in range(2):
        found, again = made("conv", budget, checkpoint=tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))
        assert again.skipped["budget"] == report.skipped["budget"]


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "chips").iterdir()), ids=lambda file: file.name)
def test_the_documented_chips_are_budgets_and_name_their_sources(file: Path) -> None:
    budget = Budget.from_file(file)
    assert budget.counts == "size" and budget.bits and "Source" in file.read_text()
    assert budget.instead(factor=20).bits == budget.bits
