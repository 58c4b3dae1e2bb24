"""A report as one HTML page that needs no network: tables, and figures drawn from the report alone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sbc_plugin.evaluation.answers import counted_sequences
from sbc_plugin.evaluation.comparison import meaning_of
from sbc_plugin.evaluation.evaluate import Activity, Evaluation
from sbc_plugin.evaluation.layer_table import bar, layer_table, scrolling
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.text import printable
from sbc_plugin.evaluation.verdict import verdict

UNFOLDED = 12  # notes that are shown at once

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #565656; --line: #d5d5d5; --card: #f4f5f6;
  --bar: #cfe3f1; --loss: #8f2d00; --warm: #fdeee4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #15171a; --soft: #a5a8ad; --line: #3a3e44; --card: #202328; --bar: #1d4260;
    --loss: #ffb28a; --warm: #3a2317; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, figcaption, li { max-width: 60rem; margin: 0.25rem 0 0.75rem; }
p, figcaption { color: var(--soft); }
li { margin: 0.25rem 0; }
summary { cursor: pointer; margin: 0.5rem 0; }
ul { padding-left: 1.25rem; margin: 0.25rem 0; }
.verdict { color: var(--ink); background: var(--card); border-left: 0.35rem solid var(--soft); border-radius: 0.4rem;
  padding: 0.8rem 1rem; font-size: 1.15rem; max-width: none; }
.verdict.worse { color: var(--loss); background: var(--warm); border-color: var(--loss); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 0.4rem; padding: 0.7rem 0.9rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 0.9rem; }
.wide { overflow-x: auto; max-width: 100%; }
:focus-visible { outline: 0.15rem solid currentColor; outline-offset: 0.15rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
th, td { text-align: right; padding: 0.3rem 0.45rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; text-align: left; }
.text tbody th, .text td { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.named { width: 100%; }
.named th, .named td { padding: 0.3rem 0.3rem; }
.named tbody th { position: sticky; left: 0; background: var(--paper); max-width: 16rem; overflow: hidden;
  text-overflow: ellipsis; }
th:first-child, .text td, .text th { text-align: left; }
.bar { background: linear-gradient(to right, var(--bar) var(--part), transparent 0); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; container-type: inline-size; }
svg { width: 100%; height: auto; }
@container (min-width: 30rem) { svg text { font-size: 8.5px !important; } }
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
    found = verdict(report, evaluation)
    parts = [verdict_box(found.sentence, bool(found.worse)), _cards(report, evaluation)]
    parts += advice_list(found.advice)
    if report.warnings:
        rows = [[name, text] for name, text in report.warnings.items()]
        parts += ["<h2>Warnings</h2>", html_table(["of", "what"], rows, "text")]
    parts += ["<h2>Left alone or approximated</h2>", _notes(report.skipped)]
    parts += ["<h2>Layers and their neurons</h2>", layer_table(report, evaluation)]
    if evaluation is not None:
        where = "data that nothing was fitted to" if evaluation.held_out else (
            "the calibration data itself, so expect new data to fare a little worse"
        )  # fmt: skip
        measured = counted_sequences(evaluation.comparison.sequences)
        distance = f"Mean spike distance {meaning_of(evaluation.comparison.distance)}."
        parts.append(f"<p>Measured on {measured} of {where}. {_text(distance)}</p>")
        parts += [_activity(activity) for activity in evaluation.activity]
    parts += ["<h2>How it was made</h2>", _stages(report), _settings(report, evaluation)]
    return parts


def verdict_box(sentence: str, worse: bool) -> str:
    """The sentence that a page opens with, as HTML; coloured where it says that too much was lost."""
    return f'<p class="verdict{" worse" if worse else ""}">{_text(sentence).replace("-&gt;", "→")}</p>'


def advice_list(advice: list[str]) -> list[str]:
    """What to do next, as HTML; nothing if there is nothing to do."""
    if not advice:
        return []
    return ["<h2>What to do next</h2>", "<ul>" + "".join(f"<li>{_text(each)}</li>" for each in advice) + "</ul>"]


def document(title: str, parts: list[str]) -> str:
    """A whole page that needs no network.

    Args:
        title: plain text.
        parts: of its body below the title, as HTML.
    """
    parts = ["<main>", f"<h1>{_text(title)}</h1>", *parts, "</main>"]
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
            (
                _times(before.packed_bytes, after.packed_bytes),
                f"smaller: {before.packed_bytes / 1000:,.1f} → {after.packed_bytes / 1000:,.1f} kB packed",
            ),
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


def _activity(activity: Activity) -> str:
    from sbc_plugin.evaluation import plots

    figures = [(plots.raster(activity), RASTER), (plots.rates(activity), RATES)]
    if activity.v_dense and activity.v:
        figures.insert(1, (plots.membranes(activity), MEMBRANES))
    drawn = "".join(f"<figure>{svg}<figcaption>{_text(text)}</figcaption></figure>" for svg, text in figures)
    head = f"<h2>Neurons {_text(activity.name)}</h2><p>{activity.neurons:,} of them; {len(activity.shown)} shown</p>"
    return f'{head}<div class="figures">{drawn}</div>'


def _notes(notes: Mapping[str, str]) -> str:
    if not notes:
        return "<p>Nothing.</p>"
    found = html_table(["what", "why"], [[name, reason] for name, reason in notes.items()], "text")
    return found if len(notes) <= UNFOLDED else f"<details><summary>{len(notes)} notes</summary>{found}</details>"


def _stages(report: Report) -> str:
    """Where the time went, the longest bar for the longest stage."""
    if not report.stages:
        return ""
    longest = max(report.stages.values())
    rows = [
        [name, f"{seconds:,.2f}", f"{seconds / report.seconds:.0%}" if report.seconds else "-"]
        for name, seconds in sorted(report.stages.items(), key=lambda each: -each[1])
    ]
    parts = [part / longest if longest else 0.0 for part in sorted(report.stages.values(), reverse=True)]
    return html_table(["stage", "seconds", "share"], rows, "bars", parts)


def _settings(report: Report, evaluation: Evaluation | None) -> str:
    rows = _flat(report.to_dict()["settings"])
    if evaluation is not None:
        rows += _flat(evaluation.environment)
    named = [
        [name, f"{value / 1e6:,.0f} MB" if name == "peak_memory" and value else str(value)] for name, value in rows
    ]
    return f"<details><summary>All settings</summary>{html_table(['setting', 'value'], named, 'text')}</details>"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def html_table(heads: list[str], rows: list[list[str]], kind: str = "", parts: Sequence[float] = ()) -> str:
    """A table as HTML, from plain texts.

    Args:
        heads: of the columns.
        rows: of cells, of which the first names the row.
        kind: a class of the style: "", "named" or "text".
        parts: for each row, what part of the second cell's width a bar behind it takes; () draws none.
    """

    def line(cells: list[str], part: float | None) -> str:
        first, *others = cells
        html = [f"<td>{_text(cell)}</td>" for cell in others]
        if part is not None:
            html[0] = bar(others[0], part)
        return f'<tr><th scope="row">{_text(first)}</th>{"".join(html)}</tr>'

    bars: Sequence[float | None] = parts or [None] * len(rows)
    body = "\n".join(line(cells, part) for cells, part in zip(rows, bars, strict=True))
    head = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    return scrolling(heads[0], f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>", kind)
