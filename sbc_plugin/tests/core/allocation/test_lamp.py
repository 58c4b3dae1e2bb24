"""Budgets are met exactly, and LAMP's scores are those of its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core.allocation.lamp import allocate_zeros, lamp_scores
from sbc_plugin.errors import SettingsError
from sbc_plugin.tests.oracles import lamp_by_double_loop

METHODS = ["lamp", "uniform", "loss"]


def layers_of(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (4, 2, 3, 3), "wide": (20, 13), "narrow": (3, 7), "single": (1,)}
    layers = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    layers["wide"] *= 0.01
    layers["narrow"][1] = layers["narrow"][0]  # ties
    layers["conv"][0] = 0.0
    return layers


def allocate(layers: dict[str, Tensor], sparsity: float, method: str) -> dict[str, int]:
    saliencies = {name: layer.square() for name, layer in layers.items()} if method == "loss" else None
    return allocate_zeros(layers, sparsity, method=method, saliencies=saliencies)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_lamp_scores_are_those_of_the_definition(exponent: float) -> None:
    for layer in layers_of().values():
        scores = lamp_scores(layer, exponent)
        assert scores.shape == layer.shape
        expected = torch.tensor(lamp_by_double_loop(layer, exponent), dtype=torch.float64)
        assert_close(scores.flatten(), expected, rtol=1e-13, atol=0)  # a sum of 260 numbers in another order


def test_lamp_scores_do_not_depend_on_the_scale() -> None:
    layer = layers_of()["wide"]
    for factor in (1e-200, 1e200):
        assert_close(lamp_scores(layer * factor, 3.0), lamp_scores(layer, 3.0), rtol=1e-12, atol=0)
    assert lamp_scores(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_lamp_takes_a_positive_exponent() -> None:
    with pytest.raises(SettingsError, match="exponent=0"):
        lamp_scores(torch.ones(3), 0.0)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_lamp_cuts_the_lowest_scores_of_all_layers(sparsity: float) -> None:
    layers = layers_of()
    del layers["single"]  # its only weight is kept for another reason
    scored = [(score, name) for name, layer in layers.items() for score in lamp_by_double_loop(layer, 2.0)]
    cut = [name for _, name in sorted(scored, key=lambda pair: pair[0])[: round(sparsity * len(scored))]]
    assert allocate_zeros(layers, sparsity) == {name: cut.count(name) for name in layers}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_the_budget_is_met_exactly_and_every_layer_keeps_a_weight(method: str, seed: int) -> None:
    layers = layers_of(seed)
    total = sum(layer.numel() for layer in layers.values())
    for step in range(total + 1):
        zeros = allocate(layers, step / total, method)
        assert list(zeros) == list(layers) and sum(zeros.values()) == step
        assert all(0 <= zeros[name] <= layer.numel() for name, layer in layers.items())
        if step <= total - len(layers):
            assert all(zeros[name] < layer.numel() for name, layer in layers.items())


@pytest.mark.parametrize("method", METHODS)
def test_equal_weights_everywhere_are_dealt_the_same_way_each_time(method: str) -> None:
    layers = {"first": torch.ones(4), "second": torch.ones(4), "third": torch.ones(2)}
    found = {tuple(allocate(layers, 0.5, method).values()) for _ in range(3)}
    # One score: earlier layers first, each up to its last weight. Uniform: 2, 2 and 1 of 4, 4 and 2.
    # LAMP: a weight among 2 equal ones has score 1/2, among 4 only 1/4.
    assert found == {(2, 2, 1) if method == "uniform" else (3, 2, 0)}


def test_uniform_gives_left_over_zeros_to_the_largest_remainders() -> None:
    layers = {"a": torch.ones(11), "b": torch.ones(17), "c": torch.ones(12)}
    # 3.3, 5.1 and 3.6 of 12: one is left after 3, 5 and 3.
    assert allocate_zeros(layers, 0.3, method="uniform") == {"a": 3, "b": 5, "c": 4}


def test_loss_cuts_the_smallest_saliencies() -> None:
    layers = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    saliencies = {"b": torch.tensor([[0.1, 0.2], [0.3, 9.0]]), "a": torch.tensor([0.25, 7.0, 8.0])}
    assert allocate_zeros(layers, 3 / 7, method="loss", saliencies=saliencies) == {"a": 1, "b": 2}


def test_losses_are_dealt_like_squared_weights_whatever_their_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {name: torch.randn(count, generator=generator) for name, count in (("a", 30), ("b", 50))}
    saliencies = {"a": layers["a"].square(), "b": 1e6 * layers["b"].square()}
    for sparsity in (0.3, 0.9):
        found = allocate_zeros(layers, sparsity, method="loss", saliencies=saliencies)
        assert found == allocate_zeros(layers, sparsity)


def test_arguments_stay_unchanged() -> None:
    layers = layers_of()
    saliencies = {name: layer.square() for name, layer in layers.items()}
    before = {name: (layers[name].clone(), saliencies[name].clone()) for name in layers}
    allocate_zeros(layers, 0.5)
    allocate_zeros(layers, 0.5, method="loss", saliencies=saliencies)
    assert all(torch.equal(layers[n], old) and torch.equal(saliencies[n], s) for n, (old, s) in before.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.1}, "sparsity=1.1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"method": "erk"}, "'erk' is unknown"),
        ({"method": "loss"}, "'loss'"),
        ({"saliencies": {"a": torch.ones(3)}}, "'lamp'"),
        ({"method": "loss", "saliencies": {"a": torch.ones(2)}}, r"\{'a': 2\}.*\{'a': 3\}"),
        ({"method": "loss", "saliencies": {"a": torch.tensor([1.0, float("nan"), 1.0])}}, r"\['a'\] hold NaN"),
        ({"weights": {}}, "found {}"),
        ({"weights": {"a": torch.ones(0)}}, "'a': 0"),
        ({"weights": {"a": torch.tensor([float("inf")])}}, "NaN or infinity"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    arguments = {"weights": {"a": torch.ones(3)}, "sparsity": 0.5, **settings}
    with pytest.raises(SettingsError, match=message):
        allocate_zeros(**arguments)


@pytest.mark.parametrize("method", ["lamp", "uniform", "loss"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_zeros_that_are_there_stay_within_the_budget(method: str, sparsity: float) -> None:
    layers = {"sparse": torch.rand(4, 10) + 0.1, "dense": torch.rand(5, 10) + 0.1, "other": torch.rand(2, 10) + 0.1}
    layers["sparse"].view(-1)[:30] = 0.0
    zeros = allocate(layers, sparsity, method)
    assert sum(zeros.values()) == round(sparsity * 110)
    assert zeros["sparse"] >= 30
    if method == "uniform":
        assert abs(zeros["dense"] / 50 - zeros["other"] / 20) < 1 / 20


def test_a_budget_below_what_is_zero_already_is_dealt_as_ever() -> None:
    layers = {"sparse": torch.zeros(4, 10), "dense": torch.ones(4, 10)}
    assert allocate(layers, 0.25, "uniform") == {"sparse": 10, "dense": 10}
