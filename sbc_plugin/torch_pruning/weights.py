"""``WeightPruner``: single weights, unstructured, N:M or in blocks, pruned in steps, with masks for fine-tuning."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import DEFAULT, gather
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.calibration.shares import kept, peek
from sbc_plugin.calibration.sums import check_same
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.layer import LayerSettings, solve, unfit_pattern
from sbc_plugin.core.allocation.lamp import allocate_zeros
from sbc_plugin.core.pruning.patterns import Pattern, parse_pattern, pattern_zeros
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import CalibrationError, SettingsError, in_layer
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import Calibration, Prune
from sbc_plugin.torch_pruning.statistics import find_readers

METHODS = ("sbc", "obc", "magnitude")


class WeightPruner:
    """Sets weights to zero, step by step, and keeps them there.

    Prune, and fine-tune under the masks::

        pruner = get_pruner("sbc", model, x, calibration_data=loader, pattern="2:4")
        pruner.step()
        pruner.hook(optimizer)
        train(model, optimizer)

    Args:
        model: changed in place.
        calibration_data: iterable of batches, read again at each step.
        method: "sbc", "obc" (M = I) or "magnitude".
        pattern: "unstructured", "N:M" or "block:K".
        pruning_ratio: zeros after the last step, as a fraction of all weights that are pruned. N:M fixes it.
        iterative_steps: how many calls of :meth:`step` get there; N:M comes down from M by whole weights.
        iterative_pruning_ratio_scheduler: (ratio, steps) -> the ratio of each step, starting with step 0.
        ignored_layers: modules, or classes of modules, that keep all their weights.
        allocation: how layers share the zeros: "lamp" or "uniform".
        solver: as in :class:`sbc_plugin.Prune`.
        forward: ``forward(model, batch)`` runs one whole batch.
        calibration: temporal, damping, max_samples and device count.

    Attributes:
        masks: "module.attribute" -> True where a weight is kept, shape of the weight; empty before the first step.
        skipped: name -> reason, for weights that the last step left alone.

    Raises:
        SettingsError: an unknown method or pattern, or a ratio or number of steps out of range.
        CalibrationError: no calibration data.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration_data: Iterable[Any] | None,
        *,
        method: str = "sbc",
        pattern: str = "unstructured",
        pruning_ratio: float = 0.5,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Callable[[float, int], list[float]] | None = None,
        ignored_layers: Iterable[Any] | None = None,
        allocation: str = "lamp",
        solver: str = "auto",
        forward: Forward | None = None,
        calibration: Calibration = DEFAULT,
    ) -> None:
        if method not in METHODS:
            raise SettingsError(f"method={method!r} prunes no single weights; use one of {', '.join(METHODS)}")
        if calibration_data is None:
            raise CalibrationError(f"pattern={pattern!r} needs calibration_data: an iterable of batches (T, B, ...)")
        if iterative_steps < 1:
            raise SettingsError(f"iterative_steps={iterative_steps} must be at least 1")
        self.pattern: Pattern = parse_pattern(pattern)
        if self.pattern.kind == "n:m":
            pruning_ratio = 1 - self.pattern.kept / self.pattern.size
        self.settings = Prune(pruning_ratio, pattern=pattern, solver=solver, allocation=allocation)
        if allocation == "loss":
            raise SettingsError('allocation="loss" is not available in steps; use "lamp" or "uniform"')
        self.model, self.method, self.forward = model, method, forward
        self.calibration_data = kept(calibration_data)
        self.temporal = calibration.temporal and method == "sbc"
        self.calibration = Calibration(
            temporal=self.temporal, damping=calibration.damping, max_samples=calibration.max_samples,
            device=calibration.device,
        )  # fmt: skip
        self.iterative_steps, self.current_step = iterative_steps, 0
        schedule = iterative_pruning_ratio_scheduler or _linear
        self.ratios = schedule(pruning_ratio, iterative_steps)
        self.ignored_layers = list(ignored_layers or [])
        self.masks: dict[str, Tensor] = {}
        self.skipped: dict[str, str] = {}

    @ranks.joined()
    def step(self) -> None:
        """Prune to the next ratio; all layers are solved before the first is written.

        Raises:
            SettingsError: all steps were taken, or the pattern fits no layer.
            CalibrationError: data that does not fit, or a silent layer.
            SingularHessianError: a Hessian is not positive definite.
        """
        if self.current_step >= self.iterative_steps:
            raise SettingsError(f"all {self.iterative_steps} steps were taken; make a new pruner to prune further")
        prune = self._settings(self.current_step + 1)
        first, data = peek(self.calibration_data)
        runner = Runner.of(self.model, first, self.forward, library=library_or_plain(self.model))
        layers, self.skipped = find_readers(runner, first, self.temporal)
        layers = [layer for layer in layers if self._prunable(layer, prune)]
        if not layers:
            raise SettingsError(f"pattern {self.pattern} fits no layer: {self.skipped}")
        check_same(
            runner.model,
            layers,
            {"call": "weights", "method": self.method, "prune": prune, "calibration": self.calibration},
        )
        found = gather(runner, layers, data, self.calibration)
        zeros = ranks.handed(self._zeros(layers, prune))
        settings = LayerSettings(self.method, prune, None, self.calibration.damping)

        def solved(layer: SpikingLayer) -> Solution:
            with in_layer(layer.name):
                hessian = found[layer.name].accumulator.hessian()
                return solve(layer, layer.weight(), hessian, zeros[layer.name], settings)

        solutions = dealt(layers, solved)
        for layer in layers:
            solution = solutions[layer.name][0]
            layer.write(solution.weight)
            sizes = [part.form.columns for part in layer.parts]
            for part, mask in zip(layer.parts, solution.mask.split(sizes, dim=1), strict=True):
                name = part.name if part.name.endswith(part.attribute) else f"{part.name}.{part.attribute}"
                self.masks[name] = part.form.as_weight(mask, part.tensor.shape).to(part.tensor.device)
        self.current_step += 1

    def apply_masks(self) -> None:
        """Set every pruned weight back to zero, in place."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                owner, _, attribute = name.rpartition(".")
                weight = getattr(self.model.get_submodule(owner), attribute)  # of a cell it may be a plain tensor
                weight.masked_fill_(~mask.to(weight.device), 0.0)

    def hook(self, optimizer: Optimizer) -> Any:
        """Let the optimizer apply the masks after each of its steps; the handle's ``remove()`` ends it."""
        return optimizer.register_step_post_hook(lambda *_: self.apply_masks())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weights that are pruned; 0 before the first step."""
        sizes = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / sizes if sizes else 0.0

    def _settings(self, step: int) -> Prune:
        """The ratio and pattern that this step has to reach."""
        pattern, solver, allocation = self.pattern, self.settings.solver, self.settings.allocation
        if pattern.kind != "n:m":
            return Prune(self.ratios[step], str(pattern), solver, allocation)
        kept = pattern.size - round((pattern.size - pattern.kept) * step / self.iterative_steps)
        kept = min(kept, pattern.size - 1)
        return Prune(1 - kept / pattern.size, f"{kept}:{pattern.size}", solver, allocation)

    def _prunable(self, layer: SpikingLayer, prune: Prune) -> bool:
        ignored = any(self._is_ignored(part.module) for part in layer.parts)
        reason = "ignored" if ignored else unfit_pattern(layer, prune.pattern)
        if reason:
            self.skipped[layer.name] = reason
        return not reason

    def _is_ignored(self, module: nn.Module) -> bool:
        kinds = tuple(one for one in self.ignored_layers if isinstance(one, type))
        inside = [part for one in self.ignored_layers if isinstance(one, nn.Module) for part in one.modules()]
        return isinstance(module, kinds) or any(module is part for part in inside)

    def _zeros(self, layers: list[SpikingLayer], prune: Prune) -> dict[str, int]:
        pattern = parse_pattern(prune.pattern)
        if pattern.kind == "n:m":
            return {layer.name: pattern_zeros(pattern, layer.rows, layer.columns, 0) for layer in layers}
        return allocate_zeros({layer.name: layer.weight() for layer in layers}, prune.sparsity, method=prune.allocation)


def _linear(ratio: float, steps: int) -> list[float]:
    return [ratio * step / steps for step in range(steps + 1)]
