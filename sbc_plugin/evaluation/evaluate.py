"""What compression did to a network on data that nothing was fitted to: all that the report's page shows."""

import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import labels_of, peek
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.errors import CalibrationError, CheckpointError
from sbc_plugin.evaluation.accuracy import right_answers
from sbc_plugin.evaluation.answers import Answers
from sbc_plugin.evaluation.comparing import compare_outputs
from sbc_plugin.evaluation.comparison import Comparison, LayerOperations, NeuronComparison
from sbc_plugin.evaluation.operations import Cost
from sbc_plugin.evaluation.runtime import RuntimeComparison
from sbc_plugin.evaluation.text import as_json, of_fields
from sbc_plugin.layers import Forward, SpikingLibrary, library_of
from sbc_plugin.version import __version__

SHOWN, TRACES, RECORDED = 24, 3, 16  # neurons in a raster, neurons with a membrane, sequences that are recorded
BINS = 20  # of the histogram of rates, from 0 to 1 spike a step; neurons that never spike are counted apart
PACKAGES = ("norse", "torch-pruning", "brevitas", "nir")


@dataclass(frozen=True)
class Activity:
    """One neuron module, dense and compressed, on the sequences that were recorded.

    Attributes:
        name: in the model.
        steps: of each sequence.
        neurons: of the module.
        shown: which of them the raster shows, the same before and after, counted from 0.
        spikes_dense: for each of them the steps at which it spiked in the first recorded sequence.
        spikes: the same of the compressed model.
        traced: which of them have a membrane here.
        v_dense: for each of those the membrane before reset, a value a step.
        v: the same of the compressed model.
        v_th: the threshold of each of those in the dense model.
        rates_dense: how many neurons spike 0 times, then how many have a rate in each of 20 equal parts of (0, 1].
        rates: the same of the compressed model.
    """

    name: str
    steps: int
    neurons: int
    shown: list[int]
    spikes_dense: list[list[int]]
    spikes: list[list[int]]
    traced: list[int]
    v_dense: list[list[float]]
    v: list[list[float]]
    v_th: list[float]
    rates_dense: list[int]
    rates: list[int]


@dataclass(frozen=True)
class Evaluation:
    """Dense against compressed.

    Attributes:
        comparison: spikes, operations, energy, size.
        accuracy_dense: fraction of right answers; None where the data holds no labels.
        accuracy: the same of the compressed model.
        activity: a row for each neuron module that spikes, in the order in which they run.
        held_out: whether this data is other than what compression was calibrated on.
        environment: versions, machine, threads, and the most memory that the process held, in bytes.
    """

    comparison: Comparison
    accuracy_dense: float | None
    accuracy: float | None
    activity: list[Activity]
    held_out: bool
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self) | {"comparison": self.comparison.to_dict()}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON, in which NaN and infinity are texts, as JSON has no such numbers."""
        return as_json(self.to_dict(), indent)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Evaluation":
        """What :meth:`to_dict` gave.

        Raises:
            CheckpointError: something is missing, or unknown.
        """
        try:
            comparison = content["comparison"]
            neurons = [of_fields(NeuronComparison, neuron) for neuron in comparison["neurons"]]
            dense, compressed = (of_fields(Cost, comparison[side]) for side in ("dense", "compressed"))
            rows = [of_fields(Activity, row) for row in content["activity"]]
            given = [content[name] for name in ("accuracy_dense", "accuracy")]
            before, after = (None if share is None else float(share) for share in given)
            answers = None if comparison.get("answers") is None else of_fields(Answers, comparison["answers"])
            layers = [of_fields(LayerOperations, layer) for layer in comparison.get("layers", [])]
            timed = comparison.get("runtime")
            runtime = None if timed is None else of_fields(RuntimeComparison, timed)
            compared = Comparison(neurons, dense, compressed, int(comparison["sequences"]), answers, layers, runtime)
            return cls(compared, before, after, rows, bool(content["held_out"]), dict(content["environment"]))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"this is no evaluation of sbc-plugin {__version__}: {error}") from error

    def __str__(self) -> str:
        """The tables that people read."""
        where = "held-out data" if self.held_out else "the calibration data itself"
        return f"{self.comparison}\nmeasured on {self.comparison.sequences} sequences of {where}"


@autocast_off()
def evaluate(
    dense: nn.Module,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    forward: Forward | None = None,
    held_out: bool = True,
    batch_first: bool | None = None,
) -> Evaluation:
    """Compare both models on all the data, and record what their neurons do in the first batch.

    Args:
        dense: before.
        compressed: after.
        data: batches as for ``compress``; accuracy is measured where they hold labels.
        forward: ``forward(model, batch)`` runs one whole sequence.
        held_out: False where this is the data of calibration; the report says so.
        batch_first: as for ``compress``.

    Raises:
        CalibrationError: no data, or the models do not run the same neurons.
        UnsupportedModelError: a model that is not spiking.
    """
    dense, compressed = unwrapped(dense), unwrapped(compressed)
    library = library_of(dense)
    first, data = peek(data)
    check = _Labelled() if labels_of(first) is not None else _no_labels
    comparison = compare_outputs(dense, compressed, data, forward, check, batch_first)
    found = None if comparison.answers is None else comparison.answers.check
    accuracies = None if found is None else found.accuracy_dense, None if found is None else found.accuracy
    runner = Runner.of(dense, first, forward, batch_first)
    activity = _activity(library, dense, compressed, next(iter(runner.pieces(first, RECORDED))), runner.run)
    return Evaluation(comparison, *accuracies, activity, held_out, environment())


def _no_labels(batch: Any, before: Any, after: Any) -> None:
    """There are no labels to compare outputs with."""


class _Labelled:
    """Refuses batches whose labels or outputs do not allow accuracy to be measured."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, batch: Any, before: Any, after: Any) -> None:
        labels = labels_of(batch)
        if labels is None:
            raise CalibrationError(f"batch {self.batches} holds no labels, others do; give pairs (x, labels)")
        for output in (before, after):
            right_answers(output, labels, self.batches)
        self.batches += 1


