"""A report as one HTML page that needs no network: tables, and figures drawn from the report alone."""

from html import escape
from typing import Any

from sbc_plugin.evaluation.evaluate import Activity, Evaluation
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.text import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #5c5c5c; --line: #d5d5d5; --card: #f4f5f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #15171a; --soft: #a5a8ad; --line: #3a3e44; --card: #202328; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, figcaption { color: var(--soft); max-width: 46rem; margin: 0.25rem 0 0.75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 0.4rem; padding: 0.7rem 0.9rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, .named th:nth-child(2), .named td:nth-child(2), .text td, .text th { text-align: left; }
.text td { white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; height: auto; max-width: 34rem; }
"""
RASTER = (
    "The same neurons on one sequence: a bar is a spike that stayed at its step, a ring one that was lost, a cross one "
    "that is new. A ring with a cross beside it is a spike that moved."
)
MEMBRANES = "Membrane before reset; a spike follows where it crosses the threshold (dotted)."
RATES = "How many neurons spike how often; at the left, those that never do."


def page(report: Report, evaluation: Evaluation | None = None, title: str = "Compression report") -> str:
    """The page's text; figures need matplotlib (``pip install 'sbc-plugin[plots]'``).

    Args:
        report: of ``compress``.
        evaluation: of ``evaluate``; without it the page shows what was done, not what it did.
        title: e.g. the model's name.
    """
    return document(title, sections(report, evaluation))


def sections(report: Report, evaluation: Evaluation | None = None) -> list[str]:
    """What the page of a report shows below its title, as HTML."""
    from sbc_plugin.evaluation import plots  # needs matplotlib

    parts = [_cards(report, evaluation)]
    parts += ["<h2>Layers</h2>", _layers(report), f"<figure>{plots.layers(report, evaluation)}</figure>"]
    if evaluation is not None:
        where = "data that nothing was fitted to" if evaluation.held_out else (
            "the calibration data itself, so expect new data to fare a little worse"
        )  # fmt: skip
        parts.append("<h2>Neurons</h2>")
        parts.append(f"<p>Measured on {evaluation.comparison.sequences:,} sequences of {where}.</p>")
        parts.append(_neurons(evaluation))
        parts += [_activity(activity) for activity in evaluation.activity]
    parts += ["<h2>Left alone or approximated</h2>", _skipped(report), "<h2>How it was made</h2>"]
    parts.append(_settings(report, evaluation))
    return parts


def document(title: str, parts: list[str]) -> str:
    """A whole page that needs no network.

    Args:
        title: plain text.
        parts: of its body below the title, as HTML.
    """
    parts = [f"<h1>{_text(title)}</h1>", *parts]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _cards(report: Report, evaluation: Evaluation | None) -> str:
    bits = sorted({layer.bits for layer in report.layers})
    cards = [
        (f"{report.sparsity:.1%}", "of all weights are zero" + _left_alone(report)),
        (" to ".join(str(b) for b in sorted({bits[0], bits[-1]})) if bits else "-", "bits a weight"),
    ]
    if evaluation is not None:
        before, after = evaluation.comparison.dense, evaluation.comparison.compressed
        if evaluation.accuracy is not None and evaluation.accuracy_dense is not None:
            cards.insert(0, (f"{evaluation.accuracy:.1%}", f"accuracy, before {evaluation.accuracy_dense:.1%}"))
        cards += [
            (f"{evaluation.comparison.distance:.3f}", "spike distance: 0 the same spikes, 1 no better than silence"),
            (_times(before.packed_bytes, after.packed_bytes), f"smaller: {after.packed_bytes / 1000:,.1f} kB packed"),
            (
                _times(before.operations.acs + before.operations.macs, after.operations.acs + after.operations.macs),
                f"fewer synaptic operations: {after.operations.acs + after.operations.macs:,} a sequence",
            ),
            (
                _times(before.energy, after.energy),
                f"less energy: {after.energy * 1e9:,.1f} nJ a sequence (45 nm proxy)",
            ),
        ]
    cards.append((f"{report.seconds:,.1f} s", "to compress"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{_text(value)}</b><span>{_text(what)}</span></div>' for value, what in cards)
        + "</div>"
    )


def _left_alone(report: Report) -> str:
    if not report.left_alone:
        return ""
    return f"; {report.layer_sparsity:.1%} in the layers below, {report.left_alone:,} weights were left alone"


def _times(before: float, after: float) -> str:
    return f"{before / after:.1f} ×" if after else "-"


def _layers(report: Report) -> str:
    heads = ["layer", "kind", "weight", "sequences", "samples", "sparsity", "bits", "relative loss", "seconds"]
    rows = [
        [
            x.name, x.kind, f"{x.rows} × {x.columns}", f"{x.sequences:,}", f"{x.samples:,}", f"{x.sparsity:.1%}",
            str(x.bits), f"{x.loss:.4f}", f"{x.seconds:.2f}",
        ]
        for x in report.layers
    ]  # fmt: skip
    return html_table(heads, rows, "named")


def _neurons(evaluation: Evaluation) -> str:
    heads = ["neurons", "spike distance", "rate before", "after", "never spike before", "after"]
    rows = [
        [n.name, f"{n.distance:.4f}", f"{n.rate_dense:.4f}", f"{n.rate:.4f}", f"{n.dead_dense:.1%}", f"{n.dead:.1%}"]
        for n in evaluation.comparison.neurons
    ]
    return html_table(heads, rows)


def _activity(activity: Activity) -> str:
    from sbc_plugin.evaluation import plots

    figures = [(plots.raster(activity), RASTER), (plots.rates(activity), RATES)]
    if activity.v_dense and activity.v:
        figures.insert(1, (plots.membranes(activity), MEMBRANES))
    drawn = "".join(f"<figure>{svg}<figcaption>{_text(text)}</figcaption></figure>" for svg, text in figures)
    head = f"<h2>Neurons {_text(activity.name)}</h2><p>{activity.neurons:,} of them; {len(activity.shown)} shown</p>"
    return f'{head}<div class="figures">{drawn}</div>'


def _skipped(report: Report) -> str:
    if not report.skipped:
        return "<p>Nothing.</p>"
    return html_table(["what", "why"], [[name, reason] for name, reason in report.skipped.items()], "text")


def _settings(report: Report, evaluation: Evaluation | None) -> str:
    rows = _flat(report.to_dict()["settings"])
    if evaluation is not None:
        rows += _flat(evaluation.environment)
    named = [
        [name, f"{value / 1e6:,.0f} MB" if name == "peak_memory" and value else str(value)] for name, value in rows
    ]
    return html_table(["setting", "value"], named, "text")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def html_table(heads: list[str], rows: list[list[str]], kind: str = "") -> str:
    """A table as HTML, from plain texts; ``kind`` is a class of the style: "", "named" or "text"."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(cells, "td") for cells in rows)
    head = f"<thead>{line(heads, 'th')}</thead>"
    return f'<div class="wide"><table class="{kind}">{head}\n<tbody>{body}</tbody></table></div>'
