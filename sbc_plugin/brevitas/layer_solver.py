"""The solution of one layer of ``sbc_mode``: the grids of its quantisers, masks, and the write-back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sbc_plugin.brevitas.cells import parts_of
from sbc_plugin.brevitas.gptq_options import GptqOptions
from sbc_plugin.brevitas.grids import (
    BinaryGrid,
    Columns,
    read_grid,
    rounded_to_nearest,
    rule_of,
    set_scale,
    solve,
    solve_moving,
    write,
)
from sbc_plugin.brevitas.held_scales import Held, hold
from sbc_plugin.brevitas.own_rounding import OwnRounding, SideBySide, is_slow
from sbc_plugin.compression import layer as solving
from sbc_plugin.core.hessian import LayerHessian
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.layers import Part, SpikingLayer

MOST_VALUES = 2**27  # that a quantizer may round to find scales that suit a layer: seconds


@dataclass
class LayerSolver:
    """Solves layers on the grids that their quantizers have.

    Attributes:
        modules: Brevitas' layers with a quantised weight, by name.
        options: the keywords of ``gptq_mode``.
        damping: fraction of mean diag H.
        order: of the columns, "descending" or "given".
        mask: name -> mask of the weight's shape, True = kept.
        keep_zeros: weights that are zero stay zero.
        grids: of the layers, by name; known after :meth:`read`.
        held: the quantizers of layers, by name, that were made to hold their scale.
        written: the names of the layers that have their new weight.
        disabled: quantizers of weights and biases that are off until their layer is solved.
    """

    modules: Mapping[str, Any]
    options: GptqOptions
    damping: float
    order: str
    mask: Mapping[str, Tensor]
    keep_zeros: bool
    grids: dict[str, Grid | OwnRounding] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    disabled: list[Any] = field(default_factory=list)

    def read(self) -> None:
        """Make every quantizer hold its scale, and read the grids; if that fails, the layers are as they were.

        Raises:
            GridMovedError: a quantizer that has no form which holds its scale.
            UnsupportedModelError: a weight that is computed, or a quantizer that needs the input's.
            SettingsError: a mask that does not fit.
        """
        try:
            for name, module in self.modules.items():
                with in_layer(name):
                    if "weight" not in module._parameters:
                        raise UnsupportedModelError(
                            "its weight is computed by a parametrisation or a pruning hook; make it permanent first, "
                            "and use keep_zeros=True to keep what was pruned"
                        )
                    if (held := hold(module)) is not None:
                        self.held[name] = held
                    self.grids[name] = read_grid(module)
            self._check_masks()
        except BaseException:
            self.close()
            raise

    def disable(self) -> None:
        """Let the layers compute with their dense weights until they are solved.

        A quantised bias takes its scale from the weight's, which a weight that is not quantised lacks.
        """
        quantizers = [q for module in self.modules.values() for q in (module.weight_quant, module.bias_quant)]
        self.disabled = [quantizer for quantizer in quantizers if quantizer.is_quant_enabled]
        for quantizer in self.disabled:
            quantizer.disable_quant = True

    def close(self) -> None:
        """Turn all quantizers on again; those of layers that have no new weight are what they came with."""
        for quantizer in self.disabled:
            quantizer.disable_quant = False
        for name in self.held.keys() - self.written:
            self.held.pop(name).undo()
        for name, held in self.held.items():
            held.quantizer.train(self.modules[name].training)

    def parts(self, layer: SpikingLayer) -> list[Part]:
        """The parts of a layer that are quantised, as Brevitas' layers hold them."""
        return [part for part in parts_of(layer) if part.name in self.modules]

    def solve(self, layer: SpikingLayer, hessian: Tensor) -> Solution:
        """Solve the quantised parts of a layer, and write their codes.

        Raises:
            SingularHessianError: the damped Hessian is not positive definite.
            GridMovedError: a quantizer sees other integers than were written; its layer has its old weight again.
            SettingsError: parts that are solved together have quantizers of different bits.
        """
        # 1. The quantised parts alone, with their columns of the Hessian.
        parts, layer = self.parts(layer), replace(layer, parts=tuple(parts_of(layer)))
        if len(parts) < len(layer.parts):
            columns = _columns_of(parts, layer).to(hessian.device)
            hessian, layer = hessian[..., columns, :][..., columns], replace(layer, parts=tuple(parts))
        # 2. Their solution, on the grids that their quantizers have or with scales chosen anew for the masked weight.
        if self.keep_zeros or any(part.name in self.mask for part in parts):
            solution = self._jointly(layer, hessian)
        else:
            known = solving.layer_hessian(layer, hessian, self.damping)
            solution = self._best_of_held(layer, known, self._on_grids(layer, known, layer.weight(), None))
        # 3. Each quantizer takes its block.
        blocks = solution.weight.split([part.form.columns for part in parts], 1)
        for part, block in zip(parts, blocks, strict=True):
            module = self.modules[part.name]
            self._enable(module)
            dense = module.weight.detach().clone()
            with in_layer(part.name):
                write(module, block, self.grids[part.name])
            self.options.keep_original(module, dense)
            self.written.add(part.name)
        return solution

    def _enable(self, module: Any) -> None:
        """The layer computes with its quantised weight from now on, and with a bias in units of it if it had one."""
        for quantizer in (module.weight_quant, module.bias_quant):
            if quantizer in self.disabled:
                quantizer.disable_quant = False

    def _jointly(self, layer: SpikingLayer, hessian: Tensor) -> Solution:
        """Kept weights move to their optimum on the mask, and scales follow them, as in ``compress``."""
        # 1. The kept weights move.
        mask = torch.cat([self._mask_of(part) for part in layer.parts], 1)
        known = solving.layer_hessian(layer, hessian, self.damping)
        weight = refit(layer.weight(), mask, known)
        # 2. Quantizers that have no rule in common for their scales keep them.
        rules = {rule_of(self.modules[part.name]) for part in layer.parts}
        rule = rules.pop()
        if rules or rule is None:
            return self._on_grids(layer, known, weight, mask)
        # 3. The others get the scales that `compress` would choose.
        settings = solving.LayerSettings("sbc", None, rule, self.damping)
        solution = solving.solve(layer, weight, hessian, None, settings)
        assert solution.grid is not None
        scale = solution.grid.of_columns(layer.columns)[0].expand(weight.shape)
        for part, block in zip(layer.parts, scale.split([p.form.columns for p in layer.parts], 1), strict=True):
            module = self.modules[part.name]
            self._enable(module)
            self.grids[part.name] = set_scale(module, block, rule)
        return solution

    @property
    def _columns(self) -> Columns:
        return Columns(self.order, self.options.num_blocks)

    def _on_grids(self, layer: SpikingLayer, hessian: LayerHessian, weight: Tensor, mask: Tensor | None) -> Solution:
        grid = _side_by_side(layer, [self.grids[part.name] for part in layer.parts])
        return solve(weight, hessian, grid, mask, self._columns)

    def _best_of_held(self, layer: SpikingLayer, hessian: LayerHessian, solution: Solution) -> Solution:
        """The solution, or what ``gptq_mode`` comes to with a quantizer that follows the weight, if that has less loss.

        That is the weight rounded to nearest, or a solution whose scales moved in the course. The latter rounds the
        whole weight for each column, so it is not tried for large weights, unless the first solution took as long.
        """
        name = layer.parts[0].name
        held, module = self.held.get(name), self.modules[name]
        if held is None or len(layer.parts) > 1:
            return solution
        own, nearest = self.grids[name], rounded_to_nearest(module, layer.weight(), hessian, self.grids[name])
        if nearest.loss < solution.loss:
            solution = nearest
            if isinstance(own, OwnRounding):
                own.wanted.copy_(layer.weight())
        if module.weight.numel() * layer.columns > MOST_VALUES and not is_slow(self.grids[name]):
            return solution
        constant = Held.of(held.quantizer)
        other, grid = solve_moving(module, held, layer.weight(), hessian, self._columns)
        if other.loss >= solution.loss:
            constant.undo()
            return solution
        self.grids[name] = grid
        return other

    def _mask_of(self, part: Part) -> Tensor:
        weight = part.tensor.detach()
        kept = self.mask.get(part.name, torch.ones_like(weight, dtype=torch.bool)).to(weight.device, torch.bool)
        return part.form.as_matrix(kept & (weight != 0) if self.keep_zeros else kept)

    def _check_masks(self) -> None:
        for name, mask in self.mask.items():
            if name not in self.modules:
                known = ", ".join(map(repr, self.modules))
                raise SettingsError(f"mask for {name!r}, which is no quantised layer; they are {known}")
            if mask.shape != self.modules[name].weight.shape:
                shapes = tuple(mask.shape), tuple(self.modules[name].weight.shape)
                raise SettingsError(f"layer {name!r}: mask of shape {shapes[0]}, weight of shape {shapes[1]}")
        if self.mask or self.keep_zeros:
            for name, grid in self.grids.items():
                if isinstance(grid, BinaryGrid) and (self.keep_zeros or name in self.mask):
                    raise SettingsError(
                        f"layer {name!r}: binary weights are never zero; use 'ternary', or neither mask nor keep_zeros"
                    )


