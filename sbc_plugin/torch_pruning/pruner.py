"""``SBCPruner``: torch-pruning's pruner with the spike-train objective; ``get_pruner``: any method by its name."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.layers import Forward
from sbc_plugin.settings import Calibration
from sbc_plugin.torch_pruning.audit import audit
from sbc_plugin.torch_pruning.graph.dependency_graph import exact_tracing, run_once, trace_inputs
from sbc_plugin.torch_pruning.importance import SBCImportance, edges
from sbc_plugin.torch_pruning.methods import METHODS, graph_arguments, host_pruner
from sbc_plugin.torch_pruning.normalization import reestimate_batchnorm
from sbc_plugin.torch_pruning.planned_cuts import left_whole, plan_problems, refusal, with_way_out
from sbc_plugin.torch_pruning.weights import WeightPruner


def _alike(group: Any, **_: Any) -> Tensor | None:
    """An importance that ranks nothing; None where no layer reads the channels, as of SBCImportance."""
    if not any(edge.reads for edge in edges(group)):
        return None
    return torch.ones(len(group[0].idxs), device="cpu")


class SBCPruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """Prunes channels by what the layers that read them lose, and adapts those layers' weights before each cut.

    It takes all arguments of ``tp.pruner.BasePruner``, with their meaning there, and leaves the model in eval mode as
    that does. Layers in ``ignored_layers`` keep
    their outputs; where they lose inputs they are compensated as well. Groups come in the order in which their roots
    run. With ``step(interactive=True)``, a group that is not pruned changes nothing.

    Args:
        model: spiking or not. Like all of torch-pruning, changes it in place.
        example_inputs: one time step for a step model, a sequence for a sequence model; a tensor or a tuple.
        importance: another importance of torch-pruning; consumers are compensated all the same.
        calibration_data: iterable of batches, whole sequences (T, B, ...) for a spiking network; labels may be beside.
        forward: ``forward(model, batch)`` runs one whole batch.
        calibration: temporal, damping, max_samples and device count.
        recalibrate: calibrate anew at each step instead of once; for fine-tuning between steps.
        reestimate: after the last group of each step, average BatchNorm's statistics anew over the calibration data.
        check: run the audit before the first cut, and rehearse the cuts of each step in a copy.
        arguments: of BasePruner.

    Attributes:
        left_whole: layer -> reason, for layers that were to lose channels and have lost none up to the last step.

    Raises:
        CalibrationError: no calibration data.
        SettingsError: ``isomorphic`` without ``global_pruning``.
    """

    importance: Any

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Any = None,
        *,
        calibration_data: Iterable[Any] | None = None,
        forward: Forward | None = None,
        calibration: Calibration = DEFAULT,
        recalibrate: bool = False,
        reestimate: bool = False,
        check: bool = True,
        **arguments: Any,
    ) -> None:
        self.statistics = SBCImportance(calibration_data, forward, calibration=calibration, recalibrate=recalibrate)
        self.example_inputs = trace_inputs(model, example_inputs)
        self.reestimate, self.check = reestimate, check
        self.left_whole: dict[str, str] = {}
        self._problems: dict[str, str] | None = None
        self._forward_fn = arguments.get("forward_fn") or run_once
        with exact_tracing(model):
            super().__init__(
                model, self.example_inputs, importance or self.statistics, **graph_arguments(model, arguments)
            )
        self.statistics.attach(self.DG)
        model.eval()  # as torch-pruning's pruners leave it, on which scripts rely that run single examples next

    def step(self, interactive: bool = False) -> Any:
        """Prune one step, on all ranks of ``torch.distributed`` or on none; as a generator of groups if interactive.

        Args:
            interactive: as of BasePruner.

        Raises:
            CompressionError: as :meth:`estimate_importance`, or on another rank.
        """
        if interactive:
            return super().step(interactive=True)
        with ranks.joined():
            return super().step()

    def estimate_importance(self, group: Any) -> Any:
        """A score for each channel; those that have to go together share one, unless heads are ranked.

        Raises:
            CalibrationError: no data, data that does not fit, or a layer that stays silent.
            SingularHessianError: a Hessian is not positive definite.
            UnsupportedModelError: the channels cannot be dealt to the groups of a convolution that has to lose them.
        """
        parts, count = self._get_channel_groups(group), len(group[0].idxs)
        if count % parts:
            if not self.get_target_pruning_ratio(group[0].dep.target.module) > 0:
                return None
            raise UnsupportedModelError(self._undealt(group, parts))
        if self.importance is not self.statistics:
            return super().estimate_importance(group)
        attention, _ = self._is_atten_group(group)
        if attention and self.prune_num_heads:
            return self.statistics(group)
        return self.statistics(group, parts, self._wanted(group))

    def regularize(self, *arguments: Any, **named: Any) -> None:
        """Nothing, whatever a script that trains for another method's sparsity hands over."""

    def _wanted(self, group: Any) -> int | None:
        """How many channels this step is about to remove; None where layers compete, so that it is not known yet."""
        if self.global_pruning or self.isomorphic:
            return None
        root = group[0].dep
        outputs = self.DG.is_out_channel_pruning_fn(root.handler)
        first = (self.layer_init_out_ch if outputs else self.layer_init_in_ch)[root.target.module]
        left = int(first * (1 - self.get_target_pruning_ratio(root.target.module))) - (self.round_to or 0)
        wanted = len(group[0].idxs) - max(left, 0)
        return wanted if wanted > 0 else None

    def _undealt(self, group: Any, parts: int) -> str:
        names, known = self.DG._module2name, {**self.in_channel_groups, **self.out_channel_groups}
        others = [dep.target.module for dep, _ in group if known.get(dep.target.module) == parts]
        return (
            f"layer {names[group[0].dep.target.module]!r}: its {len(group[0].idxs)} channels cannot be dealt to the "
            f"{parts} groups of {', '.join(repr(names[other]) for other in others)}, which have to lose the same ones; "
            "keep it whole with ignored_layers=[...]; nothing was cut"
        )

    def _prune(self) -> Iterator[Any]:
        if self.check and self._problems is None:
            given = {"num_heads": self.out_channel_groups, "forward_fn": self._forward_fn}
            audited = audit(self.model, self.example_inputs, self.DG, **given)
            self._problems = with_way_out(audited, self, self.example_inputs, self._forward_fn)
        if self._problems and not (self.global_pruning or self.isomorphic):
            self._refuse_known(self._plans_by_count())  # before anything is calibrated
        plans = list(super()._prune())
        self._agree(plans)
        if self.check and plans:
            self._refuse(plans)
        self.left_whole = left_whole(self, plans, self._problems or {})
        for plan in sorted(plans, key=self.statistics.place):
            # The group is made again, because the groups pruned before it may have moved its indices.
            group = self.DG.get_pruning_group(plan[0].dep.target.module, plan[0].dep.handler, plan[0].idxs)
            kept = {(id(dep.target), dep.handler) for dep, indices in plan.items if not indices}
            for number, (dep, _) in enumerate(group.items):
                if (id(dep.target), dep.handler) in kept:  # key and value heads that several queries share
                    group[number] = tp._helpers.GroupItem(dep, [])
            if self.DG.check_pruning_group(group):
                yield group
        if plans and self.reestimate:
            reestimate_batchnorm(self.model, self.statistics.calibration_data, self.statistics.forward)

    def _agree(self, plans: list[Any]) -> None:
        """Refuse to cut where the ranks would cut differently.

        Raises:
            SettingsError: they would.
        """
        names = self.DG._module2name
        cuts = {f"those of {names[plan[0].dep.target.module]!r}": str(sorted(plan[0].idxs)) for plan in plans}
        with ranks.joined():
            ranks.agree("channels to be cut", cuts, "call the pruner with the same arguments on each")

    def _plans_by_count(self) -> list[Any]:
        """Groups like those of the next step, of which only the layers and the numbers of channels are right."""
        importance = self.importance
        self.importance = _alike
        try:
            return list(super()._prune())
        finally:
            self.importance = importance

    def _refuse_known(self, plans: list[Any]) -> None:
        """Refuse groups with a layer whose channels the dependency graph does not know exactly.

        Raises:
            UnsupportedModelError: there are such groups; nothing was cut.
        """
        names = {id(module): name for name, module in self.model.named_modules()}
        touched = {
            names.get(id(dep.target.module), "")
            for plan in plans
            for dep, _ in plan.items
            if self.DG.is_out_channel_pruning_fn(dep.handler)
        }
        if wrong := {name: reason for name, reason in (self._problems or {}).items() if name in touched}:
            raise UnsupportedModelError(refusal(wrong))

    def _refuse(self, plans: list[Any]) -> None:
        """Refuse groups that the audit or a rehearsal of the step finds wrong.

        Raises:
            UnsupportedModelError: there are such groups; nothing was cut.
        """
        self._refuse_known(plans)
        if wrong := plan_problems(self, plans, self.example_inputs, self._forward_fn):
            raise UnsupportedModelError(refusal(wrong))


