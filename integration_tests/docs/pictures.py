"""The pictures of docs/theory.md, drawn from what the library computes: ``python -m integration_tests.docs.pictures``.

Each is stamped with a digest of the numbers that it shows, by which a test sees whether it is still true.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import norse.torch as norse
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sbc_plugin.core.kernels import delta, filter_causal, iaf, impulse_response, lif, lif_box
from sbc_plugin.norse import record_states

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
BLUE, ORANGE, GREEN, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#000000", "#767676"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "sbc", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 9,
    "axes.titlelocation": "left",
}  # fmt: skip

OFF_BORDER = 1.7e-7  # numbers with seven decimals, the last one a 5, would be rounded up or down by their last bit
STEPS, ALPHA, BETA = 60, 0.1, 0.25  # steps of 1 ms: tau_mem 10 ms, tau_syn 4 ms
WEIGHTS = torch.tensor([1.1, -0.7, 0.9])
SPIKES = ((4, 6, 9, 24, 27, 29, 31, 45), (14, 15, 17, 34, 36), (8, 11, 26, 28, 30, 32, 44, 46, 47))


@dataclass(frozen=True)
class Story:
    """Three inputs of one LIF neuron.

    Attributes:
        x: spikes (T, inputs).
        filtered: ``M x``, (T, inputs).
        free: the membrane that never resets, (T,).
        v: the neuron's own membrane, before reset, (T,).
        sent: its spikes, (T,).
    """

    x: Tensor
    filtered: Tensor
    free: Tensor
    v: Tensor
    sent: Tensor


def story() -> Story:
    """The same inputs filtered by the library's kernel, and run through Norse's neuron.

    In float64, so that what differs between processors does not reach the places that :func:`stamp` looks at.
    """
    x = torch.zeros(STEPS, len(SPIKES), dtype=torch.float64)
    for channel, times in enumerate(SPIKES):
        x[list(times), channel] = 1
    filtered = filter_causal(x.double(), lif(ALPHA, BETA))
    p = norse.LIFParameters(
        **{
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in {"tau_mem_inv": 1000 * ALPHA, "tau_syn_inv": 1000 * BETA, "v_th": 1.0}.items()
        }
    )
    model = norse.SequentialState(nn.Linear(len(SPIKES), 1, bias=False), norse.LIFCell(p)).double()
    model[0].weight.data = WEIGHTS[None].double()
    record = record_states(model, x[:, None])["1"]
    assert record.v_before is not None
    return Story(x, filtered, filtered @ WEIGHTS.double(), record.v_before.flatten(), record.spikes.flatten())


def membrane() -> tuple[Figure, list[Tensor]]:
    """From spikes to filtered spikes to the membrane."""
    shown = story()
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.3, 2))
    colours, dashes = (BLUE, ORANGE, GREEN), ("-", "--", "-.")
    for channel in range(len(SPIKES)):
        times = shown.x[:, channel].nonzero().flatten()
        axes[0].plot(times, [channel] * len(times), "|", color=colours[channel], markersize=10, markeredgewidth=1.6)
        axes[1].plot(
            shown.filtered[:, channel], color=colours[channel], linestyle=dashes[channel],
            label=f"input {channel + 1}, weight {WEIGHTS[channel]:.1f}",
        )  # fmt: skip
    axes[0].set(yticks=range(3), yticklabels=["1", "2", "3"], ylim=(-0.6, 2.6), title="x: spikes of three inputs")
    axes[1].set(title="M x: each input filtered once by the neuron's impulse response")
    axes[1].legend(ncols=3, loc="upper left", fontsize=8)
    axes[1].set_ylim(0, 1.4 * float(shown.filtered.max()))
    axes[2].axhline(1.0, color=GREY, linestyle=":", label="threshold")
    axes[2].plot(shown.free, color=BLACK, label="M x w: the membrane that never resets")
    axes[2].plot(shown.v, color=ORANGE, linestyle="--", label="the neuron's membrane, before reset")
    times = shown.sent.nonzero().flatten()
    axes[2].plot(times, torch.full((len(times),), -0.25), "^", color=ORANGE, label="spikes that it sends")
    axes[2].set(title="their weighted sum", xlabel="time step of 1 ms", ylim=(-0.45, 1.9 * float(shown.free.max())))
    axes[2].legend(ncols=2, loc="upper left", fontsize=8)
    return figure, [shown.x, shown.filtered, shown.free, shown.v, shown.sent]


def kernels() -> tuple[Figure, list[Tensor]]:
    """Impulse responses of four neurons and of M = I."""
    shown = {
        "LIFBox": (lif_box(ALPHA), BLUE, "-"),
        "LIF": (lif(ALPHA, BETA), ORANGE, "--"),
        "LSNN": (lif(ALPHA, BETA, delay=1), GREEN, "-."),
        "IAF": (iaf(), BLACK, ":"),
        "M = I": (delta(), GREY, (0, (5, 1))),
    }
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    found = []
    for name, (kernel, colour, dash) in shown.items():
        response = impulse_response(kernel, 40)
        found.append(response)
        axis.plot(response / response.max(), color=colour, linestyle=dash, label=name)
    axis.set(xlabel="steps after the spike", ylabel="h[k], its maximum as 1", ylim=(0, 1.05))
    axis.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.2), fontsize=8)
    return figure, found


def errors() -> tuple[Figure, list[Tensor]]:
    """Two errors of equal current that differ in the membrane."""
    shown = story()
    close = torch.tensor([0.3, 0.0, -0.3], dtype=torch.float64)  # inputs 1 and 3 spike within a few steps of each other
    apart = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    apart = apart * ((shown.x @ close).square().sum() / (shown.x @ apart).square().sum()).sqrt()
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    found = []
    for change, colour, dash, marker in ((close, BLUE, "-", "o"), (apart, ORANGE, "--", "s")):
        current, held = shown.x.double() @ change.double(), shown.filtered @ change.double()
        found += [current, held]
        times = current.nonzero().flatten()
        axes[0].vlines(times, 0, current[times], color=colour, linestyles=dash)
        axes[0].plot(times, current[times], marker, color=colour, markersize=4,
                     label=f"sum of squares {current.square().sum():.2f}")  # fmt: skip
        axes[1].plot(held, color=colour, linestyle=dash, label=f"sum of squares {held.square().sum():.2f}")
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    axes[0].set(title="x (w' - w): two changes of the weights, equal errors of the current")
    axes[1].set(title="M x (w' - w): what they do to the membrane", xlabel="time step of 1 ms")
    for axis in axes:
        axis.legend(loc="upper right", fontsize=8)
        axis.set_ylim(axis.get_ylim()[0], 1.6 * axis.get_ylim()[1])
    return figure, found


PICTURES = {"theory-membrane": membrane, "theory-kernels": kernels, "theory-errors": errors}


def stamp(shown: list[Tensor]) -> str:
    """A digest of the numbers that a picture shows, to six places."""
    values = [[round(value + OFF_BORDER, 6) + 0.0 for value in tensor.double().flatten().tolist()] for tensor in shown]
    return f"<!-- shows {hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]} -->"


def path_of(name: str) -> Path:
    """Where a picture lies."""
    return FIGURES / f"{name}.svg"


def write() -> None:
    """Draw those that are not up to date."""
    for name, draw in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            figure, shown = draw()
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, facecolor="white")
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        path_of(name).write_text("\n".join([*lines, stamp(shown)]) + "\n")


if __name__ == "__main__":
    write()
