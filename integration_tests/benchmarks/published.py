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
from sbc_plugin.compression.layer import positions_of, unfit_pattern
from sbc_plugin.core.allocation.lamp import allocate_zeros
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
        found = gather(Runner(self.dense, self.library, self.forward), layers, self.data, SETTINGS)
        self.hessians = {name: statistics.accumulator.hessian() for name, statistics in found.items()}

    def order(self) -> None:
        """Eliminate every weight of every layer, in the order in which OBS would give it up."""
        for layer in self.layers_of(self.dense):
            problem = pose(*self.scaled(layer), 0, damping=self.damping, groups=self.groups(layer))
            self.orders[layer.name] = elimination(problem, None, self.damping)

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
            weight, hessian, groups = layer.weight(), self.hessians[layer.name], self.groups(layer)
            mask = weight != 0
            if prune is not None and layer.name in zeros:
                mask = self.mask(layer, zeros[layer.name], prune.pattern)
                weight = refit(weight, mask, hessian, damping=self.damping, groups=groups)
            if quantize is not None:
                parts = [part.form.columns for part in layer.parts]
                chosen = {"granularity": quantize.granularity, "symmetric": quantize.symmetric}
                grid = make_grid(weight, quantize.bits, **chosen, scale="absmax", mask=mask, parts=parts)
                weight = gptq(weight, hessian, grid, mask, damping=self.damping, groups=groups)
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
        settings: dict[str, Any] = {"damping": self.damping, "groups": self.groups(layer)}
        if pattern != "unstructured":
            return obs_mask(*self.scaled(layer), zeros, pattern=pattern, positions=positions_of(layer), **settings)
        problem = pose(*self.scaled(layer), zeros, **settings)
        return problem.mask(pool(*self.orders[layer.name], problem, problem.zeros))

    def layers_of(self, model: nn.Module) -> list[SpikingLayer]:
        """The layers of the dense network or of a copy."""
        layers, _ = self.library.find_layers(model, self.first, self.forward, SETTINGS.temporal)
        return [self.change(layer) for layer in layers]

    def scaled(self, layer: SpikingLayer) -> tuple[Tensor, Tensor]:
        """Weight, with each row's gain up to its neuron (BatchNorm), and Hessian."""
        hessian = self.hessians[layer.name]
        return layer.weight().to(hessian) * layer.gain.to(hessian)[:, None], hessian

    def groups(self, layer: SpikingLayer) -> Tensor | None:
        """The Hessian of each row, where there are several."""
        return layer.groups if self.hessians[layer.name].dim() == 3 else None
