"""Quantisation libraries whose layers can hold the result of ``compress``, by name; imported on demand."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from torch import nn

from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.errors import SettingsError
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Quantize

BACKENDS = {"brevitas": "sbc_plugin.brevitas"}


class Backend(Protocol):
    """What the module of a quantisation library offers."""

    def check_backend(self, layers: Sequence[SpikingLayer], quantize: Mapping[str, Quantize]) -> None:
        """Refuse what the library cannot hold, before anything is changed."""

    def into_backend(
        self,
        model: nn.Module,
        layers: Sequence[SpikingLayer],
        quantize: Mapping[str, Quantize],
        grids: Mapping[str, Grid],
    ) -> tuple[nn.Module, dict[str, str]]:
        """The model, changed in place, with the library's layers on these grids, and name -> why for what is left."""


def backend_called(name: str) -> Backend:
    """The module of a quantisation library; imported on demand.

    Raises:
        SettingsError: the library is not known, or not installed.
    """
    if name not in BACKENDS:
        raise SettingsError(f"backend={name!r} is unknown; use one of {', '.join(map(repr, BACKENDS))}, or None")
    try:
        return import_module(BACKENDS[name])
    except ModuleNotFoundError as error:
        raise SettingsError(f"backend={name!r} needs {error.name}; pip install 'sbc-plugin[{name}]'") from error
