"""What an ablation makes of a network: the package with other data or settings, or the published method changed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from integration_tests.benchmarks import surrogate
from integration_tests.benchmarks.published import SETTINGS, Published
from integration_tests.benchmarks.subjects import Few, Parts, Subject
from sbc_plugin import compress
from sbc_plugin.compression.layer import saliency
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import ONE_SHOT
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration, Prune

SPARSITY = {"digits": 0.95, "conv-events": 0.9}  # network -> a sparsity where methods differ
TESTED = 1000  # sequences


@dataclass
class Ground:
    """A dense network with its data, for all variants of a seed.

    Attributes:
        subject: which.
        seed: of the network, and of what variants draw.
    """

    subject: Subject
    seed: int

    @cached_property
    def dense(self) -> nn.Module:
        """The network."""
        return self.subject.trained(self.seed)

    @cached_property
    def parts(self) -> Parts:
        """Its data."""
        return Few(self.subject.parts(self.seed), TESTED)

    @property
    def prune(self) -> Prune:
        """The budget of every variant."""
        return Prune(SPARSITY[self.subject.name], silent_first=False, rounds=1)

    def compressed(
        self,
        method: str = "sbc",
        events: Events | None = None,
        calibration: Calibration | None = None,
        **pruning: Any,
    ) -> nn.Module:
        """By the package, with other calibration data or settings, ``pruning`` those of the budget's ``Prune``."""
        batches = (self.parts.calibration if events is None else events).batches(self.subject.batch)
        model, _ = compress(
            self.dense,
            batches,
            method=method,
            prune=replace(self.prune, **pruning),
            calibration=calibration or ONE_SHOT,
            forward=self.subject.case.forward,
            progress=False,
        )
        return model

    def published(self, change: Callable[[SpikingLayer], SpikingLayer] = lambda layer: layer) -> Published:
        """The published method, calibrated and ordered, with layers changed."""
        batches = self.parts.calibration.batches(self.subject.batch)
        method = Published(self.dense, batches, self.subject.case.forward, change)
        method.calibrate()
        method.order()
        return method

    @cached_property
    def unchanged(self) -> Published:
        """The published method as it is."""
        return self.published()


def fewer(ground: Ground, per_class: float, method: str) -> nn.Module:
    """Calibrated on so many sequences for each class, at least one in all."""
    classes = int(ground.parts.test.labels.max()) + 1
    count = max(1, round(per_class * classes))
    return ground.compressed(method, ground.parts.calibration.subset(slice(0, count)))


def elsewhere(ground: Ground, change: Callable[[Events, torch.Generator], Events], method: str) -> nn.Module:
    """Calibrated on changed data."""
    generator = torch.Generator().manual_seed(ground.seed)
    return ground.compressed(method, change(ground.parts.calibration, generator))


def with_tau(factor: float, layer: SpikingLayer) -> SpikingLayer:
    """The layer with ``factor`` times each stage's time constant: decay 1 - 1 / tau becomes 1 - 1 / (factor tau)."""
    decays = tuple((1 - (1 - decay) / factor).clamp_min(0) for decay in layer.kernel.decays)
    return replace(layer, kernel=replace(layer.kernel, decays=decays))


def with_kernel(kernel: Kernel, layer: SpikingLayer) -> SpikingLayer:
    """The layer with another impulse response."""
    return replace(layer, kernel=kernel)


def with_synapse(layer: SpikingLayer) -> SpikingLayer:
    """The layer as if a synapse with the membrane's own time constant stood before it."""
    return replace(layer, kernel=layer.kernel.then(layer.kernel))


def changed(ground: Ground, change: Callable[[SpikingLayer], SpikingLayer]) -> nn.Module:
    """The published method with its layers changed."""
    return ground.published(change).compress(ground.prune)


def with_surrogate(ground: Ground, width: float | None) -> nn.Module:
    """The published method with a surrogate derivative of this width, a fraction of the threshold; None = constant."""
    if width is None:
        return ground.unchanged.compress(ground.prune)
    batches = ground.parts.calibration.batches(ground.subject.batch)
    method = Published(ground.dense, batches, ground.subject.case.forward, surrogate.by_row)
    surrogate.calibrate(method, width)
    method.order()
    return method.compress(ground.prune)


def allocated(ground: Ground, method: str, exponent: float = 2.0) -> nn.Module:
    """The published method with the budget dealt in another way.

    Args:
        ground: the network and its data.
        method: of ``allocate_zeros``.
        exponent: of LAMP's scores, which are 2 in its source.
    """
    published = ground.unchanged
    layers = published.layers_of(ground.dense)
    weights = {layer.name: layer.weight() for layer in layers}
    saliencies = None
    if method == "loss":
        hessians = published.hessians
        saliencies = {
            layer.name: saliency(layer, layer.weight(), hessians[layer.name], SETTINGS.damping) for layer in layers
        }
    elif method == "lamp":  # LAMP's scores are those of losses, taken of powers of the weights
        sizes = {name: weight.double().abs() for name, weight in weights.items()}
        method, saliencies = "loss", {name: (size / size.max()).pow(exponent) for name, size in sizes.items()}
    zeros = allocate_zeros(weights, ground.prune.sparsity, method=method, saliencies=saliencies)
    return published.compress(ground.prune, zeros=zeros)


def shorter(ground: Ground, steps: int) -> nn.Module:
    """Calibrated on the first steps of each sequence."""
    calibration = ground.parts.calibration
    return ground.compressed(events=Events(calibration.x[:steps], calibration.labels))
