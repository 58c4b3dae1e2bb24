"""``sbc_mode``: used like Brevitas' ``gptq_mode``, but layers see whole sequences, filtered by the membrane."""

from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.grids import BinaryGrid, check_fixed, read_grid, rule_of, set_scale, solve, write
from sbc_plugin.brevitas.layers import is_quantised, is_rounded
from sbc_plugin.brevitas.sequences import Recorder
from sbc_plugin.compression import layer as solving
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.core.quantization.grids import Grid
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import CalibrationError, SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.layers import Forward, Part, SpikingLayer
from sbc_plugin.settings import Calibration


class sbc_mode:  # noqa: N801, as Brevitas names its modes
    """GPTQ with the spike-train Hessian on the quantised layers of a Brevitas model, one ``update()`` a layer.

    ::

        with torch.no_grad(), sbc_mode(model) as sbc:
            for _ in range(sbc.num_layers):
                for x in loader:
                    sbc.model(x)
                sbc.update()

    Minimises the Van Rossum distance by ``H = 2 (MX)^T (MX) / count`` (docs/theory.md, equation 2), on the grid that
    each layer's quantizer has. A model without spiking neurons gets M = I, so loops written for images work as they
    are. Inside the block ``model(x)`` runs in eval mode and without gradients, and a layer whose turn has not come
    computes with its dense weight. How calls become sequences:

    - ``model(x)``: one whole sequence (T, B, ...); a step model is driven over it, outputs stacked.
    - ``model(x_t, state)``: one step; ``state=None`` begins a sequence, another state goes on with it.
    - with ``forward``: ``model(batch)`` is ``forward(model, batch)``, one whole sequence.

    Args:
        model: with Brevitas layers whose grids stay, see :func:`~sbc_plugin.brevitas.quantizers.weight_quantizer`.
        damping: fraction of mean diag H added to the diagonal.
        order: "sequential" (each layer on what the already quantised ones before it send) or "one-shot" (all Hessians
            from the first pass, on the dense network; later passes are not needed).
        act_order: columns with the largest H_jj first; False takes them from left to right. Layers with a mask are
            solved as ``compress`` does it, always with the largest first.
        mask: name -> mask of the weight's shape, True = kept; other weights become exactly 0. The kept ones move to
            their optimum on the mask first, and scales are chosen for what they are then: the integers and scales of
            ``compress``. Quantizers that are not of this package, and groups in convolutions, keep their scales.
        keep_zeros: weights that are zero stay zero, in the same way.
        forward: ``forward(model, batch)`` runs one whole sequence.
        temporal: False is the baseline M = I.
        device: where Hessians are kept and solved; None = where the weights are.
        dtype: that is solved in. torch.float32, as in Brevitas, is faster; a code that is nearly a tie may then differ.

    Attributes:
        model: the model.
        num_layers: updates needed: the quantised layers. Layers that feed one neuron through a feedback loop are
            solved together in one update, so the last updates may find nothing left to do.
        solutions: name of a solved layer -> its solution.
        skipped: quantised layers that are only rounded, and approximations: name -> reason; known after the first call.

    Raises:
        SettingsError: a setting out of range, or a mask that does not fit.
        UnsupportedModelError: no quantised layer, or a quantizer that makes no integers.
        GridMovedError: a quantizer that derives its scale anew at every call.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.01,
        order: str = "sequential",
        act_order: bool = True,
        mask: dict[str, Tensor] | None = None,
        keep_zeros: bool = False,
        forward: Forward | None = None,
        temporal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise SettingsError(f"dtype={dtype} cannot hold a Hessian; use torch.float64 or torch.float32")
        self.calibration = Calibration(order=order, temporal=temporal, damping=damping, device=device)
        self.model, self.forward, self.act_order, self.dtype = model, forward, act_order, dtype
        self.mask, self.keep_zeros = dict(mask or {}), keep_zeros
        self.num_layers = 0
        self.solutions: dict[str, Solution] = {}
        self.skipped: dict[str, str] = {}
        self._waiting: list[SpikingLayer] | None = None
        self._entered = self._running = False

    def __enter__(self) -> "sbc_mode":
        if self._entered:
            raise SettingsError("this sbc_mode was entered before; make a new one")
        self._modules: dict[str, Any] = {
            name: module
            for name, module in self.model.named_modules()
            if is_quantised(module) and module.weight_quant.is_quant_enabled
        }
        if not self._modules:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no Brevitas layer with a quantised weight; call quantize_layers first"
            )
        self._grids = {name: self._checked_grid(name) for name in self._modules}
        self._check_masks()
        self._recorder = Recorder(self.model, self.calibration, self.forward)
        self.num_layers = len(self._modules)
        self._entered, self._original = True, self.model.forward
        self._own_forward = "forward" in vars(self.model)

        @wraps(self._original)  # so that a step model is still known by its signature
        def recorded(*args: Any, **kwargs: Any) -> Any:
            return self._call(args, kwargs)

        self.model.forward = recorded
        # A quantised bias takes its scale from the weight's, which a weight that is not quantised lacks.
        quantizers = [q for m in self._modules.values() for q in (m.weight_quant, m.bias_quant) if q.is_quant_enabled]
        self._disabled = [(quantizer, quantizer.disable_quant) for quantizer in quantizers]
        for quantizer in quantizers:
            quantizer.disable_quant = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for quantizer, disabled in self._disabled:
            quantizer.disable_quant = disabled
        if self._own_forward:
            self.model.forward = self._original
        else:
            del self.model.forward
        self._recorder.listen([])

    def update(self) -> None:
        """Quantise the next layer with what the calls since the last update have shown.

        Raises:
            CalibrationError: no data, silent data, or sequences of one step.
            SingularHessianError: the damped Hessian is not positive definite.
            GridMovedError: the quantizer sees other integers than were written; the layer has its old weight again.
        """
        if self._waiting is None:
            raise CalibrationError("update() before any data; call sbc.model(x) on each calibration batch first")
        self._recorder.finish()
        if not self._waiting:
            return
        layer = self._waiting[0]
        statistics = self._recorder.statistics[layer.name]
        with in_layer(layer.name):
            if statistics.accumulator.count == 0:
                raise CalibrationError("no data since the last update(); call sbc.model(x) on each batch before it")
            hessian = statistics.accumulator.hessian().to(self.dtype)
            solving.check_active(hessian)
            self.solutions[layer.name] = self._quantise(layer, hessian)
        del self._waiting[0], self._recorder.statistics[layer.name]
        self._recorder.listen(self._waiting[:1] if self.calibration.order == "sequential" else [])

    def _checked_grid(self, name: str) -> Grid:
        module = self._modules[name]
        with in_layer(name):
            if "weight" not in module._parameters:
                raise UnsupportedModelError(
                    "its weight is computed by a parametrisation or a pruning hook; make it permanent first, and use "
                    "keep_zeros=True to keep what was pruned"
                )
            grid = read_grid(module)
            check_fixed(module)
            return grid

    def _check_masks(self) -> None:
        for name, mask in self.mask.items():
            if name not in self._modules:
                known = ", ".join(map(repr, self._modules))
                raise SettingsError(f"mask for {name!r}, which is no quantised layer; they are {known}")
            if mask.shape != self._modules[name].weight.shape:
                shapes = tuple(mask.shape), tuple(self._modules[name].weight.shape)
                raise SettingsError(f"layer {name!r}: mask of shape {shapes[0]}, weight of shape {shapes[1]}")
        if self.mask or self.keep_zeros:
            for name, grid in self._grids.items():
                if isinstance(grid, BinaryGrid) and (self.keep_zeros or name in self.mask):
                    raise SettingsError(
                        f"layer {name!r}: binary weights are never zero; use 'ternary', or neither mask nor keep_zeros"
                    )

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:
            return self._original(*args, **kwargs)
        self._running = True
        try:
            if self._waiting is None:
                self._find(args, kwargs)
            # A model that is one single layer is called as a whole, so that its own hooks see the call.
            run = self.model if self.model in self._modules.values() else self._original
            return self._recorder.call(args, kwargs, run)
        finally:
            self._running = False

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layers, reasons = self._recorder.find(args, kwargs)
        chosen = [layer for layer in layers if self._parts(layer)]
        reached = {part.name for layer in chosen for part in layer.parts}
        self.skipped = {name: reasons.get(name, "never called") for name in self._modules if name not in reached}
        self.skipped |= {
            name: f"{type(module).__name__} has no matrix form here; its weight is rounded by its own quantizer"
            for name, module in self.model.named_modules()
            if name not in self._modules and is_rounded(module)
        }
        self.skipped |= {layer.name: layer.note for layer in chosen if layer.note}
        if not chosen:
            raise UnsupportedModelError(f"no quantised layer was reached: {self.skipped}")
        self._recorder.listen(chosen[:1] if self.calibration.order == "sequential" else chosen)
        self._waiting = chosen

    def _parts(self, layer: SpikingLayer) -> list[Part]:
        return [part for part in layer.parts if part.name in self._modules]

    def _quantise(self, layer: SpikingLayer, hessian: Tensor) -> Solution:
        """Solve the quantised parts of a layer, and write their codes."""
        # 1. The quantised parts alone, with their columns of the Hessian.
        parts = self._parts(layer)
        if len(parts) < len(layer.parts):
            columns = _columns_of(parts, layer).to(hessian.device)
            hessian, layer = hessian[..., columns, :][..., columns], replace(layer, parts=tuple(parts))
        # 2. Their solution, on the grids that their quantizers have or with scales chosen anew for the masked weight.
        if self.keep_zeros or any(part.name in self.mask for part in parts):
            solution = self._jointly(layer, hessian)
        else:
            known = solving.layer_hessian(layer, hessian, self.calibration.damping)
            solution = solve(layer.weight(), known, self._grid_of(layer), None, order=self._order)
        # 3. Each quantizer takes its block.
        blocks = solution.weight.split([part.form.columns for part in parts], 1)
        for part, block in zip(parts, blocks, strict=True):
            module = self._modules[part.name]
            module.weight_quant.disable_quant = False
            with in_layer(part.name):
                write(module, block, self._grids[part.name])
        return solution

    def _jointly(self, layer: SpikingLayer, hessian: Tensor) -> Solution:
        """Kept weights move to their optimum on the mask, and scales follow them, as in ``compress``."""
        # 1. The kept weights move.
        mask = torch.cat([self._mask_of(part) for part in layer.parts], 1)
        known = solving.layer_hessian(layer, hessian, self.calibration.damping)
        weight = refit(layer.weight(), mask, known)
        # 2. Quantizers that have no rule in common for their scales keep them.
        rules = {rule_of(self._modules[part.name]) for part in layer.parts}
        rule = rules.pop()
        if rules or rule is None:
            return solve(weight, known, self._grid_of(layer), mask, order=self._order)
        # 3. The others get the scales that `compress` would choose.
        recipe = solving.Recipe("sbc", None, rule, self.calibration.damping)
        solution = solving.solve(layer, weight, hessian, None, recipe)
        assert solution.grid is not None
        scale = solution.grid.of_columns(layer.columns)[0].expand(weight.shape)
        for part, block in zip(layer.parts, scale.split([p.form.columns for p in layer.parts], 1), strict=True):
            module = self._modules[part.name]
            module.weight_quant.disable_quant = False
            self._grids[part.name] = set_scale(module, block, rule)
        return solution

    @property
    def _order(self) -> str:
        return "descending" if self.act_order else "given"

    def _grid_of(self, layer: SpikingLayer) -> Grid:
        return _side_by_side(layer, [self._grids[part.name] for part in layer.parts])

    def _mask_of(self, part: Part) -> Tensor:
        weight = part.tensor.detach()
        kept = self.mask.get(part.name, torch.ones_like(weight, dtype=torch.bool)).to(weight.device, torch.bool)
        return part.form.as_matrix(kept & (weight != 0) if self.keep_zeros else kept)


def _columns_of(parts: list[Part], layer: SpikingLayer) -> Tensor:
    """The columns of some parts among those of the whole layer."""
    widths = torch.tensor([part.form.columns for part in layer.parts], device="cpu")
    chosen = torch.tensor([part in parts for part in layer.parts], device="cpu")
    return chosen.repeat_interleave(widths).nonzero()[:, 0]


def _side_by_side(layer: SpikingLayer, grids: list[Grid]) -> Grid:
    first = grids[0]
    if len(grids) == 1:
        return first
    if any((type(g), g.code_range, g.symmetric) != (type(first), first.code_range, first.symmetric) for g in grids):
        names = ", ".join(repr(part.name) for part in layer.parts)
        raise SettingsError(f"{names} feed one neuron and are solved together; give them quantizers of the same bits")
    scale = torch.cat([grid.scale for grid in grids], 1)
    return type(first)(
        scale, torch.cat([g.zero_point for g in grids], 1), first.bits, first.symmetric, narrow=first.narrow
    )
