"""Which neuron integrates each weight's output, and what lies between: from one traced pass, never from order."""

from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import distinct
from sbc_plugin.core.matrix_form import MatrixForm, Pooling, matrix_form
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import UNEVEN_GAIN, Forward, Part, Site, SpikingLayer
from sbc_plugin.norse.autograd_paths import Path, constant_gain
from sbc_plugin.norse.call_trace import Chain, Trace, Use, WeightCall, trace
from sbc_plugin.norse.layer_checks import check_own_weights
from sbc_plugin.norse.neurons import NEURONS, is_spiking, kernel_of
from sbc_plugin.norse.sites import FORGETFUL, sites_of
from sbc_plugin.norse.weight_kernels import kernel_by_row, neuron_response, response_without_neuron, same_dynamics

MOST_VARIANTS = 8


def find_layers(
    model: nn.Module, batch: Any, forward: Forward, temporal: bool = True
) -> tuple[list[SpikingLayer], dict[str, str]]:
    """The compressible layers of a Norse model, in the order in which they first run, and what was left out.

    Args:
        model: left as it was.
        batch: one batch to trace.
        forward: runs one whole sequence.
        temporal: False gives every layer M = I.

    Returns:
        The layers, and name -> reason for every weight that is left alone.

    Raises:
        CalibrationError: the batch does not fit.
        UnsupportedModelError: no spiking neuron, a neuron without a rule, shared or parametrised weights.
    """
    if not any(is_spiking(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} holds no spiking Norse neuron; the objective is its spike train"
        )
    check_own_weights(model)
    seen = trace(model, batch, forward)
    names = {id(module): name for name, module in model.named_modules()}
    joint = _feedback(seen)
    layers = []
    for name in seen.order:
        if name in seen.recurrent:
            layers.append(_cell_layer(name, seen.recurrent[name], temporal))
        elif name == joint.get(name, (name,))[0]:
            layers.append(_weight_layer(joint.get(name, (name,)), seen, names, temporal))
    if not any(site.neuron for layer in layers for site in layer.sites):
        raise UnsupportedModelError(
            "no weight could be followed to a neuron; a forward under torch.no_grad, or one that detaches, "
            "hides the way"
        )
    return layers, _skipped(model, seen)


def _weight_layer(members: tuple[str, ...], seen: Trace, names: dict[int, str], temporal: bool) -> SpikingLayer:
    """The layer of one weight, or of several that feed one neuron, the first of them being looked at."""
    parts = tuple(Part(name, seen.weights[name], "weight", matrix_form(seen.weights[name])) for name in members)
    form, calls = parts[0].form, seen.calls[members[0]]
    uses = [use for call in calls for use in call.uses]
    # 1. What integrates the weight's output, and how that answers an impulse.
    if uses:
        response = neuron_response(uses[0], names, temporal)
    else:
        response = response_without_neuron(members[0], seen, names, temporal)
    # 2. Where that happens, call by call.
    sites, site_note = sites_of(calls, seen.steps)
    remembers = temporal and site_note != FORGETFUL
    others = temporal and bool(uses) and not same_dynamics(uses, names)
    # 3. One variant of the kernel for each kind of row, and the gain of each row.
    kernel, mean_note = kernel_by_row(response.kernel if remembers else kernels.delta(), form.rows)
    kernel, variant = distinct(kernel, form.rows, MOST_VARIANTS)
    gain, exact = constant_gain(response.path.gains, form.rows)
    # 4. What was approximated on the way.
    notes = [
        *response.notes,
        site_note,
        "also feeds neurons with other dynamics; the first one counts" if others else "",
        mean_note,
        "" if exact else UNEVEN_GAIN,
    ]
    return SpikingLayer(
        name=" + ".join(members),
        kind=f"{' + '.join(type(part.module).__name__ for part in parts)} > {response.target}",
        parts=parts,
        kernel=kernel,
        variant=variant,
        gain=gain,
        pooling=None if response.path.nonlinear else _composed(response.path, form),
        sites=sites,
        note=_note(notes),
    )


def _cell_layer(name: str, cell: nn.Module, temporal: bool) -> SpikingLayer:
    """The layer of a recurrent cell: its input weights and its recurrent weights side by side."""
    kernel, note = kernel_of(name, cell) if temporal else (kernels.delta(), "")
    parts = []
    for attribute in ("input_weights", "recurrent_weights"):
        weight: Tensor = getattr(cell, attribute)
        parts.append(Part(f"{name}.{attribute}", cell, attribute, MatrixForm(1, *weight.shape)))
    rows = parts[0].form.rows
    kernel, mean_note = kernel_by_row(kernel, rows)
    kernel, variant = distinct(kernel, rows, MOST_VARIANTS)
    return SpikingLayer(
        name=name,
        kind=type(cell).__name__,
        parts=tuple(parts),
        kernel=kernel,
        variant=variant,
        gain=torch.ones(rows, dtype=torch.float64, device="cpu"),
        sites=(Site(name, "step"),),
        note=_note([note, mean_note]),
    )


def _note(notes: list[str]) -> str:
    """All notes, each once."""
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _composed(path: Path, form: MatrixForm) -> Pooling | None:
    if not path.pools or form.convolution is None:
        return None

    def pooling(x: Tensor) -> Tensor:
        for pool in path.pools:
            x = pool(x)
        return x

    return pooling


def _feedback(seen: Trace) -> dict[str, tuple[str, ...]]:
    """Linear layers that feed the same neuron, one of them with the neuron's own spikes: one joint problem."""
    receivers: dict[Chain, list[str]] = {}
    for name, calls in seen.calls.items():
        for chain in dict.fromkeys(use.chain for call in calls for use in call.uses[:1]):
            receivers.setdefault(chain, []).append(name)
    joint: dict[str, tuple[str, ...]] = {}
    for (neuron, _), names in receivers.items():
        recurrent = [name for name in names if _fed_by(seen.calls[name], neuron)]
        plain = all(isinstance(seen.weights[name], nn.Linear) for name in names)
        gains = {tuple(tuple(g.flatten().tolist()) for g in _first_use(seen.calls[name]).path.gains) for name in names}
        if recurrent and len(names) > 1 and plain and len(gains) == 1:
            members = tuple(sorted(names, key=lambda name: name in recurrent))
            joint |= dict.fromkeys(members, members)
    return joint


def _first_use(calls: list[WeightCall]) -> Use:
    return next(use for call in calls for use in call.uses)


def _fed_by(calls: list[WeightCall], neuron: str) -> bool:
    return any(origin.kind == "neuron" and origin.name == neuron for call in calls for origin, _ in call.sources)


def _skipped(model: nn.Module, seen: Trace) -> dict[str, str]:
    reasons = {}
    for name, module in model.named_modules():
        if name in seen.calls or name in seen.recurrent:
            continue
        if name in seen.weights:
            reasons[name] = "never called"
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                full = f"{name}.{attribute}" if name else attribute
                kind = "a neuron that never ran" if isinstance(module, NEURONS) else type(module).__name__
                reasons[full] = f"{kind} has no rule; left as it is"
    return reasons
