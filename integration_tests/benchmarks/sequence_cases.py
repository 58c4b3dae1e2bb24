"""More of the benchmark's cases: networks for sequences of 50 to 150 steps, split into two halves.

Defaults may be chosen on ``DEVELOPMENT`` (and on the cases of ``cases.py`` and ``subjects.py``, on which the first ones
were chosen); ``HELD_OUT`` only reports. No data set is in both. This split was written down before anything was
measured on either half.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from integration_tests.benchmarks import rows
from integration_tests.benchmarks.cases import Case, Training, budgets
from integration_tests.benchmarks.networks import sequences
from integration_tests.benchmarks.splits import Split
from sbc_plugin.demo.run import Budget
from sbc_plugin.settings import Prune, Quantize

SEEDS = (0, 1, 2)
PIXELS, TAXELS, LETTERS = 28, 4, 27
RECURRENT = budgets((50, 70, 80, 90), (4, 3, 2))
FORWARD = (*budgets((80, 90, 95, 97), (4, 3, 2)), Budget("2:4", "magnitude", prune=Prune(0.5, pattern="2:4")))
# What a network that was trained so has already: neither may cost anything.
AS_TRAINED = (
    Budget("40 % sparse", "magnitude", prune=Prune(0.4)),
    Budget("4 bits a tensor", "rtn", quantize=Quantize(4, granularity="tensor")),
)


def _case(
    name: str,
    title: str,
    build: Callable[[], nn.Module],
    data: Callable[[], Split],
    inputs: int,
    chosen: tuple[Budget, ...],
    training: Training,
) -> Case:
    return Case(name, title, build, data, (inputs,), SEEDS, chosen, training)


def _recurrent(
    name: str, title: str, layer: sequences.Layer, sizes: tuple[int, ...], data: Callable[[], Split], epochs: int
) -> Case:
    inputs, *hidden, classes = sizes
    build = partial(sequences.recurrent, layer, inputs, tuple(hidden), classes)
    return _case(name, title, build, data, inputs, RECURRENT, Training(epochs, 50, 5e-3, 0.1))


def _rows(load: Callable[[Callable[..., object]], Split], hold: int) -> Callable[[], Split]:
    return partial(load, partial(rows.by_rows, hold=hold))


LONG = partial(rows.letters, 2)
SHORT = partial(rows.letters, 1)

DEVELOPMENT = (
    _recurrent(
        "digits-adaptive", "8-96-10 with LSNNRecurrent, scikit-learn's digits row by row, T = 64",
        sequences.adaptive, (8, 96, 10), _rows(rows.digits, 8), 30,
    ),
    _recurrent(
        "digits-refractory", "8-96-10 with LIFRefracRecurrent, scikit-learn's digits row by row, T = 64",
        sequences.refractory, (8, 96, 10), _rows(rows.digits, 8), 40,
    ),
    _recurrent(
        "clothes-subtract", "28-128-10, explicit recurrence, reset by subtraction, Fashion-MNIST row by row, T = 56",
        sequences.subtracting, (PIXELS, 128, 10), _rows(rows.clothes, 2), 12,
    ),
    _recurrent(
        "clothes-current",
        "28-96-96-10, explicit recurrence, current-based, reset by subtraction, Fashion-MNIST row by row, T = 112",
        sequences.current_subtracting, (PIXELS, 96, 96, 10), _rows(rows.clothes, 4), 6,
    ),
)  # fmt: skip
HELD_OUT = (
    _recurrent(
        "letters-lif", "4-128-27 with LIFRecurrent, 27 letters of Braille, T = 76",
        sequences.lif, (TAXELS, 128, LETTERS), SHORT, 30,
    ),
    _recurrent(
        "letters-adaptive", "4-96-27 with LSNNRecurrent, 27 letters of Braille, T = 76",
        sequences.adaptive, (TAXELS, 96, LETTERS), SHORT, 25,
    ),
    _recurrent(
        "letters-refractory", "4-96-27 with LIFRefracRecurrent, 27 letters of Braille, T = 76",
        sequences.refractory, (TAXELS, 96, LETTERS), SHORT, 30,
    ),
    _recurrent(
        "letters-current",
        "4-96-96-27, explicit recurrence, current-based, reset by subtraction, 27 letters of Braille, T = 152",
        sequences.current_subtracting, (TAXELS, 96, 96, LETTERS), LONG, 20,
    ),
    _recurrent(
        "mnist-subtract", "28-128-10, explicit recurrence, reset by subtraction, MNIST row by row, T = 56",
        sequences.subtracting, (PIXELS, 128, 10), _rows(rows.mnist, 2), 25,
    ),
    _case(
        "mnist-current", "784-128-64-10 with current-based LIF, spikes at random, MNIST, T = 100",
        partial(sequences.current_based, (PIXELS**2, 128, 64, 10)),
        partial(rows.mnist, partial(rows.by_rate, steps=100, most=0.1)), PIXELS**2, FORWARD,
        Training(10, 50, 5e-3, 0.2),
    ),
    _case(
        "mnist-integrators", "784-128-64-10 with IAF, spikes at random, MNIST, T = 50",
        partial(sequences.integrators, (PIXELS**2, 128, 64, 10)),
        partial(rows.mnist, partial(rows.by_rate, steps=50, most=0.3)), PIXELS**2, FORWARD, Training(6, 50, 5e-3, 0.1),
    ),
    _case(
        "mnist-rows", "two 1-d convolutions and two linear layers with LIFBox, MNIST row by row, T = 56",
        partial(sequences.rows_1d, PIXELS, 10), _rows(rows.mnist, 2), PIXELS, FORWARD, Training(8, 50, 5e-3, 0.1),
    ),
    _case(
        "mnist-on-grid", "784-128-64-10 with IAF, trained with 45 % zeros and 4 bits, MNIST, T = 50",
        partial(sequences.integrators, (PIXELS**2, 128, 64, 10)),
        partial(rows.mnist, partial(rows.by_rate, steps=50, most=0.3)), PIXELS**2,
        (*AS_TRAINED, *budgets((80, 90), (2,))), Training(6, 50, 5e-3, 0.1, on_grid=True),
    ),
    replace(
        _case(
            "mnist-autoencoder", "784-128-32-128-784 with current-based LIF, voltages answer, MNIST, T = 50",
            partial(sequences.autoencoder, PIXELS**2),
            partial(rows.mnist, partial(rows.by_rate, steps=50, most=0.3)), PIXELS**2, FORWARD, Training(12, 50, 3e-3),
        ),
        target=rows.brightness,
    ),
)  # fmt: skip
SEQUENCE_CASES = (*DEVELOPMENT, *HELD_OUT)
