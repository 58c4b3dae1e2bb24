"""``docs/results.md``, its figures and the README's short table, made from the lines of all cases."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from integration_tests.benchmarks import (
    ablations,
    accumulation,
    brevitas_flows,
    brevitas_grid,
    brevitas_speed,
    budget,
    channels,
    choices,
    default_time,
    few_spikes,
    finetuning,
    glance,
    held_out,
    inspection,
    joint,
    knowing_time,
    membrane,
    norms,
    onnx_export,
    peers,
    plots,
    ranks,
    records,
    retraining,
    scale,
    searching,
    solver_speed,
    step_length,
    sweeps,
    tables,
    ties,
    zoo,
)
from integration_tests.benchmarks.records import Line
from integration_tests.benchmarks.subjects import SUBJECTS, Subject

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
DISTRIBUTED = ROOT / "docs" / "distributed.md"
SCALING, CHOOSING = ROOT / "docs" / "scaling.md", ROOT / "docs" / "choosing.md"
START, END = "<!-- made by `make bench`: -->", "<!-- end -->"
GLANCE = "![Accuracy of all networks at 90 % zeros and 4 bits, by method](figures/glance.svg)"
NOT_RUN = "Not run yet."
HEAD = """## How to read this page

`make bench` generates this page from `integration_tests/benchmarks/results/*.jsonl`; do not edit it. The
file `environment.json` beside them lists the versions, and each line names its commit. Accuracy is measured on data
that calibration never saw. ± is the standard error over seeds. Differences are paired: they compare methods on the
same network and the same calibration data. All methods get the same budget and the same calibration data, and none
uses labels unless its section says so.

- *magnitude* sets the smallest weights to zero and shares zeros over layers by LAMP. *rounding* goes to the nearest
  grid value, with the scales of least error.
- *M = I (OBC, GPTQ)* is our solvers and settings with the Hessian that does not know time.
- *GPTQ in Brevitas* uses Brevitas' quantizers, with scales by the largest weight and M = I. We make it see whole
  sequences, which its own `gptq_mode` does not.
- *SBC as published* is greedy OBS in steps of columns / 256, and GPTQ, both on the membrane's Hessian, in one shot,
  with scales by the largest weight and LAMP with exponent 2. Hessians and order are made once for each network; their
  cost counts in each budget.
- *SBC, one shot* is this package's solvers alone, `Calibration(tuning=0)`.
- *SBC, tuned* is the default of `compress` where accuracy is expected to be lost. It prunes weights of silent neurons
  first. Then it takes 200 gradient steps on the kept weights (100 on the scales, where nothing is pruned) towards the
  dense network's own spikes and class probabilities. It uses the same calibration data and no labels, but it is more
  than one shot. The default stands back where hardly any accuracy is expected to be lost, and at 4 bits and more; the
  table tunes all the same.
- With budgets *on average*, layers share the bits by loss, `Quantize(2, allocation="loss")`, so that all codes take no
  more memory than so many bits for each weight. *SBC as published* has the same bits everywhere.

