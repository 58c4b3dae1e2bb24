"""The integers behind a quantised network: codes, scales, and thresholds in units of the scale, as chips want them."""

from functools import partial
from typing import Any

import torch
from norse.torch import LIFRecurrent, LIFRecurrentCell, LILinearCell
from torch import Tensor, nn

from sbc_plugin.core.quantization.integers import Integers, in_units
from sbc_plugin.errors import SettingsError
from sbc_plugin.nir.network import Edge
from sbc_plugin.nir.neuron_nodes import NEURON_CLASSES, Gain
from sbc_plugin.nir.wiring import wiring_of

LARGEST = 127  # a code of 8 bits; -128 is left out, so that every code has its negative
TOLERANCE = 1e-6  # of a weight: float32 rounds code * scale by at most 6e-8, and the scale itself as much
GRANULARITIES = ("channel", "tensor")


def integers(model: nn.Module, *, power_of_two: bool = False, granularity: str = "channel") -> dict[str, Integers]:
    """Codes of at most 8 bits, scales and thresholds of every weight of a quantised network, by node.

    The grid is found in the weights themselves, so this also serves a network that was read from a file.

    Args:
        model: one that :func:`sbc_plugin.nir.write` takes.
        power_of_two: demand scales that are powers of two, so that a shift does (Loihi 2).
        granularity: one scale a "channel" (row) or one a "tensor".

    Raises:
        SettingsError: a weight that is no multiple of at most 127 of one such scale: names layer and value.
        UnsupportedModelError: a model whose wiring is not known.

    >>> layers = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> layers[0].weight.data = torch.tensor([[0.75, -0.5]])
    >>> stored = integers(layers, power_of_two=True)["0"]
    >>> stored.codes.tolist(), stored.exponent.tolist()
    ([[3, -2]], [-2])
    """
    if granularity not in GRANULARITIES:
        raise SettingsError(f"granularity={granularity!r} is unknown; use one of {', '.join(map(repr, GRANULARITIES))}")
    modules, edges, *_ = wiring_of(model)
    layer_integers = {}
    for name, module in modules.items():
        inner = getattr(module, "lifted_module", module)
        if isinstance(inner, LIFRecurrentCell | LIFRecurrent | LILinearCell):
            for attribute in filter(partial(hasattr, inner), ("input_weights", "recurrent_weights")):
                key = f"{name}.{attribute}"
                layer_integers[key] = _integers(key, getattr(inner, attribute), None, inner, power_of_two, granularity)
        elif isinstance(inner, nn.Linear | nn.Conv1d | nn.Conv2d):
            neuron = _neuron_behind(name, modules, edges)
            layer_integers[name] = _integers(name, inner.weight, inner.bias, neuron, power_of_two, granularity)
    return layer_integers


def _integers(
    name: str, weight: Tensor, bias: Tensor | None, neuron: nn.Module | None, power_of_two: bool, granularity: str
) -> Integers:
    rows = len(weight)
    matrix = weight.detach().double().reshape(rows if granularity == "channel" else 1, -1)
    codes, scale = _dyadic(matrix) if power_of_two else _grid(matrix)
    wrong = ((codes * scale[:, None] - matrix).abs() > TOLERANCE * matrix.abs()) | (codes.abs() > LARGEST)
    if wrong.any():
        step = "power of two" if power_of_two else "scale"
        half = weight.dtype in (torch.float16, torch.bfloat16)  # rounds a code times any other scale
        way = "the model in float32, or with scales that are powers of two" if half else "it"
        raise SettingsError(
            f"layer {name!r}: {matrix[wrong][0]:g} is not one of {LARGEST} multiples of one {step} a {granularity}; "
            f"{f'{weight.dtype} may have rounded it; ' if half else ''}quantise {way}, e.g. Quantize(bits=8, "
            f"granularity={granularity!r}{', scale=' + repr('power_of_two') if power_of_two or half else ''})"
        )
    scale = scale.expand(rows).clone()
    exponent = scale.log2().round().int() if power_of_two else None
    own = None if bias is None else bias.detach().double() / scale
    return Integers(codes.to(torch.int8).reshape(weight.shape), scale, exponent, own, _threshold(neuron, scale))


def _grid(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the coarsest scale of each row: its smallest magnitude is 1, 2, ... or 127 of it."""
    magnitude = matrix.abs()
    smallest = magnitude.where(magnitude > 0, torch.inf).amin(1)
    smallest = smallest.where(smallest.isfinite(), 1.0)
    unit = matrix / smallest[:, None]
    codes, open_rows = unit.round(), torch.arange(len(matrix), device=matrix.device)
    for code in range(1, LARGEST + 1):
        trial = unit[open_rows] * code
        fits = ((trial - trial.round()).abs() <= TOLERANCE * trial.abs()).all(1)
        codes[open_rows[fits]] = trial[fits].round()
        open_rows = open_rows[~fits]
    square = (codes**2).sum(1)
    return codes, torch.where(square > 0, (codes * matrix).sum(1) / square, 1.0)


def _dyadic(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the coarsest power of two of each row that holds it, where one of 8 bits does."""
    largest = matrix.abs().amax(1)
    # frexp: largest = m * 2 ** e with m < 1, so that codes stay below 128
    scale = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), largest.frexp().exponent - 7), 1.0)
    codes = (matrix / scale[:, None]).round()
    for _ in range(7):
        even = (codes % 2 == 0).all(1) & (largest > 0)
        codes, scale = torch.where(even[:, None], codes / 2, codes), torch.where(even, scale * 2, scale)
    return codes, scale


def _neuron_behind(name: str, modules: dict[str, nn.Module], edges: list[Edge]) -> nn.Module | None:
    """The neuron that a weight's output reaches through pooling and Flatten."""
    targets = [b for a, b in edges if a == name]
    while len(targets) == 1 and targets[0] in modules:
        module: Any = modules[targets[0]]
        module = getattr(module, "lifted_module", module)
        if isinstance(module, NEURON_CLASSES):
            return module
        if isinstance(module, Gain | nn.Linear | nn.Conv1d | nn.Conv2d):
            return None
        targets = [b for a, b in edges if a == targets[0]]
    return None


def _threshold(neuron: Any, scale: Tensor) -> Tensor | None:
    if neuron is None:
        return None
    last = getattr(neuron, "lif", getattr(neuron, "cell", neuron))
    if not hasattr(getattr(last, "p", None), "v_th"):
        return None
    value = _double(last.p.v_th)
    for gain in ("r", "w_in"):
        value = value / _double(getattr(neuron, gain, 1.0))
    return in_units(value, scale)


def _double(value: Any) -> Tensor:
    # A number is rounded to float32 first, as it is where Norse computes with it.
    return (value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")).detach().double()
