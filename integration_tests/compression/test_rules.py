"""Layers that are left alone, and layers with settings of their own."""

from itertools import pairwise
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin import Calibration, Prune, Quantize, Recipe, Report, compress, load, save
from sbc_plugin.errors import SettingsError

ONCE = Calibration(tuning=0)
SIZES = {"0": 16 * 12, "2": 14 * 16, "4": 5 * 14}


def network(layers: int = 3) -> norse.SequentialState:
    torch.manual_seed(0)
    sizes = [12, 16, 14, 5]
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [nn.Linear(before, after), norse.LIFBoxCell()]
    model = norse.SequentialState(*modules[: 2 * layers])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(9)
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(10, 6, 12, generator=generator) < 0.4).float() for _ in range(3)]


def compressed(model: nn.Module | None = None, **settings: Any) -> tuple[dict[str, Tensor], Report]:
    small, report = compress(model or network(), batches(), progress=False, **{"calibration": ONCE, **settings})
    return {name.removesuffix(".weight"): value.detach() for name, value in small.named_parameters()}, report


def zeros(weights: dict[str, Tensor], *names: str) -> int:
    return sum(int((weights[name] == 0).sum()) for name in names)


DENSE = {name.removesuffix(".weight"): value.detach() for name, value in network().named_parameters()}
IGNORING = [
    {"ignore": ["4"]},
    {"ignore": ["4*"]},
    {"ignore": ["re:[3-9]"]},
    {"rules": [("4", None), (nn.Linear, Prune(0.8))]},
    {"ignore": ["4"], "rules": [("type:Linear", Prune(0.8))]},
]


@pytest.mark.parametrize("allocation", ["lamp", "uniform", "loss"])
@pytest.mark.parametrize("selection", IGNORING)
def test_what_is_ignored_counts_nowhere(selection: dict[str, Any], allocation: str) -> None:
    """The last layer sends nothing back, so the others are as in a network that ends before it."""
    prune = Prune(0.8, allocation=allocation)
    rules = [(layers, what and prune) for layers, what in selection.get("rules", [])]
    found, report = compressed(**{"prune": prune, **selection, "rules": rules})
    expected, alone = compressed(network(2), prune=prune)
    for name in expected:
        assert torch.equal(found[name], expected[name])
    assert torch.equal(found["4"], DENSE["4"]) and torch.equal(found["4.bias"], DENSE["4.bias"])
    assert [row.name for row in report.layers] == ["0", "2"] and "4" in report.skipped
    assert report.layer_sparsity == alone.layer_sparsity and report.left_alone == SIZES["4"]
    assert zeros(found, "0", "2") == round(0.8 * (SIZES["0"] + SIZES["2"]))


@pytest.mark.parametrize("method", ["sbc", "obc", "magnitude"])
def test_rules_are_compressions_of_their_layers_alone(method: str) -> None:
    """In one shot all Hessians are of the dense network, so each rule gives what a call for its layers gives."""
    what = {"0": Prune(0.5), "2": (Prune(0.9, solver="magnitude"), Quantize(3)), "4": Quantize(2)}
    found, report = compressed(method=method, rules=list(what.items()))
    for name, own in what.items():
        parts = own if isinstance(own, tuple) else (own,)
        arguments = {type(part).__name__.lower(): part for part in parts}
        alone, _ = compressed(method=method, ignore=[other for other in what if other != name], **arguments)
        assert torch.equal(found[name], alone[name])
    assert zeros(found, "0") == round(0.5 * SIZES["0"])
    assert [row.bits for row in report.layers] == [32, 3, 2]
    assert len(found["2"][0].unique()) <= 7 and len(found["4"][0].unique()) <= 3


def test_a_rule_has_a_budget_of_its_own_and_the_first_that_matches_counts() -> None:
    rules = [("[02]", Prune(0.75)), ("re:.*", Quantize(4))]
    found, _ = compressed(prune=Prune(0.25), rules=rules)
    assert zeros(found, "0", "2") == round(0.75 * (SIZES["0"] + SIZES["2"]))
    assert int((found["4"] == 0).sum()) >= round(0.25 * SIZES["4"])  # of all layers without a rule's Prune
    assert all(len(row.unique()) <= 15 for row in found["4"]) and len(found["0"].unique()) > 15


def test_what_a_rule_does_not_give_is_shared_with_all_others() -> None:
    found, report = compressed(prune=Prune(0.6), quantize=Quantize(4), rules=[("2", Quantize(8))])
    expected, _ = compressed(prune=Prune(0.6), quantize=Quantize(4))
    assert [row.bits for row in report.layers] == [4, 8, 4]
    assert torch.equal(found["0"], expected["0"]) and torch.equal(found["4"], expected["4"])
    assert 0.6 <= report.layer_sparsity < 0.65


def test_bits_by_loss_are_shared_within_a_rule() -> None:
    by_loss = Quantize(3, allocation="loss")
    _, report = compressed(rules=[("[02]", by_loss), ("4", Quantize(8))])
    _, alone = compressed(quantize=by_loss, ignore=["4"])
    assert [row.bits for row in report.layers] == [*(row.bits for row in alone.layers), 8]
    spent = sum(SIZES[row.name] * (1.6 if row.bits == 2 else row.bits) for row in alone.layers)
    assert spent <= 3 * (SIZES["0"] + SIZES["2"])