*Spike distance* is the Van Rossum distance relative to silence, as a mean over neuron modules. *Rate distance* is the
change of each neuron's rate, summed, relative to the rates. *Operations* are products of a weight and an input that
are both not zero, for each sequence. *Energy* is the energy of these operations in 45 nm, and of nothing else. *Size*
is that of the packed weights. *Memory* is the highest peak while compressing.
"""


OVERVIEW = """The table shows the accuracy in %, at sparsities where SBC as published has lost at least three points,
and at few bits. Networks and seeds are those of the sections below, which show all budgets, spikes and costs.
"""


@dataclass(frozen=True)
class Special:
    """A case with lines of its own kind.

    Attributes:
        title: of its section.
        about: below the title.
        lines: measures all of them.
        table: of its lines.
    """

    title: str
    about: str
    lines: Callable[[], Iterable[Line]]
    table: Callable[[list[Line]], str]


SPECIAL = {
    "channels": Special(
        "channels: whole channels cut through torch-pruning",
        "`get_pruner(method, ...)` removes hidden channels of the networks of `digits`, without fine-tuning, by SBC\n"
        "and by torch-pruning's own importances. The output error is that of held-out output spike counts, relative\n"
        "to the dense ones.",
        channels.lines,
        channels.table,
    ),
    "norms": Special(
        "norms: channels cut through a norm over all of them", norms.__doc__ or "", norms.lines, norms.table
    ),
    "zoo": Special(
        "zoo: torchvision's networks with random weights",
        "`get_pruner(method, ..., pruning_ratio=0.5)` cuts half of each layer's channels, on images as small as each\n"
        "network takes, with 256 images of noise to calibrate on. Output errors are relative to the dense outputs, on\n"
        "64 other images; no network is trained, before or after. Seconds are of one processor. Where SBC refuses a\n"
        "network, all methods run with the layers whole that the audit names; the column says how many. Three seeds\n"
        "where a spread is shown, else one. ShuffleNet, GoogLeNet and ConvNeXt answer with little more than their\n"
        "last bias or their stem while their weights are random, so their errors tell nothing. MaxViT takes\n"
        "images of 224 pixels, and is run some thousand times to see which channels belong together, and on all 256\n"
        "images.",
        zoo.lines,
        zoo.table,
    ),
    "ties": Special(
        "ties: tuning where the best class is often tied",
        "Networks 64-128-classes on handwritten digits as random spikes, trained so that outputs spike seldom: on\n"
        "many sequences two classes have the same number of spikes, or none has any. They are pruned to 90 % zeros.\n"
        "The test sets are small: with 2 classes an accuracy has a standard error of about 4 points.",
        ties.lines,
        ties.table,
    ),
    "solver_speed": Special(
        "solver_speed: how long a large layer takes",
        "The layer is the first of a network 2312-500-10 on saccade events (T = 10, 1,000 sequences), pruned to 97 %\n"
        "zeros. Each mask is followed by the same exact refit. `obs, B_in = 10` is the paper's greedy order.\n\n"
        f"{solver_speed.TRIES}",
        solver_speed.lines,
        solver_speed.table,
    ),
    "peers": Special(
        "peers: our solvers and those of others on the same Hessians",
        f"{peers.__doc__}\n![Seconds and loss over columns](figures/peers.svg)\n",
        peers.lines,
        peers.table,
    ),
    "accumulation": Special(
        "accumulation: summing a Hessian beside the bare product",
        accumulation.__doc__ or "",
        accumulation.lines,
        accumulation.table,
    ),
    "inspection": Special(
        "inspection: the time that is told before",
        inspection.__doc__ or "",
        inspection.lines,
        inspection.table,
    ),
    "ranks": Special("ranks: the work of one process, dealt to several", ranks.__doc__ or "", ranks.lines, ranks.table),
    "brevitas_speed": Special(
        "brevitas_speed: one update in Brevitas",
        "The table shows the wall time of `update()` in Brevitas' `gptq_mode` and in `sbc_mode`, both in the type\n"
        "that the row names, on one `QuantConv2d` 128 -> 256, 3 x 3, with four bits, a scale for each channel, and\n"
        "the same Hessian and order.",
        brevitas_speed.lines,
        brevitas_speed.table,
    ),
    "brevitas_grid": Special(
        "brevitas_grid: every kind of layer, bits and scales in Brevitas",
        "The table shows the spike distance of held-out sequences, relative to silence. All methods round to one\n"
        "grid, whose scales are those of least weight error, so only the codes differ. Integers equal those of\n"
        "`core` on the same Hessian. From 4 bits on the distance is small, and noise decides between SBC and M = I.\n"
        "With 2 bits and one scale for each tensor, rounding destroys the whole network, because three levels lie on\n"
        "a scale that fits the weights and not the output. There `compress`, which searches the scale by the layer's\n"
        "loss, is nearer than all three.",
        brevitas_grid.lines,
        brevitas_grid.table,
    ),
    "brevitas_flows": Special(
        "brevitas_flows: Brevitas' PTQ example for images",
        "`quantize_model` and `apply_gptq` of `brevitas_examples.imagenet_classification.ptq` are called as they are,\n"
        "with `sbc_mode` in the place of `gptq_mode`, on a CNN without neurons (depthwise, pointwise and grouped\n"
        "convolutions, a residual) trained on the digits. W is bits of weights, A of activations. The error is that\n"
        "of the scores of held-out images, relative to the float ones. With M = I and the same order both modes solve\n"
        "one problem: values that differ are near ties, which float32 and float64 round to different sides.",
        brevitas_flows.lines,
        brevitas_flows.table,
    ),
    "onnx_export": Special(
        "onnx_export: the same spikes from another runtime",
        "The table counts output spikes of 1,000 sequences that differ from those of the model in PyTorch, by form\n"
        "of the file. Sums of spikes are taken before the state is added. With power-of-two scales and no bias every\n"
        "sum is exact, and states are equal in every bit. With other scales, or a bias, PyTorch and onnxruntime add\n"
        "in different orders, so states differ in their last bits, and a spike could flip where a membrane comes\n"
        "that close to its threshold.",
        onnx_export.lines,
        onnx_export.table,
    ),
    "joint": Special(
        "joint: half of the weights zero and 4 bits, together or one after the other",
        "The networks are those of `digits`, and small random networks of Linear and of convolution layers with\n"
        "correlated input spikes. The output error is the squared Van Rossum distance of held-out output spikes,\n"
        "relative to silence. `gptq_mode` gets, layer by layer, the recorded inputs of all steps. *alone* does only\n"
        "one of the two, to compare.",
        joint.lines,
        joint.table,
    ),
    "membrane": Special(
        "membrane: the neurons' own states in few bits",
        "In the networks of `digits`, `quantize_membranes` rounds v to fixed point after every step. Weights are not\n"
        "changed.",
        membrane.lines,
        membrane.table,
    ),
}


SECTIONS = {  # title, what stands below it, and the table
    "retraining": ("Retraining", retraining.__doc__, retraining.table),
    "step_length": ("Step length", step_length.__doc__, step_length.table),
    "default_time": ("The default's time", default_time.__doc__, default_time.table),
    "finetuning": ("Fine-tuning", finetuning.__doc__, finetuning.table),
    "budget": ("One budget", budget.__doc__, budget.table),
    "knowing_time": ("Knowing time, before and after tuning", knowing_time.__doc__, knowing_time.table),
    "search": ("A search", searching.__doc__, searching.table),
    "few_spikes": ("Few output spikes", few_spikes.__doc__, few_spikes.table),
}
SAYS = {  # written by people, without a number that is not in the figure
    "samples": (
        "One sequence in all is useless where there are ten classes, and one for each class is much worse than ten. "
        "From one for each class on, SBC is ahead of M = I on the same data."
    ),
    "distribution": (
        "Other classes, another encoder and above all noise cost a lot, with either Hessian. So calibrate on what "
        "the network will see. SBC stays ahead of M = I on each."
    ),
    "surrogate": (
        "The constant derivative of the paper does as well as one that is as wide as the threshold is high. The "
        "narrower a surrogate is around the threshold, the more it costs."
    ),
    "kernel": (
        "This speaks against us: the exact kernel is not what counts. A memory that is too long, or no leak at all, "
        "does as well as the membrane's own memory. Only a memory that is too short costs, and none at all (M = I) "
        "costs most."
    ),
    "order": (
        "Sequential order gains on conv-events if the target mixes in a little of the dense network's membrane, and "
        "not on digits. It costs on both if the target does not (alpha = 0). One shot is the default, because it is "
        "simpler and nowhere loses much."
    ),
    "damping": (
        "Everything up to the default does about equally well. A tenth of the mean diagonal costs SBC on digits and "
        "M = I on conv-events. The whole mean diagonal costs a lot on both."
    ),
    "allocation": (
        "LAMP's exponent of 2 does best, though not by much, and losses in place of squared weights do as well. The "
        "same sparsity in every layer ruins the network."
    ),
    "tuning": (
        "This speaks against us: tuning makes up for what a worse Hessian lost. After 100 steps M = I is level with "
        "SBC on conv-events, and not far behind on digits. SBC gets there in fewer steps, and a mask by magnitude does "
        "not get there."
    ),
    "rounds": (
        "This speaks against us: a second round alone gains nothing with SBC and may cost, because the errors of the "
        "rounds add up. With tuning after it, it makes no difference on these networks, so one round is the default."
    ),
    "corrections": (
        "Alignment, by forward passes alone, gains where there is BatchNorm (conv-events; the digits' network has "
        "neither BatchNorm nor biases). Rescaled rows gain, most of all with M = I. Tuning gains most, and needs no "
        "alignment first."
    ),
    "steps": "Calibrate with sequences as long as those of use. Shorter ones cost, and longer ones gain nothing.",
}


def figure_of(name: str) -> Path:
    """The file of a case's figure."""
    return plots.FIGURES / f"{name}.svg"


