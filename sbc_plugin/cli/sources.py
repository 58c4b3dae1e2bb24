"""Models and data by name, as the command line gets them: files, and ``package.module:name`` of the user's own code."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sbc_plugin.calibration.batches import input_of
from sbc_plugin.checkpoint.file import load
from sbc_plugin.cli.spike_files import MAX_BYTES, Batches, read_spikes
from sbc_plugin.errors import CalibrationError, CheckpointError, CompressionError, SettingsError

MODELS = "give model.nir, model.safetensors or package.module:factory"


def named(name: str) -> Any:
    """What ``package.module:name`` is; the folder one works in is searched first, as ``python -m`` does.

    Raises:
        SettingsError: it has no such form, there is no such module or name in it, or the module fails.

    >>> named("math:pi")
    3.141592653589793
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise SettingsError(f"{name!r} is no package.module:name")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        value = _own_code(name, importlib.import_module, module)
    except ModuleNotFoundError as error:
        raise SettingsError(f"{name!r}: no module {error.name!r} can be imported from {folder}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [key for key in vars(value) if not key.startswith("_")] if hasattr(value, "__dict__") else []
            raise SettingsError(f"{name!r}: {module} has no {attribute}; it has {', '.join(public[:20])}")
        value = getattr(value, part)
    return value


def _own_code(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call into the user's own code returns.

    Raises:
        CompressionError: the one that it raised.
        ModuleNotFoundError: the one that it raised.
        SettingsError: it raised something else, or wanted to end the program.
    """
    try:
        return function(*arguments)
    except (CompressionError, ModuleNotFoundError):
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raised = f"{name!r}: its own code raised {type(error).__name__}: {text}; --debug shows where"
        raise SettingsError(raised) from error


def load_model(
    source: str,
    *,
    factory: str | None = None,
    dt: float | None = None,
    reset: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> nn.Module:
    """The network of a file, or the one that a function of the user's makes.

    Args:
        source: ``model.nir``; ``model.safetensors`` of :func:`sbc_plugin.save`; or ``package.module:factory``, a
            function without arguments that returns the trained model, or the model itself.
        factory: of a ``.safetensors`` file: the model to be filled in, as ``source``; its values do not matter.
        dt: of a ``.nir`` file: step of time, s.
        reset: of a ``.nir`` file: "reset_value" or "reset_subtract".
        max_bytes: that a file may take in memory.

    Raises:
        CheckpointError: no such file, or one that is damaged or does not fit.
        SettingsError: a name that cannot be imported, whose code fails, that is no model, or no model to fill in.
        UnsupportedModelError: a node of the ``.nir`` file without a rule.
    """
    suffix = Path(source).suffix.lower()
    if suffix in (".nir", ".safetensors"):
        if not Path(source).is_file():
            raise CheckpointError(f"no file {source}; {MODELS}")
        if suffix == ".nir":
            from sbc_plugin.nir import read

            return read(source, dt=dt, reset_method=reset, max_bytes=max_bytes)
        if factory is None:
            raise SettingsError(
                f"{source} holds weights, not the model's code; add --model with what it was made of: a .nir file or "
                "package.module:factory"
            )
        model = load_model(factory, dt=dt, reset=reset, max_bytes=max_bytes)
        return load(source, model, max_bytes=max_bytes)[0]
    if ":" not in source:
        raise SettingsError(f"{source!r} is no model; {MODELS}")
    return _made(source)


def _made(name: str) -> nn.Module:
    value = named(name)
    model = value if isinstance(value, nn.Module) else _own_code(name, value) if callable(value) else value
    if not isinstance(model, nn.Module):
        raise SettingsError(f"{name!r} gives a {type(model).__name__}, a torch.nn.Module is needed")
    return model


def load_data(
    source: str, *, batch: int, limit: int | None = None, axis: int = 1, max_bytes: int = MAX_BYTES
) -> Iterable[Any]:
    """Batches of a spike file, or what a function of the user's returns.

    Args:
        source: ``spikes.npz`` or ``spikes.npy`` (docs/spike-files.md), or ``package.module:loader``: an iterable of
            batches, or a function without arguments that returns one.
        batch: sequences of a batch, of a file.
        limit: the most sequences of a file that are used, or of a loader, where it ends with the batch that reaches it;
            None = all.
        axis: of the sequences in the batches of a loader; files have them second.
        max_bytes: that an array of a file may take in memory.

    Raises:
        CalibrationError: no such file, or a layout that is not known.
        SettingsError: a name that cannot be imported, whose code fails, or that is no iterable.
    """
    if Path(source).suffix.lower() in (".npz", ".npy"):
        x, labels = read_spikes(source, max_bytes=max_bytes)
        return Batches(x[:, :limit], None if labels is None else labels[:limit], batch)
    if ":" not in source:
        raise CalibrationError(f"{source!r} is no spike data; give spikes.npz, spikes.npy or package.module:loader")
    value = named(source)
    data = _own_code(source, value) if callable(value) else value
    if isinstance(data, torch.Tensor) or not isinstance(data, Iterable):
        raise SettingsError(f"{source!r} gives a {type(data).__name__}, an iterable of batches (T, B, ...) is needed")
    return data if limit is None else _first(data, limit, axis)


def _first(data: Iterable[Any], limit: int, axis: int) -> list[Any]:
    taken: list[Any] = []
    sequences = 0
    for item in data:
        if sequences >= limit:
            break
        taken.append(item)
        sequences += input_of(item).shape[axis]
    return taken