def get_pruner(
    method: str,
    model: nn.Module,
    example_inputs: Any,
    *,
    calibration_data: Iterable[Any] | None = None,
    forward: Forward | None = None,
    pattern: str = "channel",
    **torch_pruning_kwargs: Any,
) -> Any:
    """The pruner of a method, by the names that torch-pruning's own pipeline uses, and "sbc"; spiking models included.

    Args:
        method: "sbc" or one of torch-pruning's: "random", "l1", "l2", "fpgm", "obdc", "lamp", "slim", "group_slim",
            "group_norm", "group_sl", "group_greg", "growing_reg", "taylor", "hessian".
        model: to be pruned in place; it keeps its mode.
        example_inputs: one time step for a step model, a sequence for a sequence model; a tensor or a tuple. A result
            ``(output, state)`` needs no ``output_transform``.
        calibration_data: for "sbc": iterable of batches, whole sequences (T, B, ...) for a spiking network.
        forward: for "sbc": ``forward(model, batch)`` runs one whole batch.
        pattern: "channel"; or for single weights "unstructured", "N:M" as "2:4", "block:K", with the arguments of
            :class:`WeightPruner`.
        torch_pruning_kwargs: of the method's pruner: pruning_ratio, global_pruning, iterative_steps, ...

    Returns:
        The pruner; ``step()`` prunes.

    Raises:
        SettingsError: an unknown method or pattern.
        CalibrationError: "sbc" without calibration data.
    """
    model = unwrapped(model)
    if pattern != "channel":
        return WeightPruner(
            model, calibration_data, method=method, pattern=pattern, forward=forward, **torch_pruning_kwargs
        )
    if method == "sbc":
        with eval_mode(model):
            return SBCPruner(
                model, example_inputs, calibration_data=calibration_data, forward=forward, **torch_pruning_kwargs
            )
    if method not in METHODS:
        raise SettingsError(f"method={method!r} is unknown; use one of {', '.join(map(repr, ('sbc', *METHODS)))}")
    return host_pruner(method, model, example_inputs, torch_pruning_kwargs)
