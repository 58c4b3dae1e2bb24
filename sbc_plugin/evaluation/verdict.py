"""What a report says in one sentence, and what to do next: :func:`verdict`, decided by the report's figures alone."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sbc_plugin.evaluation.answers import counted_sequences
from sbc_plugin.evaluation.comparison import Comparison, meaning_of
from sbc_plugin.evaluation.evaluate import Evaluation
from sbc_plugin.evaluation.report import LayerReport, Report
from sbc_plugin.evaluation.text import shortened
from sbc_plugin.settings import Calibration

FAR = 0.1  # spike distance from which on something should be done where no label tells whether answers suffer
FEW = 128  # calibration sequences below which more of them are the first thing to try
NARROW = 1.0  # points: an interval that reaches no further says enough
LOW_BITS, HIGH_BITS, SPARSE = 4, 8, 0.5
POINT = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether a compressed network can be used, as far as the figures tell.

    Attributes:
        sentence: accuracy with its uncertainty, or what is known without labels; size; the weakest layer.
        worse: whether accuracy fell by more than chance; None where no labels tell.
        weakest: the layer whose own loss is the largest; None where there are no two to compare.
        advice: what to do next, the most useful first.
    """

    sentence: str
    worse: bool | None
    weakest: str | None
    advice: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and lists."""
        return asdict(self)

    def __str__(self) -> str:
        """The sentence, and a line for each advice."""
        return "\n".join([self.sentence, *(f"next: {each}" for each in self.advice)])


def verdict(report: Report, evaluation: Evaluation | None = None) -> Verdict:
    """What the figures of a compression come to.

    Args:
        report: of ``compress``.
        evaluation: of ``evaluate``; without it the sentence says what was done, not what it did.
    """
    weakest = _weakest(report)
    end = "" if weakest is None else f"; weakest layer: {shortened(weakest.name)}"
    name = None if weakest is None else weakest.name
    if evaluation is None:
        sentence = (
            f"{report.sparsity:.1%} of all {report.weights:,} weights are zero; what that did was not measured{end}."
        )
        return Verdict(sentence, None, name, ["Measure it on data that nothing was fitted to: evaluate(), or --test."])
    found = evaluation.comparison
    worse = None if found.answers is None or found.answers.check is None else found.answers.check.worse
    sentence = f"{_answers(evaluation)}; {_size(found)}{end}."
    return Verdict(sentence, worse, name, list(dict.fromkeys(_advice(report, evaluation, weakest))))


def _answers(evaluation: Evaluation) -> str:
    """What became of the answers, or of the spikes where there are none."""
    found = evaluation.comparison
    where = counted_sequences(found.sequences)
    if not evaluation.held_out:
        where += " of the calibration data itself"
    answers = found.answers
    if answers is not None and answers.check is not None:
        check = answers.check
        before, after = 100 * check.accuracy_dense, 100 * check.accuracy
        low, high = check.interval
        interval = f"95 % interval of the loss {low:.1f} to {high:.1f} points"
        return f"Accuracy {before:.1f} -> {after:.1f} %, {check.chance} for {where} ({interval})"
    if evaluation.accuracy is not None and evaluation.accuracy_dense is not None:
        before, after = 100 * evaluation.accuracy_dense, 100 * evaluation.accuracy
        return f"Accuracy {before:.1f} -> {after:.1f} % on {where}, with no interval in a report of this age"
    distance = f"spike distance {meaning_of(found.distance)}"
    if answers is None:
        return f"{distance[0].upper()}{distance[1:]}, on {where}"
    return f"No labels, so no accuracy: {answers.agreement:.1%} of the answers to {where} stay the same; {distance}"


def _size(found: Comparison) -> str:
    before, after = found.dense.packed_bytes, found.compressed.packed_bytes
    sizes = f"{before / 1000:,.1f} -> {after / 1000:,.1f} kB packed"
    ratio = before / after if after else 1.0
    return f"not smaller ({sizes})" if ratio < 1.05 else f"{ratio:.1f} times smaller ({sizes})"


def _weakest(report: Report) -> LayerReport | None:
    """The layer whose own loss is the largest; None where none stands out."""
    losses = [(layer.loss, layer) for layer in report.layers if not math.isnan(layer.loss)]
    if len(losses) < 2:
        return None
    largest = max(loss for loss, _ in losses)
    most = [layer for loss, layer in losses if loss == largest]
    return most[0] if largest > 0 and len(most) < len(losses) else None


def _advice(report: Report, evaluation: Evaluation, weakest: LayerReport | None) -> list[str]:
    found = evaluation.comparison
    check = None if found.answers is None else found.answers.check
    costly = check.worse if check is not None else found.distance >= FAR
    advice = []
    if not evaluation.held_out:
        advice.append("Measure on data that nothing was fitted to (--test): new data fares a little worse.")
    silenced = [neuron.name for neuron in found.neurons if neuron.rate_dense > 0 and neuron.rate == 0]
    for name in silenced:
        layer = next((each for each in report.layers if name in each.neurons), None)
        behind = "" if layer is None else f": {_milder(layer, report)}"
        advice.append(f"Neurons {shortened(name)} fell silent{behind}.")
    if costly:
        layer = weakest or (report.layers[0] if len(report.layers) == 1 else None)
        if layer is not None and _milder(layer, report):
            advice.append(f"{_capital(_milder(layer, report))}.")
        sequences = min((each.sequences for each in report.layers), default=FEW)
        if 0 < sequences < FEW:
            advice.append(f"Give a larger calibration set: {counted_sequences(sequences)} are few.")
        calibration = report.settings.get("calibration")
        if isinstance(calibration, Calibration) and calibration.tuning == 0 and report.settings.get("method") == "sbc":
            how = report.skipped.get("tuning", "leave Calibration(tuning=) open")
            advice.append(f"Let it take gradient steps without labels: {how}.")
    if check is None and found.answers is not None:
        advice.append("Give labels with the data, and accuracy and its uncertainty are told.")
    if check is not None and not check.worse:
        high = check.interval[1]
        if high > NARROW:
            needed = check.paired.sequences_for(POINT)
            advice.append(
                f"{counted_sequences(check.sequences)} cannot exclude a loss of {high:.1f} points: about {needed:,} "
                "like these would tell one point."
            )
        elif evaluation.held_out:
            advice.append("Compress more: search(max_drop=1), or sbc search, finds how far that goes.")
    return advice


def _milder(layer: LayerReport, report: Report) -> str:
    """What is to be given to a layer that loses much; "" if there is nothing to give."""
    if report.settings.get("budget") is not None:
        return "allow a larger budget"
    name = shortened(layer.name)
    rule = repr(layer.name) if name == layer.name else "..."
    if layer.bits < HIGH_BITS and (layer.bits <= LOW_BITS or layer.sparsity < SPARSE):
        bits = min(layer.bits + 2, HIGH_BITS)
        return f"more bits in layer {name}, {bits} in place of {layer.bits}: rules=[({rule}, Quantize({bits}))]"
    if layer.sparsity > 0:
        sparsity = max(1 - 2 * (1 - layer.sparsity), 0.0)
        if sparsity < SPARSE:
            return f"leave layer {name} whole: ignore=[{rule}]"
        zeros = f"{round(sparsity, 6):g}"
        return f"fewer zeros in layer {name}, {100 * sparsity:.4g} %: rules=[({rule}, Prune({zeros}))]"
    return f"leave layer {name} alone: ignore=[{rule}]" if layer.bits <= HIGH_BITS else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
