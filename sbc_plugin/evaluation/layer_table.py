"""The table of a report's page: a row a layer, with the neurons that it feeds, and bars behind the numbers."""

import math
from html import escape

from sbc_plugin.evaluation.comparison import NeuronComparison
from sbc_plugin.evaluation.evaluate import Evaluation
from sbc_plugin.evaluation.report import LayerReport, Report
from sbc_plugin.evaluation.text import printable

LAYER = ["layer", "zeros", "bits", "relative loss"]
NEURONS = ["neurons", "spike distance", "rate before", "after", "never spike before", "after"]
REST = ["weights", "operations left", "kind", "sequences", "samples", "seconds"]
NOTHING = "–"


def layer_table(report: Report, evaluation: Evaluation | None) -> str:
    """The table as HTML. Neurons that no layer of the report feeds have rows of their own, and so have other weights.

    Args:
        report: of ``compress``.
        evaluation: where there is one, with what became of the neurons.
    """
    neurons = {} if evaluation is None else {each.name: each for each in evaluation.comparison.neurons}
    layers = [] if evaluation is None else evaluation.comparison.layers
    left = {each.name: each.compressed / each.dense for each in layers if each.dense}
    operations = {name: bar(f"{share:.1%}", share) for name, share in left.items()}
    most = max((layer.loss for layer in report.layers if math.isfinite(layer.loss)), default=0.0)
    furthest = max((each.distance for each in neurons.values() if math.isfinite(each.distance)), default=0.0)
    rows: list[str] = []
    shown: set[str] = set()
    for layer in report.layers:
        behind = [neurons[name] for name in layer.neurons if name in neurons]
        shown.update(each.name for each in behind)
        cells = [*_of_layer(layer, most), *(_of_neurons(layer, behind, furthest) if neurons else [])]
        rows.append(_row([*cells, *_rest_of(layer, operations.get(layer.name, NOTHING))]))
    empty = [NOTHING] * len(LAYER)
    for name, neuron in neurons.items():
        if name not in shown:
            rows.append(_row([*empty, *_of_neurons(None, [neuron], furthest), *[NOTHING] * len(REST)]))
    between, behind_all = [NOTHING] * (len(NEURONS) if neurons else 0), [NOTHING] * (len(REST) - 1)

    def sum_row(name: str, weights: int, zeros: float) -> str:
        cells = [name, bar(f"{zeros:.1%}", zeros), NOTHING, NOTHING, *between, f"{weights:,}", *behind_all]
        return _row(cells)

    if report.left_alone:
        rows.append(sum_row("left alone", report.left_alone, report.left_alone_zeros / report.left_alone))
    rows.append(sum_row("all", report.weights, report.sparsity))
    heads = [*LAYER, *(NEURONS if neurons else []), *REST]
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    content = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return scrolling("layers and their neurons", content, "named")


def scrolling(what: str, content: str, kind: str = "") -> str:
    """A table that scrolls sideways where it is wider than the page, by keyboard too.

    Args:
        what: the table shows, plain text.
        content: of the table, as HTML.
        kind: a class of the style.
    """
    label = escape(printable(what))
    box = f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
    return f'{box}<table class="{kind}">{content}</table></div>'


class _Html(str):
    """Text that is HTML already."""


def bar(text: str, part: float) -> _Html:
    """A number with a bar behind it, of this part of the cell's width."""
    width = 100 * min(max(part, 0.0), 1.0) if part == part else 0.0
    return _Html(f'<td class="bar" style="--part: {width:.1f}%">{escape(text)}</td>')


def _row(cells: list[str]) -> str:
    first, *others = cells
    html = [cell if isinstance(cell, _Html) else f"<td>{escape(printable(cell))}</td>" for cell in others]
    return f'<tr><th scope="row">{escape(printable(first))}</th>{"".join(html)}</tr>\n'


def _of_layer(layer: LayerReport, most: float) -> list[str]:
    loss = bar(f"{layer.loss:.4f}", layer.loss / most if most else 0.0)
    return [layer.name, bar(f"{layer.sparsity:.1%}", layer.sparsity), str(layer.bits), loss]


def _rest_of(layer: LayerReport, operations: str) -> list[str]:
    return [
        f"{layer.rows} × {layer.columns}", operations, layer.kind,
        f"{layer.sequences:,}", f"{layer.samples:,}", f"{layer.seconds:.2f}",
    ]  # fmt: skip


def _of_neurons(layer: LayerReport | None, neurons: list[NeuronComparison], furthest: float) -> list[str]:
    """Of several modules that one weight feeds, the furthest."""
    if not neurons:
        name = ", ".join(layer.neurons) if layer is not None else ""
        return [f"{name} (no spikes)" if name else NOTHING, *[NOTHING] * (len(NEURONS) - 1)]
    worst = max(neurons, key=lambda each: each.distance)
    name = worst.name + (f" and {len(neurons) - 1} more" if len(neurons) > 1 else "")
    return [
        name, bar(f"{worst.distance:.4f}", worst.distance / furthest if furthest else 0.0),
        f"{worst.rate_dense:.4f}", f"{worst.rate:.4f}", f"{worst.dead_dense:.1%}", f"{worst.dead:.1%}",
    ]  # fmt: skip
