"""Everything that can go wrong, as one tree.

::

    CompressionError
    ├── UnsupportedModelError   (TypeError)        no rule for this layer, neuron or library
    ├── CalibrationError        (ValueError)       no data, silent data, wrong shape, NaN or inf
    ├── SettingsError           (ValueError)       a setting out of range, or two that exclude each other
    ├── SingularHessianError    (ArithmeticError)  a factorisation failed: layer, columns, samples, damping
    ├── GridMovedError          (RuntimeError)     a quantizer derived another scale after write-back
    └── CheckpointError         (ValueError)       file does not fit the model, is damaged, or of a newer format

Each message says what was asked, what was found and what to do. ``core`` does not know layer names, so the
caller that does adds them with :func:`in_layer` on the way up.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class CompressionError(Exception):
    """Any error that this package raises on purpose."""


class UnsupportedModelError(CompressionError, TypeError):
    """There is no rule for this layer, neuron or library."""


class CalibrationError(CompressionError, ValueError):
    """The calibration data is missing, silent, of the wrong shape, or holds NaN or infinity."""


class SettingsError(CompressionError, ValueError):
    """A setting is out of range, or two settings exclude each other."""


class SingularHessianError(CompressionError, ArithmeticError):
    """A Hessian could not be factorised."""


class GridMovedError(CompressionError, RuntimeError):
    """A host's quantizer derived another scale after the weights were written back."""


class CheckpointError(CompressionError, ValueError):
    """A file does not fit the model, is damaged, or was written by a newer format."""


@contextmanager
def in_layer(name: str) -> Iterator[None]:
    """Put ``layer 'name':`` in front of the message of any :class:`CompressionError` raised inside.

    Raises:
        CompressionError: the one raised inside.

    >>> with in_layer("fc1"):
    ...     raise CalibrationError("3 columns, expected 4")
    Traceback (most recent call last):
    ...
    sbc_plugin.errors.CalibrationError: layer 'fc1': 3 columns, expected 4
    """
    try:
        yield
    except CompressionError as error:
        prefix = f"layer {name!r}: "
        if error.args and not str(error.args[0]).startswith("layer '"):
            error.args = (prefix + str(error.args[0]), *error.args[1:])
        raise