def page() -> str:
    """The text of ``docs/results.md``."""
    lines = {name: records.read(name) for name in SUBJECTS}
    text = [
        "# Results",
        "",
        glance.five_lines({name: found for name, found in lines.items() if found}),
        "",
        GLANCE,
        "",
        HEAD,
        "## Overview",
        "",
        OVERVIEW,
        tables.overview({name: _in_order(SUBJECTS[name], found) for name, found in lines.items()}),
        "",
    ]
    text += ["## What was run", "", tables.costs({name: found for name, found in lines.items() if found}), ""]
    text += ["What budgets share, such as the published method's order of all weights, counts in each budget.", ""]
    if missing := [name for name, found in lines.items() if not found]:
        text += [f"Not run yet: {', '.join(missing)}.", ""]
    for name, subject in SUBJECTS.items():
        text += _section(subject, lines[name]) if lines[name] else []
    text += ["## Networks not seen", "", held_out.__doc__ or "", held_out.table(lines)]
    text += ablation_sections(records.read("ablations"))
    for name, (title, about, table) in SECTIONS.items():
        text += [f"## {title}", "", about or "", f"Command: `make bench CASE={name}`.", ""]
        text += [table(found) if (found := records.read(name)) else NOT_RUN, ""]
    for name, special in SPECIAL.items():
        text += [f"## {special.title}", "", special.about, f"Command: `make bench CASE={name}`.", ""]
        text += [special.table(found) if (found := records.read(name)) else NOT_RUN, ""]
    return "\n".join(text)


