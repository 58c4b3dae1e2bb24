"""What the ranks of ``torch.distributed`` have gathered from their shares, as sums over all data."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.fingerprint import digest
from sbc_plugin.core.accumulators import HessianAccumulator
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.layers import SpikingLayer

SAME_MODEL = "load the same checkpoint on each rank, or broadcast parameters and buffers from rank 0"


class Counted(Protocol):
    """A Hessian and the number of sequences that it was made from."""

    accumulator: HessianAccumulator
    sequences: int


def sum_statistics(statistics: Iterable[Counted], others: Iterable[Tensor] = ()) -> None:
    """Make sums and counts those of all ranks, in place.

    Args:
        statistics: of this rank's share, in the same order on all ranks.
        others: tensors that are summed beside.
    """
    if ranks.count() == 1:
        return
    found = list(statistics)
    counts = torch.tensor([[each.accumulator.count, each.sequences] for each in found], device="cpu")
    ranks.total([*(each.accumulator.sum_xx for each in found), *others, counts])
    for each, (samples, sequences) in zip(found, counts.tolist(), strict=True):
        each.accumulator.count, each.sequences = samples, sequences


def sum_fired(fired: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Which neurons spiked on any rank; None where a rank cannot tell, or shapes differ.

    Args:
        fired: of this rank's share, as of :class:`~sbc_plugin.calibration.hessians.FiredNeurons`.
    """
    if ranks.count() == 1:
        return dict(fired)
    shapes = ranks.everyone({name: None if seen is None else tuple(seen.shape) for name, seen in fired.items()})
    joint = {name: {held[name] for held in shapes if name in held} for held in shapes for name in held}
    known = {name: sizes.pop() for name, sizes in joint.items() if len(sizes) == 1 and None not in sizes}
    counts = {}
    for name, size in known.items():
        seen = fired.get(name)
        counts[name] = torch.zeros(size or (), dtype=torch.int32, device="cpu") if seen is None else seen.int()
    ranks.total(list(counts.values()))
    return {name: counts[name] > 0 if name in counts else None for name in joint}


def check_same(model: nn.Module, layers: Iterable[SpikingLayer], settings: Mapping[str, Any]) -> None:
    """Refuse models and settings that are not the same on all ranks.

    Args:
        model: with its values.
        layers: that were found in it.
        settings: by name; of a device only its kind counts.

    Raises:
        SettingsError: settings, parameters, buffers, layers or their neurons' kernels differ: names what does.
    """
    if ranks.count() == 1:
        return
    ranks.agree("settings", {name: _as_text(value) for name, value in settings.items()}, "call with the same")
    held = {repr(name): f"of digest {digest(tensor)}" for name, tensor in model.state_dict(keep_vars=True).items()}
    for layer in layers:
        held[f"layer {layer.name!r}"] = f"{layer.kind} of digest {digest(layer.weight())}"
        held[f"the kernel of layer {layer.name!r}"] = _told(layer.kernel)
    for name, module in model.named_modules():
        settings = {
            key: value for key, value in vars(module).items() if isinstance(value, tuple) and _is_settings(value)
        }
        if settings:
            held[f"the parameters of {name!r}"] = f"of digest {digest(settings)}"
    ranks.agree("models", held, SAME_MODEL)


def _as_text(value: Any) -> str:
    device = getattr(value, "device", None)
    return repr(value if device is None else replace(value, device=torch.device(device).type))


def _told(kernel: Kernel) -> str:
    """Rounded, because processors differ in the last bits of what is computed from a time constant."""
    values = [value for stage in (*kernel.decays, *kernel.gains) for value in stage.reshape(-1).tolist()]
    return f"{kernel.name} {kernel.delay} ({', '.join(f'{value:.4g}' for value in values)})"


def _is_settings(value: Any) -> bool:
    """Whether an attribute of a module is a neuron's parameters, which have no axis of sequences as states have."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return all(_is_settings(part) or isinstance(part, str | int | float | None) or callable(part) for part in value)
    return isinstance(value, Tensor) and value.dim() < 2 and not isinstance(value, nn.Parameter)
