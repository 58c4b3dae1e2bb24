"""The rows of every run: what each method makes of a dense network under a budget."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from integration_tests.benchmarks.effort import Effort, measured
from integration_tests.benchmarks.published import Published
from sbc_plugin import compress
from sbc_plugin.brevitas import quantize_layers, sbc_mode, weight_quantizer
from sbc_plugin.compression.plan import SCALE_STEPS, filled, steps_for
from sbc_plugin.demo.run import ONE_SHOT, Budget
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import Forward
from sbc_plugin.norse import default_forward
from sbc_plugin.settings import Calibration


@dataclass
class Bench:
    """A dense network, and what methods may use to compress it.

    Attributes:
        dense: is not changed.
        calibration: batches (x (T, B, ...), labels).
        forward: runs one whole sequence; None = the library's default.
    """

    dense: nn.Module
    calibration: list[Any]
    forward: Forward | None = None

    @cached_property
    def published(self) -> tuple[Published, Effort]:
        """The paper's method with its Hessians, and what they took."""
        method = Published(self.dense, self.calibration, self.forward)
        _, effort = measured(method.calibrate)
        return method, effort

    @cached_property
    def ordered(self) -> Effort:
        """What the paper's order of all weights took; it is made at the first use."""
        _, effort = measured(self.published[0].order)
        return effort


Made = tuple[nn.Module, Effort]


@dataclass(frozen=True)
class Method:
    """A row of every table.

    Attributes:
        title: as the tables show it.
        make: the compressed network, and what that took, calibration included.
        takes: whether the method is for such a budget.
        settings: of a budget, all that the method depends on; measured lines are kept as long as this stays.
    """

    title: str
    make: Callable[[Bench, Budget], Made]
    takes: Callable[[Budget], bool]
    settings: Callable[[Budget], str]


def by_package(bench: Bench, budget: Budget, method: str, calibration: Calibration = ONE_SHOT) -> Made:
    """:func:`sbc_plugin.compress`; its solvers alone, unless ``calibration`` says otherwise."""

    def work() -> nn.Module:
        model, _ = compress(
            bench.dense, bench.calibration, method=method, prune=budget.prune, quantize=budget.quantize,
            calibration=calibration, forward=bench.forward, progress=False,
        )  # fmt: skip
        return model

    return measured(work)


def as_published(bench: Bench, budget: Budget) -> Made:
    """The paper's algorithm. Hessians and order are shared by all budgets; each is charged with what they took."""
    method, shared = bench.published
    if budget.prune is not None and budget.prune.pattern == "unstructured":
        shared = shared + bench.ordered
    model, effort = measured(partial(method.compress, budget.prune, budget.quantize))
    return model, shared + effort


def by_brevitas(bench: Bench, budget: Budget) -> Made:
    """Brevitas' quantizers and GPTQ with M = I, each layer on the whole sequences that quantised ones before it send.

    Through ``sbc_mode``, whose integers are those of ``gptq_mode`` on the same inputs; ``gptq_mode`` itself stops at a
    layer's first call and sees t = 0 only. Both are tested in ``test_brevitas_contracts.py``.

    Raises:
        UnsupportedModelError: Brevitas has no layer for some of the weights.
    """
    quantize = budget.quantize
    assert quantize is not None
    run = bench.forward or default_forward(bench.dense, next(iter(bench.calibration)))

    def work() -> nn.Module:
        quantizer = weight_quantizer(f"int{quantize.bits}", quantize.granularity, "absmax")
        model, reasons = quantize_layers(bench.dense, quantizer)
        if reasons:
            raise UnsupportedModelError(f"left in floating point: {', '.join(reasons)}")
        with torch.no_grad(), sbc_mode(model, temporal=False, forward=run) as mode:
            for _ in range(mode.num_layers):
                for batch in bench.calibration:
                    mode.model(batch)
                mode.update()
        return model

    return measured(work)


def prunes(budget: Budget) -> bool:
    """Whether weights become zero."""
    return budget.prune is not None


def only_quantises(budget: Budget) -> bool:
    """Whether weights are rounded, and none becomes zero on purpose."""
    return budget.prune is None


def brevitas_has(budget: Budget) -> bool:
    """Whether Brevitas' quantizers that keep their scale have such grids: symmetric ones, the same in every layer."""
    quantize = budget.quantize
    return only_quantises(budget) and quantize is not None and quantize.symmetric and quantize.allocation == "uniform"


def everything(budget: Budget) -> bool:
    """Any budget."""
    return True


def size_of(budget: Budget) -> str:
    """How much is left, for methods that have no other settings."""
    prune, quantize = budget.prune, budget.quantize
    zeros = None if prune is None else (prune.sparsity, prune.pattern)
    return str((zeros, None if quantize is None else (quantize.bits, quantize.granularity)))


def all_settings(budget: Budget) -> str:
    """Everything that is set about the package's solvers, defaults included; options that are off are left out."""
    return _set(budget, ONE_SHOT)


def tuning(budget: Budget) -> Calibration:
    """What :func:`sbc_plugin.compress` does by itself; where it does not tune, as much as it ever does of scales."""
    return Calibration(tuning=steps_for("sbc", budget.prune, budget.quantize) or SCALE_STEPS, outputs="classes")


def tuned(bench: Bench, budget: Budget) -> Made:
    """Solved, then tuned."""
    return by_package(bench, budget, "sbc", tuning(budget))


def tuned_settings(budget: Budget) -> str:
    """As :func:`all_settings`, of :func:`tuned`."""
    return _set(budget, tuning(budget))


def _set(budget: Budget, calibration: Calibration) -> str:
    prune = budget.prune and filled(budget.prune, calibration.tuning or 0)
    chosen = [asdict(part) for part in (prune, budget.quantize, calibration) if part is not None]
    if not calibration.tuning:
        del chosen[-1]["outputs"]  # of tuning alone
    off = (
        ("rounds", 1),
        ("allocation", "uniform"),
        *((name, value) for part in chosen for name, value in part.items() if not value),
    )
    return str([{name: value for name, value in part.items() if (name, value) not in off} for part in chosen])


METHODS = {
    "magnitude": Method("magnitude", partial(by_package, method="magnitude"), prunes, size_of),
    "rtn": Method("rounding", partial(by_package, method="rtn"), only_quantises, size_of),
    "obc": Method("M = I (OBC, GPTQ)", partial(by_package, method="obc"), everything, all_settings),
    "brevitas": Method("GPTQ in Brevitas", by_brevitas, brevitas_has, size_of),
    "published": Method("SBC as published", as_published, everything, size_of),
    "sbc": Method("SBC, one shot", partial(by_package, method="sbc"), everything, all_settings),
    "tuned": Method("SBC, tuned", tuned, everything, tuned_settings),
}
