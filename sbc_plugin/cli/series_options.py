"""Options of ``sbc search`` and ``sbc sweep`` beside those of ``sbc compress``, and what they mean."""

import argparse
import math
from decimal import Decimal, InvalidOperation

from sbc_plugin.errors import SettingsError

SERIES_EXAMPLES = {
    "search": """examples:
  sbc search model.nir --data spikes.npz --test test.npz --max-drop 1 -o small.nir --report report.html
  sbc search model.nir --data spikes.npz --test test.npz --over bits --sparsity 0.8 -o small.nir
  sbc search model.nir --data spikes.npz --test test.npz --over size --chip chip.yaml -o small.nir

One half of the test data serves the search, the other one checks what it chose.
""",
    "sweep": """examples:
  sbc sweep model.nir --data spikes.npz --test test.npz --sparsity 0.5:0.98:7 --bits 2,4,8 -o table.jsonl

The same command goes on where it was interrupted.
""",
}
POINTS, MOST = 5, 1000  # sparsities of a range without a number, and values at most


def _sources(parser: argparse.ArgumentParser, model: str, data: str) -> None:
    parser.add_argument("source", metavar="SOURCE", help=model)
    parser.add_argument("--data", required=True, help=f"for calibration: {data}")
    parser.add_argument("--test", required=True, metavar="DATA", help="held-out data with labels, as --data")


def search_options(parser: argparse.ArgumentParser, model: str, data: str) -> None:
    """Add what is particular to ``sbc search``; ``model`` and ``data`` say what these may be."""
    _sources(parser, model, data)
    parser.add_argument("--max-drop", type=float, default=1.0, metavar="POINTS", help="of accuracy (default: 1)")
    parser.add_argument(
        "--over",
        choices=("sparsity", "bits", "size"),
        default="sparsity",
        help="what is searched (%(default)s)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="OUT.nir, OUT.safetensors or OUT.onnx")
    parser.add_argument(
        "--report", metavar="FILE", help="page.html or report.json, and beside it the recipe (page.recipe.yaml)"
    )


def sweep_options(parser: argparse.ArgumentParser, model: str, data: str) -> None:
    """Add what is particular to ``sbc sweep``; its sparsities and bits take the place of single ones."""
    _sources(parser, model, data)
    parser.add_argument(
        "--sparsity", dest="sparsities", metavar="LIST", help="0.5,0.9, or 0.5:0.98[:N], N values from the first on"
    )
    parser.add_argument("--bits", dest="widths", metavar="LIST", help="e.g. 2,4,8")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="table.jsonl, a line a network")
    parser.add_argument("--report", metavar="FILE", help="page.html, with accuracy over size and over operations")
    parser.set_defaults(sparsity=None, bits=None)


def sparsities_of(text: str) -> list[float]:
    """The sparsities of a list or a range; those of a range leave weights in equal factors.

    Raises:
        SettingsError: it is neither.

    >>> sparsities_of("0.5,0.9"), sparsities_of("0.5:0.98:3")
    ([0.5, 0.9], [0.5, 0.9, 0.98])
    """
    if ":" not in text:
        return [float(each) for each in _numbers("--sparsity", text, text.split(","))]
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise SettingsError(f"--sparsity {text} is no range; give e.g. 0.5:0.98, or 0.5:0.98:7 for seven values")
    low, high, *count = _numbers("--sparsity", text, parts)
    number = count[0] if count else Decimal(POINTS)
    if not 0 <= low < high < 1 or number != number.to_integral_value() or not 2 <= number <= MOST:
        raise SettingsError(f"--sparsity {text} is no range; give e.g. 0.5:0.98:7, from low to high below 1, 2 or more")
    first, last = math.log(1 - low), math.log(1 - high)
    steps = int(number) - 1
    between = [round(1 - math.exp(first + (last - first) * step / steps), 4) for step in range(1, steps)]
    return [float(low), *between, float(high)]


def bits_of(text: str) -> list[int]:
    """The bits of a list.

    Raises:
        SettingsError: it is none.

    >>> bits_of("2,4,8")
    [2, 4, 8]
    """
    numbers = _numbers("--bits", text, text.split(","))
    if any(number != number.to_integral_value() for number in numbers):
        raise SettingsError(f"--bits {text} holds what is no whole number; give e.g. 2,4,8")
    return [int(number) for number in numbers]


def _numbers(name: str, text: str, parts: list[str]) -> list[Decimal]:
    try:
        found = [Decimal(part.strip()) for part in parts]
    except InvalidOperation:
        found = []
    if not found or len(found) > MOST or not all(number.is_finite() and -MOST <= number <= MOST for number in found):
        raise SettingsError(
            f"{name} {text:.80} is no list of numbers; give e.g. {'2,4,8' if name == '--bits' else '0.5,0.9'}"
        )
    return found
