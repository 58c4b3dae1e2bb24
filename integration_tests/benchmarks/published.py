"""Spiking Brain Compression as its authors published it, from the same parts: the baseline that ours has to beat.

Hessians of the membrane from one pass over the dense network; LAMP with exponent 2; greedy OBS that takes
``ceil(columns / 256)`` weights of a row at once; the exact refit on the mask; then GPTQ on a grid whose scale is the
largest weight of the row. Nothing is sequential, no scale is searched, no code is improved afterwards.
Source: arXiv 2506.03996, and docs/theory.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sbc_plugin.calibration.batches import peek
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import gather
from sbc_plugin.compression.layer import layer_hessian, positions_of, unfit_pattern
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.obs import elimination, obs_mask, pool
from sbc_plugin.core.pruning.patterns import parse_pattern, pattern_zeros
from sbc_plugin.core.pruning.problem import pose
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.core.quantization.gptq import gptq
from sbc_plugin.core.quantization.grids import make_grid
from sbc_plugin.layers import Forward, SpikingLayer, library_of
from sbc_plugin.settings import Calibration, Prune, Quantize

SETTINGS = Calibration(order="one-shot", temporal=True, damping=0.01)


@dataclass
class Published:
    """The method on one dense network: Hessians are gathered once, and one elimination serves every sparsity.

    Attributes:
        dense: the network; it is not changed.
        data: batches to calibrate with.
        forward: runs one whole sequence; None = the library's default.
        change: what an ablation makes of each layer, such as another kernel.
        damping: fraction of mean diag H.
    """

    dense: nn.Module
    data: Iterable[Any]
    forward: Forward | None = None
    change: Callable[[SpikingLayer], SpikingLayer] = lambda layer: layer
    damping: float = SETTINGS.damping
    hessians: dict[str, Tensor] = field(default_factory=dict, init=False)
    orders: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.library = library_of(self.dense)
        self.first, self.data = peek(self.data)

    def calibrate(self) -> None:
        """Gather the Hessians."""
        layers = self.layers_of(self.dense)
        found = gather(Runner.of(self.dense, self.first, self.forward), layers, self.data, SETTINGS)
        self.hessians = {name: statistics.accumulator.hessian() for name, statistics in found.items()}

    def order(self) -> None:
        """Eliminate every weight of every layer, in the order in which OBS would give it up."""
        for layer in self.layers_of(self.dense):
            self.orders[layer.name] = elimination(pose(*self.scaled(layer), 0), None)

    def compress(
        self, prune: Prune | None, quantize: Quantize | None = None, zeros: dict[str, int] | None = None
    ) -> nn.Module:
        """A compressed copy; :meth:`calibrate` first, and :meth:`order` for unstructured sparsity.

        Args:
            prune: how many weights go.
            quantize: the grid.
            zeros: of each layer, instead of :meth:`budget`.
        """
        model = self.library.copy_model(self.dense)
        layers = self.layers_of(model)
        if zeros is None:
            zeros = {} if prune is None else self.budget(layers, prune)
        for layer in layers:
            weight, hessian = layer.weight(), self.hessian_of(layer)
            mask = weight != 0
            if prune is not None and layer.name in zeros:
                mask = self.mask(layer, zeros[layer.name], prune.pattern)
                weight = refit(weight, mask, hessian)
            if quantize is not None:
                parts = [part.form.columns for part in layer.parts]
                chosen = {"granularity": quantize.granularity, "symmetric": quantize.symmetric}
                grid = make_grid(weight, quantize.bits, **chosen, scale="absmax", mask=mask, parts=parts)
                weight = gptq(weight, hessian, grid, mask)
            layer.write(weight)
        return model

    def budget(self, layers: list[SpikingLayer], prune: Prune) -> dict[str, int]:
        """How many zeros each layer shall have; layers that an N:M pattern does not fit have none."""
        fitting = [layer for layer in layers if not unfit_pattern(layer, prune.pattern)]
        pattern = parse_pattern(prune.pattern)
        if pattern.kind == "n:m":
            return {layer.name: pattern_zeros(pattern, layer.rows, layer.columns, 0) for layer in fitting}
        return allocate_zeros({layer.name: layer.weight() for layer in fitting}, prune.sparsity)

    def mask(self, layer: SpikingLayer, zeros: int, pattern: str) -> Tensor:
        """True = kept, (rows, columns)."""
        if pattern != "unstructured":
            return obs_mask(*self.scaled(layer), zeros, pattern=pattern, positions=positions_of(layer))
        problem = pose(*self.scaled(layer), zeros)
        return problem.mask(pool(*self.orders[layer.name], problem, problem.zeros))

    def layers_of(self, model: nn.Module) -> list[SpikingLayer]:
        """The layers of the dense network or of a copy."""
        layers, _ = self.library.find_layers(model, self.first, self.forward, SETTINGS.temporal)
        return [self.change(layer) for layer in layers]

    def scaled(self, layer: SpikingLayer) -> tuple[Tensor, LayerHessian]:
        """Weight, with each row's gain up to its neuron (BatchNorm), and Hessian."""
        hessian = self.hessian_of(layer)
        return layer.weight().to(hessian.matrix) * layer.gain.to(hessian.matrix)[:, None], hessian

    def hessian_of(self, layer: SpikingLayer) -> LayerHessian:
        """The layer's Hessian as solvers take it."""
        return layer_hessian(layer, self.hessians[layer.name], self.damping)