def _activity(
    library: SpikingLibrary, dense: nn.Module, compressed: nn.Module, batch: Any, forward: Forward | None
) -> list[Activity]:
    before = library.record_states(dense, batch, forward)
    after = library.record_states(compressed, batch, forward)
    thresholds = library.thresholds(dense)
    rows = []
    for name, record in before.items():
        if name not in after or after[name].spikes.shape != record.spikes.shape:
            raise CalibrationError(
                f"neuron {name!r} is not the same in both models; compare a model with its own compression"
            )
        if name in thresholds:
            rows.append(_row(name, record, after[name], thresholds[name]))
    return rows


def _row(name: str, before: Any, after: Any, v_th: Tensor) -> Activity:
    spikes = [record.spikes.flatten(2) != 0 for record in (before, after)]
    steps, _, neurons = spikes[0].shape
    shown = _chosen(spikes[0], SHOWN)
    traced = [neuron for neuron in shown if bool(spikes[0][:, 0, neuron].any())][:TRACES] or shown[:TRACES]
    membranes = []
    for record in (before, after):
        v = record.v if record.v_before is None else record.v_before
        values = [] if v is None else v.flatten(2)[:, 0, traced].T.double().tolist()
        membranes.append([[round(value, 6) for value in trace] for trace in values])
    levels = v_th.detach().double().expand(before.spikes.shape[2:]).flatten()[traced].tolist()
    times = [[train[:, 0, neuron].nonzero().flatten().tolist() for neuron in shown] for train in spikes]
    rates = [_histogram(train) for train in spikes]
    return Activity(
        name, steps, neurons, shown, times[0], times[1], traced, membranes[0], membranes[1], levels, rates[0], rates[1]
    )


def _chosen(spikes: Tensor, count: int) -> list[int]:
    """At most ``count`` neurons, spread evenly over those that spike in the dense network's first sequence."""
    active = spikes[:, 0].any(0).nonzero().flatten()
    pool = active if len(active) else torch.arange(spikes.shape[2], device=spikes.device)
    picks = torch.linspace(0, len(pool) - 1, min(count, len(pool)), device=pool.device).round().long().unique()
    return [int(neuron) for neuron in pool[picks]]


def _histogram(spikes: Tensor) -> list[int]:
    rates = spikes.double().mean((0, 1))
    bins = (rates[rates > 0] * BINS).ceil().long().clamp(1, BINS)
    return [int((rates == 0).sum()), *torch.bincount(bins, minlength=BINS + 1)[1:].tolist()]


def environment() -> dict[str, Any]:
    """Versions, machine, threads, and the most memory that this process has held, in bytes."""
    return {
        "sbc-plugin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: known for name in PACKAGES if (known := version_of(name))},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "peak_memory": _peak_memory(),
    }


def _peak_memory() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
