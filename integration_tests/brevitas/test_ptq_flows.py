"""Brevitas' own PTQ example for images, called as it is, with ``sbc_mode`` in the place of ``gptq_mode``."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas")
ptq: Any = pytest.importorskip("brevitas_examples.imagenet_classification.ptq.ptq_common")

from brevitas.core.function_wrapper.learned_round import LearnedRoundSte  # noqa: E402
from brevitas.graph.gptq import gptq_mode  # noqa: E402
from brevitas.inject.enum import LearnedRoundImplType  # noqa: E402

insert_learned_round_quantizers: Any = pytest.importorskip(
    "brevitas_examples.common.learned_round.learned_round_method"
).insert_learned_round_quantizers

from integration_tests.models.image_ptq import OPTIONS, prepared, quantised_model  # noqa: E402
from integration_tests.models.small_cnn import random_cnn  # noqa: E402
from sbc_plugin.brevitas import sbc_mode  # noqa: E402

BACKENDS = ("fx", "flexml", "layerwise")
SOME_BACKENDS = ["fx", pytest.param("flexml", marks=pytest.mark.hosts), "layerwise"]
HARD = LearnedRoundImplType.HARD_SIGMOID
# What the example itself cannot build, with torch as it is: neither mode is reached.
UNBUILT = {("fx", "fp8"), ("flexml", "fp8"), ("fx", "fp4 of OCP"), ("flexml", "fp4 of OCP")}
SUBSET = [
    *(("fx", name) for name in ("W3A3", "asymmetric", "groups")),
    ("flexml", "W4A8"),
    *(("layerwise", name) for name in ("W3A8", "groups, asymmetric, MSE", "fp4 of OCP")),
]
REST = [
    (backend, name)
    for backend in BACKENDS
    for name in OPTIONS
    if (backend, name) not in SUBSET and (backend, name) not in UNBUILT
]

pytestmark = [
    pytest.mark.skipif("dtype" not in inspect.signature(gptq_mode).parameters, reason="the example of Brevitas 0.13"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "tqdm", lambda steps: steps)


def loader() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(32, 1, 8, 8, generator=generator) for _ in range(3)]
    return [(x + 0.5 * x.roll(1, -1), torch.zeros(32)) for x in images]


def float_model(backend: str) -> nn.Module:
    return prepared(random_cnn(), backend, loader()[0][0][:1])


def quantised(model: nn.Module, backend: str, **options: Any) -> nn.Module:
    torch.manual_seed(2)
    return quantised_model(model, backend, loader(), **options)


def error(model: nn.Module) -> float:
    """Of the output, relative to that of the float model."""
    x, dense = loader()[0][0], random_cnn()
    with torch.no_grad():
        wanted = dense(x)
        return float((model(x) - wanted).square().sum() / wanted.square().sum())


def values(model: nn.Module) -> Tensor:
    layers = (module for module in model.modules() if hasattr(module, "quant_weight"))
    return torch.cat([layer.quant_weight().value.detach().flatten() for layer in layers])


Step = Callable[[nn.Module], None]


def nothing(model: nn.Module) -> None:
    pass


def both(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, before: Step = nothing, after: Step = nothing, **settings: Any
) -> list[nn.Module]:
    """The model after the example's GPTQ step with gptq_mode, and after that with sbc_mode."""
    settings = {"act_order": True, "use_quant_activations": True, "create_weight_orig": True} | settings
    found = []
    for mode in (gptq_mode, sbc_mode):
        each = copy.deepcopy(model)
        before(each)
        monkeypatch.setattr(ptq, "gptq_mode", mode)
        ptq.apply_gptq(loader(), each, **settings)
        after(each)
        found.append(each)
    return found


def check_same(models: list[nn.Module]) -> None:
    """The same values, but for ties, which either may round to the other side in float32; the output is no worse."""
    theirs, ours = map(values, models)
    same = torch.isclose(theirs, ours, rtol=1e-4, atol=1e-6).double().mean()
    errors = [error(model) for model in models]
    assert same == 1.0 or (same > 0.8 and errors[1] < 1.1 * errors[0])


@pytest.mark.parametrize(("backend", "options"), SUBSET)
def test_quantize_model_and_gptq(backend: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantised(float_model(backend), backend, **OPTIONS[options])
    models = both(model, monkeypatch)
    check_same(models)
    assert error(models[1]) < error(model) or "groups" in options  # groups of 32 are a row of this network and more


@pytest.mark.hosts
@pytest.mark.parametrize("settings", [{}, {"act_order": False}, {"use_quant_activations": False}], ids=str)
@pytest.mark.parametrize(("backend", "options"), SUBSET + REST)
def test_quantize_model_and_gptq_with_all_options(
    backend: str, options: str, settings: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same(both(quantised(float_model(backend), backend, **OPTIONS[options]), monkeypatch, **settings))


@pytest.mark.parametrize("backend", SOME_BACKENDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_before_and_after_bias_correction(backend: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, the dense weights that the mode has kept tell by how much a bias has to move."""
    model = quantised(float_model(backend), backend, weight_bit_width=3)

    def correct(model: nn.Module) -> None:
        reached = error(model)
        ptq.apply_bias_correction(loader(), model)
        assert error(model) < reached

    steps: dict[str, Step] = {when: correct}
    check_same(both(model, monkeypatch, **steps))


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_after_activation_equalisation(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = float_model(backend)
    ptq.apply_act_equalization(model, loader(), layerwise=backend == "layerwise")
    check_same(both(quantised(model, backend, weight_bit_width=3), monkeypatch))


def learn(model: nn.Module) -> None:
    """Directions of rounding as training leaves them: most of them to nearest, some not."""
    insert_learned_round_quantizers(model, HARD)
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, LearnedRoundSte):
            other = torch.rand(module.value.shape) < 0.1
            module.value.data = torch.where(other, -module.value, module.value)
    model.eval()


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_before_learned_round(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned rounding starts from the weights that it gets."""
    model = quantised(float_model(backend), backend, weight_bit_width=3)
    check_same(both(model, monkeypatch, after=lambda model: insert_learned_round_quantizers(model, HARD)))


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_after_learned_round(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gptq_mode writes values back that the learned directions move by a step once more; here they stay."""
    model = quantised(float_model(backend), backend, weight_bit_width=3)
    models = both(model, monkeypatch, before=learn)
    assert error(models[1]) < error(models[0])
