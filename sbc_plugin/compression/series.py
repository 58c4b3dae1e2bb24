"""Many compressions of one network that share one calibration: the arguments of ``compress`` but for the budget."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any, TypeAlias

from torch import nn

from sbc_plugin.calibration.calibrate import CalibrationStatistics, calibrate, check_statistics
from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.calibration.shares import peek, repeatable
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.core.pruning.patterns import parse_pattern
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.recipe import Recipe
from sbc_plugin.evaluation.report import Report
from sbc_plugin.settings import Prune, Quantize

Compress: TypeAlias = Callable[..., tuple[nn.Module, Report]]
Evaluate: TypeAlias = Callable[[nn.Module], Any]

OWN = ("model", "calibration_data")
REFUSED = {
    "inplace": "the dense network has to stay, since others are compared with it",
    "checkpoint": "a folder is of one call of compress, and here there are many",
    "budget": "it shares out zeros and bits itself",
}
HIGHEST = Quantize(8)
SOME = Prune(0.5)


@dataclass(frozen=True)
class Series:
    """Compressions of one network, which differ in sparsity and bits alone.

    Attributes:
        model: dense, without a wrapper.
        data: of calibration, which can be run through many times.
        first: its first batch.
        arguments: of ``compress``, but for the budget of each.
        compress: the function.
    """

    model: nn.Module
    data: Iterable[Any]
    first: Any
    arguments: Mapping[str, Any]
    compress: Compress

    @classmethod
    def of(cls, model: nn.Module, data: Iterable[Any], arguments: Mapping[str, Any], compress: Compress) -> "Series":
        """The series of a network and its data.

        Raises:
            SettingsError: an argument that ``compress`` does not have, or that does not go with many compressions.
            CalibrationError: no data.
        """
        known = [name for name in signature(compress).parameters if name not in (*OWN, *REFUSED)]
        arguments = {name: value for name, value in arguments.items() if name not in REFUSED or value}
        for name in arguments:
            if name in REFUSED:
                raise SettingsError(f"{name}= does not go with a search or a sweep: {REFUSED[name]}; leave it out")
            if name not in known:
                raise SettingsError(f"{name}= is unknown; use {', '.join(known)}")
        check_statistics(arguments.get("statistics"))
        first, data = peek(data)
        return cls(unwrapped(model), repeatable(data), first, arguments, compress)

    def budgets(self, sparsity: float | None, bits: int | None) -> dict[str, Any]:
        """The arguments ``prune`` and ``quantize`` of one compression; None leaves what was given.

        Raises:
            SettingsError: a number out of range, or a pattern that fixes the sparsity.
        """
        found = {name: self.arguments.get(name) for name in ("prune", "quantize")}
        if sparsity is not None:
            prune = SOME if found["prune"] is None else found["prune"]
            if isinstance(prune, Prune) and parse_pattern(prune.pattern).kind == "n:m":
                raise SettingsError(
                    f"pattern={prune.pattern!r} fixes the sparsity, so there is none to choose; leave the pattern "
                    "out, or choose bits"
                )
            found["prune"] = replace(prune, sparsity=sparsity) if isinstance(prune, Prune) else prune
        if bits is not None:
            grid = HIGHEST if found["quantize"] is None else found["quantize"]
            found["quantize"] = replace(grid, bits=bits) if isinstance(grid, Quantize) else grid
        names = {each.name for each in fields(Recipe)} - set(found)
        others: dict[str, Any] = {name: value for name, value in self.arguments.items() if name in names}
        Recipe(**others | found)  # checks them
        return found

    def statistics(self) -> CalibrationStatistics:
        """What was given, or else gathered in the one pass that all compressions share."""
        given = self.arguments.get("statistics")
        if given is not None:
            assert isinstance(given, CalibrationStatistics)  # was checked
            return given
        calibration = self.arguments.get("calibration", DEFAULT)
        if self.arguments.get("method") == "obc":  # which is M = I
            calibration = replace(calibration, temporal=False)
        run = {name: self.arguments.get(name) for name in ("forward", "batch_first")}
        return calibrate(self.model, self.data, calibration=calibration, **run)

    def made(self, budgets: Mapping[str, Any], statistics: CalibrationStatistics) -> tuple[nn.Module, Report]:
        """One compressed network and its report."""
        return self.compress(self.model, self.data, **{**self.arguments, **budgets, "statistics": statistics})


def number_of(name: str, value: Any) -> float:
    """A number that is at least 0.

    Raises:
        SettingsError: it is none.
    """
    number = -1.0
    with suppress(TypeError, ValueError):
        number = float(value)
    if isinstance(value, bool | str) or not 0 <= number < float("inf"):
        raise SettingsError(f"{name}={value!r} is no number of at least 0")
    return number
