"""``calibrate``: the statistics of a dense network, gathered once, for as many compressions as one likes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.driver import Driver
from sbc_plugin.calibration.fingerprint import of_batch, of_model
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import DEFAULT, Statistics, gather
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.calibration.shares import peek
from sbc_plugin.calibration.sums import check_same
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import Calibration

DECISIVE = ("temporal", "max_samples", "device")  # settings that decide the sums


class CalibrationStatistics(dict[str, HessianAccumulator]):
    """What :func:`calibrate` gathers: accumulators by layer name, and what else ``compress(statistics=)`` takes.

    Accumulators of other data of the same model can be merged into these, one by one or by :meth:`merge`.

    Attributes:
        calibration: the settings that it was gathered with.
        driver: how whole sequences were run; None where a forward of the user's own ran them.
        model: the checksum of every weight, buffer and module of the dense model, by name.
        sequences: how many sequences reached each layer, by name.
        silent: (rows,) of each layer, by name, True where the neuron never spiked.
    """

    def __init__(self, gathered: Mapping[str, Statistics], calibration: Calibration, runner: Runner) -> None:
        super().__init__({name: each.accumulator for name, each in gathered.items()})
        self.calibration, self.driver, self.model = calibration, _driver(runner), of_model(runner.model)
        self.sequences = {name: each.sequences for name, each in gathered.items()}
        self.silent: dict[str, Tensor] = {
            name: each.silent for name, each in gathered.items() if each.silent is not None
        }

    def merge(self, other: "CalibrationStatistics") -> None:
        """Add what was gathered on other data of the same model.

        Raises:
            CalibrationError: it is of another model, or was gathered with other settings.
        """
        _check_model(other.model, self.model)
        _check_settings(other.calibration, self.calibration)
        for name, accumulator in other.items():
            self[name].merge(accumulator)
            self.sequences[name] += other.sequences[name]
            self.silent[name] = self.silent[name] & other.silent[name]

    def by_layer(
        self, runner: Runner, layers: Sequence[SpikingLayer], calibration: Calibration
    ) -> dict[str, Statistics]:
        """The statistics of these layers of a model, for a compression with these settings.

        Args:
            runner: of the model as it is before the compression.
            layers: of it.
            calibration: of the compression.

        Raises:
            CalibrationError: they are of another model or forward, of other settings, or of other shapes.
        """
        _check_model(self.model, of_model(runner.model))
        _check_settings(self.calibration, calibration)
        if self.driver != _driver(runner):
            raise CalibrationError(
                "statistics were gathered while the model was run in another way; give calibrate and compress the same "
                "forward, batch_first and kind of data"
            )
        found = {}
        for layer in layers:
            if layer.name not in self:
                raise CalibrationError(
                    f"statistics: there is no layer {layer.name!r} in them; calibrate(model, data) again"
                )
            accumulator = self[layer.name]
            wanted = (*(() if layer.hessians is None else (layer.hessians,)), layer.columns, layer.columns)
            if (shape := tuple(accumulator.sum_xx.shape)) != wanted:
                raise CalibrationError(
                    f"statistics: the Hessian of layer {layer.name!r} is {shape}, and has to be {wanted}; "
                    "calibrate(model, data) again"
                )
            found[layer.name] = Statistics(accumulator, self.sequences[layer.name], self.silent[layer.name])
        return found

    @property
    def checksum(self) -> str:
        """64 digits that tell these statistics from others."""
        return of_batch([(name, each.count, each.sum_xx, self.silent[name]) for name, each in self.items()])


@ranks.joined()
@autocast_off()
def calibrate(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    calibration: Calibration = DEFAULT,
    forward: Forward | None = None,
    batch_first: bool | None = None,
) -> CalibrationStatistics:
    """Gather each layer's Hessian ``H = 2 (MX)^T (MX) / count`` in one pass. Source: docs/theory.md, equation 2.

    ``compress(model, data, statistics=calibrate(model, data), ...)`` takes the result, so that many budgets cost one
    calibration.

    Args:
        model: left as it was: modes, hooks and random state included.
        calibration_data: iterable of batches, each (T, B, ...) or a tuple, list or dict that holds it.
        calibration: settings; only ``temporal``, ``max_samples`` and ``device`` matter here.
        forward: ``forward(model, batch)`` runs one whole sequence.
        batch_first: as for ``compress``.

    Returns:
        A dict of accumulators by layer name, which holds the rest as attributes; each is the sum over the data of all
        ranks of ``torch.distributed``, where there are several. Those of one model merge with those of other data.

    Raises:
        CalibrationError: no data, data of the wrong shape, NaN or infinity, or sequences of a single step.
        UnsupportedModelError: a model, neuron or weight without a rule.
    """
    first, data = peek(calibration_data)
    runner = Runner.of(model, first, forward, batch_first)
    layers, _ = runner.find_layers(first, calibration.temporal)
    check_same(runner.model, layers, {"call": "calibrate", "calibration": calibration, "batch_first": batch_first})
    gathered = gather(runner, layers, data, calibration, silence=True)
    return CalibrationStatistics(gathered, calibration, runner)


def check_statistics(statistics: Any) -> None:
    """Refuse what :func:`calibrate` has not returned.

    Raises:
        SettingsError: it is no such thing.
    """
    if statistics is not None and not isinstance(statistics, CalibrationStatistics):
        raise SettingsError(
            f"statistics is a {type(statistics).__name__}; give what calibrate(model, data) returned, or None"
        )


def _driver(runner: Runner) -> Driver | None:
    return runner.run if isinstance(runner.run, Driver) else None


def _check_model(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    names = [name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)]
    if names:
        raise CalibrationError(
            f"statistics are of another model: {names[0]!r} is not the same; calibrate(model, data) again, on the "
            "dense model"
        )


def _check_settings(theirs: Calibration, ours: Calibration) -> None:
    for name in DECISIVE:
        there, here = getattr(theirs, name), getattr(ours, name)
        if str(there) != str(here):
            raise CalibrationError(
                f"statistics were gathered with {name}={there!r}, here it is {here!r}; "
                f"calibrate(model, data, calibration=Calibration({name}={here!r}))"
            )
