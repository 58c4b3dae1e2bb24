"""``register``: a script's own method means SBC while it is in force, and torch-pruning is as before afterwards."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from integration_tests.torch_pruning.scripts.prune import make_data, make_model, make_pruner
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.torch_pruning import SBCPruner, get_pruner, register, unregister
from sbc_plugin.torch_pruning.methods import METHODS
from sbc_plugin.torch_pruning.registration import REPLACEABLE

EXAMPLE = torch.zeros(1, 3, 8, 8)
PRUNERS = (tp.pruner.BasePruner, tp.pruner.BNScalePruner, tp.pruner.GroupNormPruner, tp.pruner.GrowingRegPruner)


def data() -> list[Any]:
    x, y = make_data(96, 1).tensors
    return [(x[k : k + 32], y[k : k + 32]) for k in range(0, 96, 32)]


class Arguments:
    global_pruning, iterative_steps = False, 2

    def __init__(self, method: str) -> None:
        self.method = method


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return make_model().eval()


def pruned(pruner: Any) -> list[Tensor]:
    pruner.step()
    return [value.clone() for value in pruner.model.state_dict().values()]


def everything() -> dict[str, Any]:
    """All that a registration could change in torch-pruning."""
    found = {f"{cls.__name__}.{name}": value for cls in PRUNERS for name, value in vars(cls).items()}
    found |= {f"pruner.{name}": value for name, value in vars(tp.pruner).items()}
    return found | {f"importance.{name}": value for name, value in vars(tp.importance).items()}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    unregister()
    before = everything()
    yield
    unregister()
    after = everything()
    assert before.keys() == after.keys() and all(after[name] is value for name, value in before.items())


@pytest.mark.parametrize("method", ["random", "l1", "l2", "fpgm", "lamp", "slim", "group_norm", "growing_reg"])
def test_a_scripts_choice_of_a_name_means_sbc(method: str) -> None:
    given = {"iterative_steps": 2, "pruning_ratio": 1.0, "calibration_data": data()}
    model = seeded()
    expected = pruned(get_pruner("sbc", model, EXAMPLE, ignored_layers=[model[-1]], **given))  # type: ignore[index]
    with register(data(), in_place_of=method) as registration:
        pruner, _ = make_pruner(seeded(), EXAMPLE, Arguments(method))  # type: ignore[arg-type]
        assert type(pruner) is SBCPruner and registration.pruners == 1
        others = [name for name in ("random", "l1", "l2", "lamp", "group_norm") if name != method]
        for other in others:
            stock, _ = make_pruner(seeded(), EXAMPLE, Arguments(other))  # type: ignore[arg-type]
            assert not isinstance(stock, SBCPruner)
        assert registration.pruners == 1
    found = pruned(pruner)  # it stays SBC's
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("method", REPLACEABLE)
def test_every_name_can_be_replaced_and_get_pruner_keeps_its_own(method: str) -> None:
    entry = METHODS[method]
    with register(data(), in_place_of=method):
        pruner = entry.pruner(seeded(), EXAMPLE, entry.importance(), **entry.arguments)
        assert type(pruner) is SBCPruner
        assert type(get_pruner(method, seeded(), EXAMPLE)) is entry.pruner
        assert type(get_pruner("sbc", seeded(), EXAMPLE, calibration_data=data())) is SBCPruner
    assert type(entry.pruner(seeded(), EXAMPLE, entry.importance(), **entry.arguments)) is entry.pruner


def test_what_scripts_ask_of_classes_is_answered_as_before() -> None:
    with register(data(), in_place_of="taylor"):
        importance = tp.importance.TaylorImportance()
        assert isinstance(importance, tp.importance.TaylorImportance)
        pruner = tp.pruner.MagnitudePruner(seeded(), EXAMPLE, importance=importance)
        assert isinstance(pruner, tp.pruner.MagnitudePruner) and not isinstance(pruner, tp.pruner.GrowingRegPruner)
        pruner.regularize(pruner.model)
        assert vars(pickle.loads(pickle.dumps(importance))) == vars(importance)
        assert type(copy.deepcopy(importance)) is type(importance)


def test_stock_pruners_do_what_they_did() -> None:
    def by_l2() -> list[Tensor]:
        pruner, _ = make_pruner(seeded(), EXAMPLE, Arguments("l2"))  # type: ignore[arg-type]
        return pruned(pruner)

    expected = by_l2()
    with register(data(), in_place_of="l1"):
        assert all(torch.equal(a, b) for a, b in zip(by_l2(), expected, strict=True))
        with pytest.raises(TypeError, match="unexpected keyword argument 'ratio'"):
            tp.pruner.BasePruner(seeded(), EXAMPLE, tp.importance.MagnitudeImportance(p=1), ratio=0.5)


def test_positional_arguments_keep_their_places() -> None:
    with register(data(), in_place_of="group_norm"):
        pruner = tp.pruner.GroupNormPruner(
            seeded(), EXAMPLE, tp.importance.GroupMagnitudeImportance(), 1e-3, 4, True, 0.3
        )
    assert pruner.global_pruning and pruner.per_step_pruning_ratio[-1] == pytest.approx(0.3)


def test_the_end_of_the_block_undoes_it_after_an_error_too() -> None:
    with pytest.raises(RuntimeError, match="mine"), register(data(), in_place_of="l1"):
        raise RuntimeError("mine")
    assert not hasattr(tp.pruner, "SBCPruner")


def test_without_a_method_it_adds_the_names_alone_however_often() -> None:
    assert register() is register()
    assert tp.pruner.SBCPruner is SBCPruner
    with register(data(), in_place_of="l1"):
        assert tp.pruner.SBCPruner is SBCPruner
    assert tp.pruner.SBCPruner is SBCPruner
    unregister()
    assert not hasattr(tp.pruner, "SBCPruner") and not hasattr(tp.importance, "SBCImportance")


def test_a_second_method_is_refused() -> None:
    register(data(), in_place_of="l1")
    for method in ("l1", "l2"):
        with pytest.raises(SettingsError, match=r"in place of 'l1'; call unregister\(\) first"):
            register(data(), in_place_of=method)


@pytest.mark.parametrize(("given", "error", "says"), [
    ({"in_place_of": "l1"}, CalibrationError, "needs calibration_data"),
    ({"in_place_of": "sbc", "calibration_data": []}, SettingsError, "'l1', 'l2'"),
    ({"in_place_of": "obdc", "calibration_data": []}, SettingsError, "use one of 'random'"),
])  # fmt: skip
def test_what_cannot_be_registered_is_refused(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        register(**given)


def test_a_pruner_of_the_scripts_own_is_not_left_stock_in_silence() -> None:
    class Mine(tp.pruner.BasePruner):  # type: ignore[misc]
        pass

    register(data(), in_place_of="l1")
    with pytest.raises(SettingsError, match="cannot replace Mine"):
        Mine(seeded(), EXAMPLE, tp.importance.MagnitudeImportance(p=1))
    assert isinstance(Mine(seeded(), EXAMPLE, tp.importance.MagnitudeImportance(p=2)), Mine)