def _in_order(subject: Subject, lines: list[Line]) -> list[Line]:
    """The lines of the subject's budgets, in their order."""
    order = ["-", *(budget.title for budget in subject.case.budgets)]
    return sorted((line for line in lines if line["budget"] in order), key=lambda line: order.index(line["budget"]))


def _section(subject: Subject, lines: list[Line]) -> list[str]:
    name = subject.name
    seeds = sorted({line["seed"] for line in lines})
    wanted = len(subject.case.seeds)
    run = f"{len(seeds)} seeds" + (f" of {wanted}" if len(seeds) < wanted else "")
    text = [f"## {name}", "", f"{subject.case.title}; {run}.", f"Command: `make bench CASE={name}`.", ""]
    text += [f"![Accuracy of {name} by method](figures/{figure_of(name).name})", ""]
    return [*text, tables.by_method(lines, ["-", *(budget.title for budget in subject.case.budgets)]), ""]


def _networks(lines: list[Line]) -> list[str]:
    return list(dict.fromkeys(line["network"] for line in lines))


def ablation_sections(lines: list[Line]) -> list[str]:
    """A figure and a sentence for each ablation."""
    text = ["## Ablations", "", ablations.__doc__ or "", "Command: `make bench CASE=ablations`.", ""]
    for name, (varied, _) in ablations.ABLATIONS.items():
        found = [line for line in lines if line["ablation"] == name]
        text += [f"### {name}", ""]
        seeds = {name: {line["seed"] for line in found if line["network"] == name} for name in _networks(found)}
        networks = ", ".join(f"{name} (seeds {', '.join(map(str, sorted(chosen)))})" for name, chosen in seeds.items())
        shown = f"![Accuracy over {varied}](figures/{figure_of(f'ablation-{name}').name})\n\n{SAYS[name]}"
        text += [shown if found else NOT_RUN, "", *([f"Measured on {networks}.", ""] if found else [])]
    return text


def readme() -> str:
    """The README with its short table made anew."""
    return _with_table(README, tables.summary(records.read("digits")))


def distributed() -> str:
    """The page on several processes with its table made anew."""
    return _with_table(DISTRIBUTED, ranks.table(records.read("ranks")))


def scaling() -> str:
    """The page on large networks with its tables made anew."""
    large, grown = records.read("scale"), records.read("sweeps")
    text = ["### Networks of ImageNet's sizes", "", scale.__doc__ or "", scale.table(large) if large else NOT_RUN, ""]
    text += ["### How it grows", "", sweeps.__doc__ or "", "Command: `make bench CASE=sweeps`.", ""]
    text += ["![Time and memory](figures/sweeps.svg)", "", sweeps.table(grown)] if grown else [NOT_RUN]
    return _with_table(SCALING, "\n".join(text))


def choosing() -> str:
    """The page on how to choose with its table of times made anew."""
    return _with_table(CHOOSING, choices.table(*map(records.read, ("default_time", "scale", "search"))))


def _with_table(path: Path, table: str) -> str:
    before, _, rest = path.read_text().partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table}\n{END}{after}"


def figures() -> dict[str, tuple[list[Line], Callable[[list[Line], Path], Path]]]:
    """Name of each figure -> its lines, and what draws it."""
    found: dict[str, tuple[list[Line], Callable[[list[Line], Path], Path]]] = {}
    for name, subject in SUBJECTS.items():
        found[name] = records.read(name), partial(plots.draw, title=f"{name}: {subject.case.title}")
    ablated = records.read("ablations")
    for name, (varied, _) in ablations.ABLATIONS.items():
        mine = [line for line in ablated if line["ablation"] == name]
        found[f"ablation-{name}"] = mine, partial(plots.draw_ablation, xlabel=varied)
    found["glance"] = glance.shown({name: records.read(name) for name in SUBJECTS}), glance.draw
    found["sweeps"] = records.read("sweeps"), plots.draw_sweeps
    found["peers"] = peers.over_columns(records.read("peers")), plots.draw_peers
    return {name: (lines, draw) for name, (lines, draw) in found.items() if lines}


def stale_figures() -> list[str]:
    """Figures that were not drawn from the lines that are there."""
    return [name for name, (lines, _) in figures().items() if not plots.is_current(figure_of(name), lines)]


def write() -> None:
    """Page, figures and README, from the lines that are there."""
    stale = stale_figures()
    for name, (lines, draw) in figures().items():
        if name in stale:
            draw(lines, figure_of(name))
    PAGE.write_text(page())
    README.write_text(readme())
    DISTRIBUTED.write_text(distributed())
    SCALING.write_text(scaling())
    CHOOSING.write_text(choosing())
