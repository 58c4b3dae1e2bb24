"""Everything that can go wrong, as one tree.

::

    CompressionError
    ├── UnsupportedModelError   (TypeError)        no rule for this layer, neuron or library
    ├── CalibrationError        (ValueError)       no data, silent data, wrong shape, NaN or inf
    ├── SettingsError           (ValueError)       a setting out of range, or two that exclude each other
    │   └── BudgetError                            a budget that the network cannot meet
    ├── SingularHessianError    (ArithmeticError)  a factorisation failed: layer, columns, samples, damping
    ├── GridMovedError          (RuntimeError)     a quantizer derived another scale after write-back
    ├── CheckpointError         (ValueError)       file does not fit the model, is damaged, or of a newer format
    ├── RankError               (RuntimeError)     another rank of torch.distributed failed, was killed or did not come
    ├── ToleranceError          (ValueError)       a search found no network that stays within the tolerance
    └── MissingPackageError     (ImportError)      an optional package is not installed: names the extra that brings it

Each message says what was asked, what was found and what to do. ``core`` does not know layer names, so the
caller that does adds them with :func:`in_layer` on the way up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {  # of this package: the modules that each brings
    "demo": ("sklearn",),
    "norse": ("norse", "nir", "nirtorch", "h5py"),
    "brevitas": ("brevitas",),
    "onnx": ("onnx", "onnxruntime", "onnxoptimizer", "onnxscript", "qonnx"),
    "plots": ("matplotlib",),
    "torch-pruning": ("torch_pruning",),
    "neurobench": ("neurobench", "snntorch"),
}


class CompressionError(Exception):
    """Any error that this package raises on purpose."""


class UnsupportedModelError(CompressionError, TypeError):
    """There is no rule for this layer, neuron or library."""


class CalibrationError(CompressionError, ValueError):
    """The calibration data is missing, silent, of the wrong shape, or holds NaN or infinity."""


class SettingsError(CompressionError, ValueError):
    """A setting is out of range, or two settings exclude each other."""


class BudgetError(SettingsError):
    """A budget is smaller than what the network takes with a weight left in each layer."""


class SingularHessianError(CompressionError, ArithmeticError):
    """A Hessian could not be factorised."""


class GridMovedError(CompressionError, RuntimeError):
    """A host's quantizer derived another scale after the weights were written back."""


class CheckpointError(CompressionError, ValueError):
    """A file or folder does not fit the model or the job, is damaged, or was written by a newer format."""


class RankError(CompressionError, RuntimeError):
    """Another rank of ``torch.distributed`` failed, was killed, or did not come."""


class ToleranceError(CompressionError, ValueError):
    """A search found no network that stays within the tolerance.

    Attributes:
        report: the :class:`sbc_plugin.SearchReport` of all that was tried.
    """

    report: object = None


class MissingPackageError(CompressionError, ModuleNotFoundError):
    """An optional package is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import what an extra of this package brings inside the block; what is missing is an error that says so.

    Args:
        name: of the extra, which is named for packages that no extra lists.

    Raises:
        MissingPackageError: a package is not installed, or too old to have a module that is needed.

    >>> with extra("plots"):
    ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    Traceback (most recent call last):
    ...
    sbc_plugin.errors.MissingPackageError: this needs matplotlib; pip install 'sbc-plugin[plots]'
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as error:
        raise MissingPackageError(missing(error, name), name=error.name, path=error.path) from error


def missing(error: ModuleNotFoundError, name: str | None = None) -> str:
    """What to install, in a line that pip can carry out.

    Args:
        error: of the import.
        name: of the extra to be named for a package that no extra lists; None names none.
    """
    module = str(error.name)
    package = module.partition(".")[0]
    name = next((known for known, packages in EXTRAS.items() if package in packages), name)
    if name is None:
        return f"this needs the module {module}, which is not installed"
    if module != package and find_spec(package) is not None:
        return f"the installed {package} has no {module}; pip install --upgrade {package} 'sbc-plugin[{name}]'"
    return f"this needs {package}; pip install 'sbc-plugin[{name}]'"


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