EVERYWHERE: dict[str, dict[str, Any]] = {
    "sequential": {"calibration": Calibration(order="sequential", tuning=0)},
    "tuned": {"calibration": Calibration(tuning=4)},
    "tuned as needed": {"calibration": Calibration()},
    "aligned": {"calibration": Calibration(align=True, tuning=0)},
    "a block at a time": {"calibration": Calibration(memory=1, tuning=0)},
    "brevitas": {"backend": "brevitas"},
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_recipe_of_a_report_gives_the_same_bits(name: str) -> None:
    settings = {
        "ignore": ["2"],
        "prune": Prune(0.5, rounds=2, allocation="loss"),
        "quantize": Quantize(3, allocation="loss"),
        "rules": [("4", (Prune(0.25), Quantize(6)))],
    } | EVERYWHERE[name]
    found, report = compressed(**settings)
    assert torch.equal(found["2"], DENSE["2"]) and torch.equal(found["2.bias"], DENSE["2.bias"])
    assert zeros(found, "0") >= round(0.5 * SIZES["0"]) and zeros(found, "4") >= round(0.25 * SIZES["4"])
    assert [row.name for row in report.layers] == ["0", "4"] and report.layers[1].bits == 6
    assert report.recipe is not None
    again, second = compressed(**Recipe.from_dict(report.recipe.to_dict()).arguments())
    assert found.keys() == again.keys() and all(torch.equal(found[key], again[key]) for key in found)
    assert second.recipe == report.recipe


@pytest.mark.parametrize(("bits", "scale"), [(2, "mse"), (4, "power_of_two")])
def test_default_calls_are_reproduced(bits: int, scale: str) -> None:
    found, report = compressed(prune=Prune(0.3), quantize=Quantize(bits, scale=scale), calibration=Calibration())
    assert report.recipe is not None and report.recipe.calibration.tuning is not None
    again, _ = compressed(**report.recipe.arguments())
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_interrupted_rules_go_on_and_are_of_their_job(tmp_path: Any) -> None:
    rules: list[Any] = [("0", Prune(0.5)), ("2", Quantize(4))]
    found, _ = compressed(rules=rules, checkpoint=tmp_path)
    again, _ = compressed(rules=rules, checkpoint=tmp_path)
    assert all(torch.equal(found[key], again[key]) for key in found)
    with pytest.raises(Exception, match=r"another job: rules\[0\]"):
        compressed(rules=[("0", Prune(0.6)), ("2", Quantize(4))], checkpoint=tmp_path)
    with pytest.raises(Exception, match="another job: ignore is nothing there"):
        compressed(rules=rules, ignore=["4"], checkpoint=tmp_path)


def test_mixed_files_come_back_in_every_bit(tmp_path: Any) -> None:
    small, report = compress(
        network(), batches(), calibration=ONCE, progress=False, ignore=["4"],
        rules=[("0", (Prune(0.9), Quantize(2))), ("2", Quantize(7, symmetric=False))],
    )  # fmt: skip
    save(tmp_path / "small.safetensors", small, report)
    again, told = load(tmp_path / "small.safetensors", network())
    assert told.to_dict() == report.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ignore": ["fc"]}, r"ignore: 'fc' matches no layer; the layers are '0', '2', '4'"),
    ({"ignore": "0"}, "is no list"),
    ({"ignore": [0]}, "selects no layers"),
    ({"ignore": ["re:("]}, "no regular expression"),
    ({"ignore": ["re:.*"]}, "leave no layer"),
    ({"ignore": [nn.Conv2d]}, "matches no layer"),
    ({"rules": [("0", None), ("re:0|1", Quantize(4))]}, r"rules\[1\].*no effect"),
    ({"ignore": ["0"], "rules": [("0", Quantize(4))]}, r"rules\[0\].*no effect"),
    ({"rules": [("*", (Prune(0.5), Prune(0.6)))]}, "tuple of one of each"),
    ({"rules": [("*", 0.5)]}, "tuple of one of each"),
    ({"rules": {"*": Prune(0.5)}}, "is no list"),
    ({"rules": [("4", Prune(0.5, pattern="2:4")), ("2", Quantize(4, granularity="group:5"))]}, "fits no layer|divide"),
    ({"calibration": Calibration(tuning=(3, 3))}, "one phase"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_selections_that_mean_nothing_are_refused_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(SettingsError, match=message):
        compress(model, batches(), inplace=True, progress=False, **{"prune": Prune(0.5), **settings})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


def test_cells_are_selected_as_a_whole() -> None:
    torch.manual_seed(0)
    model = norse.SequentialState(norse.LIFRecurrentCell(12, 8), nn.Linear(8, 3), norse.LIFBoxCell())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    before = [model[0].input_weights.clone(), model[0].recurrent_weights.clone()]
    with pytest.raises(SettingsError, match="part of layer '0'"):
        compress(model, batches(), prune=Prune(0.5), ignore=["0.input_weights"], progress=False)
    for selector in ("0", norse.LIFRecurrentCell, "type:LIFRecurrentCell"):
        small, _ = compress(model, batches(), prune=Prune(0.5), ignore=[selector], progress=False, calibration=ONCE)
        assert torch.equal(small[0].input_weights, before[0]) and torch.equal(small[0].recurrent_weights, before[1])
        assert int((small[1].weight == 0).sum()) == 12
