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
from sbc_plugin.settings import SECOND_ORDER, Budget, Calibration, Prune, Quantize

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
    def of(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        arguments: Mapping[str, Any],
        compress: Compress,
        *,
        sized: bool = False,
    ) -> "Series":
        """The series of a network and its data.

        Args:
            model: dense.
            data: of calibration.
            arguments: of ``compress``.
            compress: the function.
            sized: whether compressions differ in size, so that a budget may tell what a chip allows.

        Raises:
            SettingsError: an argument that ``compress`` does not have, or that does not go with many compressions.
            CalibrationError: no data.
        """
        known = [name for name in signature(compress).parameters if name not in OWN]
        refused = [name for name in REFUSED if not (sized and name == "budget")]
        arguments = {name: value for name, value in arguments.items() if name not in REFUSED or value}
        for name in arguments:
            if name in refused:
                raise SettingsError(f"{name}= does not go with a search or a sweep: {REFUSED[name]}; leave it out")
            if name not in known:
                known = [each for each in known if each not in refused]
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
        self._check(found)
        return found

    def _check(self, chosen: dict[str, Any]) -> None:
        names = {each.name for each in fields(Recipe)} - set(chosen)
        others: dict[str, Any] = {name: value for name, value in self.arguments.items() if name in names}
        Recipe(**others | chosen)

    def sized(self, factor: float) -> dict[str, Any]:
        """The argument ``budget`` of one compression: so many times smaller, within what the chip allows.

        Raises:
            SettingsError: it is no budget, or goes with none of the other arguments.
        """
        chip = self.arguments.get("budget")
        if not (chip is None or isinstance(chip, Budget)):
            raise SettingsError(f"budget={chip!r} is no Budget")
        found = {"budget": Budget(factor=factor) if chip is None else chip.instead(factor=factor)}
        self._check(found)
        return found

    def statistics(self) -> CalibrationStatistics:
        """What was given, or else gathered in the one pass that all compressions share."""
        given = self.arguments.get("statistics")
        if given is not None:
            assert isinstance(given, CalibrationStatistics)  # was checked
            return given
        calibration = self._calibration
        if self.arguments.get("method") == "obc":  # which is M = I
            calibration = replace(calibration, temporal=False)
        run = {name: self.arguments.get(name) for name in ("forward", "batch_first")}
        return calibrate(self.model, self.data, calibration=calibration, **run)

    @property
    def tuned(self) -> str:
        """Whether networks are tuned: "never", "if needed" (``compress`` decides), or "always" (steps are given)."""
        method, steps = self.arguments.get("method", SECOND_ORDER[0]), self._calibration.tuning
        if method not in SECOND_ORDER or not (any(steps) if isinstance(steps, tuple) else steps != 0):
            return "never"
        return "always" if steps is not None else "if needed" if method == SECOND_ORDER[0] else "never"

    @property
    def _calibration(self) -> Calibration:
        given: Calibration = self.arguments.get("calibration", DEFAULT)
        return given

    def made(
        self, budgets: Mapping[str, Any], statistics: CalibrationStatistics, tuned: bool = True
    ) -> tuple[nn.Module, Report]:
        """One compressed network and its report.

        Args:
            budgets: arguments that differ from one compression to another.
            statistics: of the dense network.
            tuned: False leaves tuning out.
        """
        alone = {} if tuned else {"calibration": replace(self._calibration, tuning=0)}
        return self.compress(self.model, self.data, **{**self.arguments, **alone, **budgets, "statistics": statistics})


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
