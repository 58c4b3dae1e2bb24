"""The error tree: what a caller can catch, and how a layer's name gets into a message."""

import pytest

from sbc_plugin import errors
from sbc_plugin.errors import CalibrationError, CompressionError, SettingsError, in_layer

BUILT_IN = {
    errors.UnsupportedModelError: TypeError,
    errors.CalibrationError: ValueError,
    errors.SettingsError: ValueError,
    errors.BudgetError: ValueError,
    errors.SingularHessianError: ArithmeticError,
    errors.GridMovedError: RuntimeError,
    errors.CheckpointError: ValueError,
    errors.RankError: RuntimeError,
    errors.ToleranceError: ValueError,
    errors.MissingPackageError: ModuleNotFoundError,
}


def test_every_error_is_of_the_tree_and_of_its_built_in_kind() -> None:
    kinds = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, CompressionError) and value is not CompressionError
    }
    assert kinds == set(BUILT_IN)
    for error, built_in in BUILT_IN.items():
        assert issubclass(error, built_in) and error.__name__ in (errors.__doc__ or "")


def test_the_layers_name_is_added_on_the_way_up_once() -> None:
    with pytest.raises(CalibrationError) as caught, in_layer("net"), in_layer("net.fc1"):
        raise CalibrationError("4 columns, expected 5", "detail")
    assert caught.value.args == ("layer 'net.fc1': 4 columns, expected 5", "detail")


def test_errors_of_others_pass_unchanged() -> None:
    with pytest.raises(KeyError) as caught, in_layer("fc1"):
        raise KeyError("x")
    assert caught.value.args == ("x",)


def test_an_error_without_a_message_gets_none() -> None:
    with pytest.raises(SettingsError) as caught, in_layer("fc1"):
        raise SettingsError
    assert caught.value.args == ()


def test_a_message_about_layers_in_general_still_gets_the_name() -> None:
    with pytest.raises(SettingsError, match=r"^layer 'fc1': layer sizes do not fit"), in_layer("fc1"):
        raise SettingsError("layer sizes do not fit")