def _columns_of(parts: list[Part], layer: SpikingLayer) -> Tensor:
    """The columns of some parts among those of the whole layer."""
    widths = torch.tensor([part.form.columns for part in layer.parts], device="cpu")
    chosen = torch.tensor([part in parts for part in layer.parts], device="cpu")
    return chosen.repeat_interleave(widths).nonzero()[:, 0]


def _side_by_side(layer: SpikingLayer, grids: list[Grid | OwnRounding]) -> Grid | OwnRounding | SideBySide:
    first = grids[0]
    if len(grids) == 1:
        return first
    own = [grid for grid in grids if isinstance(grid, OwnRounding)]
    if len(own) == len(grids):
        return SideBySide(own)
    known = [grid for grid in grids if isinstance(grid, Grid)]
    kinds = {(type(grid), grid.code_range, grid.symmetric) for grid in known}
    if own or len(kinds) > 1:
        names = ", ".join(repr(part.name) for part in layer.parts)
        raise SettingsError(f"{names} feed one neuron and are solved together; give them quantizers of the same bits")
    scale, zero_point = torch.cat([grid.scale for grid in known], 1), torch.cat([grid.zero_point for grid in known], 1)
    return type(known[0])(scale, zero_point, known[0].bits, known[0].symmetric, narrow=known[0].narrow)
