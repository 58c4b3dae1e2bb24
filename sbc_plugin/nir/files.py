"""A .nir file compressed into a .nir file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.checkpoint.atomic import check_target
from sbc_plugin.compression.compress import compress
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.rule import Rule, Selector, What
from sbc_plugin.nir.hdf5 import MAX_BYTES
from sbc_plugin.nir.network import Network
from sbc_plugin.nir.neuron_nodes import Reset
from sbc_plugin.nir.reading import read
from sbc_plugin.nir.writing import write
from sbc_plugin.settings import Calibration, Prune, Quantize


@ranks.joined()
def compress_file(
    source: str | Path,
    target: str | Path,
    calibration_data: Iterable[Any],
    *,
    prune: Prune | None = None,
    quantize: Quantize | None = None,
    calibration: Calibration = DEFAULT,
    dt: float | None = None,
    reset_method: str | Reset | None = None,
    max_bytes: int = MAX_BYTES,
    ignore: Sequence[Selector] = (),
    rules: Sequence[tuple[Selector, What] | Rule] = (),
) -> tuple[Network, Report]:
    """Read a .nir file, compress the network in it, write it as another; the target appears whole or not at all.

    Of several ranks of ``torch.distributed`` the first one writes.

    Args:
        source: path of a .nir file.
        target: path of the file to write; one that is there is replaced.
        calibration_data: batches (T, B, ...) as for :func:`sbc_plugin.compress`.
        prune: how many weights go; None keeps all.
        quantize: the grid; None keeps floating point. The file holds code times scale, in float32.
        calibration: how Hessians are gathered.
        dt: step of time, s; None = as :func:`read` has it. The report's settings say which was used.
        reset_method: as for :func:`read`.
        max_bytes: as for :func:`read`.
        ignore: as for :func:`sbc_plugin.compress`.
        rules: as for :func:`sbc_plugin.compress`.

    Returns:
        The compressed network, and the report.

    Raises:
        CheckpointError: the source cannot be read, or the target cannot be written.
        UnsupportedModelError: a node without a rule.
        SettingsError: nothing to do, or settings that do not fit the network.
        CalibrationError: no data, data that does not fit, or a layer that stays silent.
        SingularHessianError: a Hessian that damping does not make invertible.
    """
    check_target(target)
    network = read(source, dt=dt, reset_method=reset_method, max_bytes=max_bytes)
    _, report = compress(
        network,
        calibration_data,
        prune=prune,
        quantize=quantize,
        calibration=calibration,
        inplace=True,
        ignore=ignore,
        rules=rules,
    )
    if ranks.rank() == 0:
        write(target, network)
    used = {"dt": network.dt, "reset_method": network.reset_method.__name__}
    return network, replace(report, settings=report.settings | used)
