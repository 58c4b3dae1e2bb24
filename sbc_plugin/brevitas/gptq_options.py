"""The keywords of Brevitas' ``gptq_mode``, as :class:`~sbc_plugin.brevitas.mode.sbc_mode` takes them."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from brevitas.graph.calibrate import quantization_status_manager
from brevitas.graph.gptq import GPTQ
from torch import Tensor, nn

from sbc_plugin.brevitas.cells import parts_of
from sbc_plugin.errors import SettingsError
from sbc_plugin.layers import SpikingLayer


@dataclass(frozen=True)
class GptqOptions:
    """What ``gptq_mode`` calls so.

    Attributes:
        group_of_parallel_layers: lists of names of layers that are solved in one update.
        create_weight_orig: keep each dense weight as a buffer ``weight_orig``.
        use_quant_activations: leave the quantizers of activations and biases on.
        num_blocks: how many blocks of columns; None: of 128 columns each.
        return_forward_output: calls return the model's output, not None.

    Raises:
        SettingsError: a value out of range, or a layer that is named twice.
    """

    group_of_parallel_layers: Sequence[Sequence[str]] = ()
    create_weight_orig: bool = True
    use_quant_activations: bool = True
    num_blocks: int | None = None
    return_forward_output: bool = True

    def __post_init__(self) -> None:
        if self.num_blocks is not None and self.num_blocks < 1:
            raise SettingsError(f"num_blocks={self.num_blocks}: at least one block is needed")
        groups = self.group_of_parallel_layers
        if isinstance(groups, str) or any(isinstance(group, str) for group in groups):
            raise SettingsError(f"group_of_parallel_layers={groups!r} has to be a list of lists of names")
        names = [name for group in groups for name in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingsError(f"group_of_parallel_layers names {twice[0]!r} twice; a layer is solved once")

    def updates(self, names: Collection[str]) -> int:
        """How many updates the layers of these names need.

        Raises:
            SettingsError: a group names a layer that is not among them.
        """
        grouped = [name for group in self.group_of_parallel_layers for name in group]
        if unknown := [name for name in grouped if name not in names]:
            known = ", ".join(map(repr, names))
            raise SettingsError(
                f"group_of_parallel_layers names {unknown[0]!r}, which is no quantised layer; they are {known}"
            )
        return len(names) - len(grouped) + sum(1 for group in self.group_of_parallel_layers if group)

    def turns(self, layers: Sequence[SpikingLayer]) -> list[list[SpikingLayer]]:
        """The layers that each update solves: those of a group when the first of them has its turn."""
        group_of = {name: number for number, group in enumerate(self.group_of_parallel_layers) for name in group}
        turns: list[list[SpikingLayer]] = []
        turn_of_group: dict[int, list[SpikingLayer]] = {}
        for layer in layers:
            numbers = [group_of[part.name] for part in parts_of(layer) if part.name in group_of]
            turn = turn_of_group.get(numbers[0]) if numbers else None
            if turn is None:
                turn = []
                turns.append(turn)
            turn.append(layer)
            turn_of_group |= dict.fromkeys(numbers, turn)
        return turns

    def activations(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside the block the quantizers of activations and biases are off, unless they are to be used."""
        if self.use_quant_activations:
            return nullcontext()
        context: AbstractContextManager[Any] = quantization_status_manager(
            model, disable_act_quant=True, disable_weight_quant=False, disable_bias_quant=True
        )
        return context

    def keep_original(self, module: nn.Module, weight: Tensor) -> None:
        """Store a layer's dense weight as ``gptq_mode`` does, unless an earlier pass has done so."""
        if self.create_weight_orig and not hasattr(module, "weight_orig"):
            module.register_buffer("weight_orig", weight.detach().clone().cpu())


def check_class(gptq_class: Any) -> None:
    """Refuse another algorithm than GPTQ, whose place the solver of this package takes.

    Raises:
        SettingsError: it is another.
    """
    if gptq_class not in (None, GPTQ):
        raise SettingsError(
            f"gptq_class={getattr(gptq_class, '__name__', gptq_class)!r}: sbc_mode solves by its own GPTQ and runs no "
            "other class; leave it out, or use Brevitas' own mode for that class"
        )


def check_accumulators(**settings: Any) -> None:
    """Refuse the settings of ``a2gptq_mode``, which bound the accumulator.

    Raises:
        SettingsError: one is given.
    """
    given = [f"{name}={value!r}" for name, value in settings.items() if value is not None]
    if given:
        raise SettingsError(
            f"{given[0]}: sbc_mode does not bound accumulators; leave it out, or use Brevitas' a2gptq_mode for that"
        )


def device_of(device: torch.device | str | None) -> torch.device | str | None:
    """Where Hessians are kept; ``gptq_mode`` says "same" for where the weights are."""
    return None if device == "same" else device
