"""Which neuron integrates each weight's output, and what lies between: from one traced pass, never from order."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import distinct
from sbc_plugin.core.matrix_form import MatrixForm, Pooling
from sbc_plugin.errors import UnsupportedModelError, in_layer
from sbc_plugin.layers import UNEVEN_GAIN, Forward, Part, Site, SpikingLayer
from sbc_plugin.norse.autograd_paths import Path, constant_gain
from sbc_plugin.norse.call_trace import Chain, Trace, WeightCall, trace
from sbc_plugin.norse.layer_checks import check_own_weights
from sbc_plugin.norse.neurons import NEURONS, is_spiking, kernel_of, own_weights
from sbc_plugin.norse.sites import FORGETFUL, sites_of
from sbc_plugin.norse.weight_kernels import kernel_by_row, neuron_response, response_without_neuron, same_dynamics
from sbc_plugin.norse.weights import form_of

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
        unknown = sorted({type(module).__name__ for module in model.modules() if _steps_on_its_own(module)})
        unseen = f" whose step can be seen (that of {', '.join(unknown)} is not in `.activation`)" if unknown else ""
        raise UnsupportedModelError(
            f"{type(model).__name__} holds no spiking Norse neuron{unseen}; the objective is its spike train. Neurons "
            "have to be modules: put cells, as LIFCell(), in place of steps called by hand (norse.torch.functional)"
        )
    check_own_weights(model)
    traced = trace(model, batch, forward)
    names = {id(module): name for name, module in model.named_modules()}
    joint = _joint_layers(traced)
    layers = []
    for name in traced.order:
        members = joint.get(name, (name,))
        if name in traced.cells:
            layers.append(_cell_layer(name, traced.cells[name], temporal))
        elif name == members[0]:
            layers.append(_weight_layer(members, traced, names, temporal))
    if all(site.neuron is None for layer in layers for site in layer.sites):
        raise UnsupportedModelError(
            "no weight could be followed to a neuron; a forward under torch.no_grad, or one that detaches, "
            "hides the way"
        )
    return layers, _skipped(model, traced)


def _steps_on_its_own(module: nn.Module) -> bool:
    """Whether the module goes on from a state that it is given, and is none of the neurons that can be watched."""
    takes_state = "state" in inspect.signature(module.forward).parameters
    return takes_state and not isinstance(module, NEURONS) and not any(module.children())


def _weight_layer(members: tuple[str, ...], traced: Trace, names: dict[int, str], temporal: bool) -> SpikingLayer:
    """The layer of one weight, or of several that feed one neuron: the first one is looked at for all."""
    parts = tuple(Part(name, traced.weights[name], "weight", form_of(traced.weights[name])) for name in members)
    form, calls = parts[0].form, traced.calls[members[0]]
    uses = [use for call in calls for use in call.uses]
    # 1. The response of the first neuron that the weight feeds, or of what stands in its place.
    if uses:
        response = neuron_response(uses[0], names, temporal)
    else:
        response = response_without_neuron(members[0], traced, names, temporal)
    # 2. The places where its calls are integrated.
    with in_layer(" + ".join(members)):
        sites, sites_note = sites_of(calls, traced.steps)
    forgetful = sites_note == FORGETFUL
    others_differ = temporal and bool(uses) and not same_dynamics(uses, names)
    # 3. One kernel for each kind of row.
    kernel = kernels.delta() if forgetful or not temporal else response.kernel
    kernel, row_note = kernel_by_row(kernel, form.rows)
    kernel, variant = distinct(kernel, form.rows, MOST_VARIANTS)
    # 4. The factors and the pooling on the way.
    gain, exact = constant_gain(response.path.gains, form.rows)
    notes = [
        *response.notes,
        sites_note,
        "also feeds neurons with other dynamics; the first one counts" if others_differ else "",
        row_note,
        "" if exact else UNEVEN_GAIN,
    ]
    return SpikingLayer(
        name=" + ".join(members),
        kind=f"{' + '.join(type(part.module).__name__ for part in parts)} > {response.target}",
        parts=parts,
        kernel=kernel,
        variant=variant,
        gain=gain,
        pooling=None if response.path.nonlinear else _pooling(response.path, parts[0].module),
        sites=sites,
        note=_joined(notes),
    )


def _cell_layer(name: str, cell: nn.Module, temporal: bool) -> SpikingLayer:
    """The layer of a neuron with weights of its own: its input weights, beside them recurrent ones if it has some."""
    kernel, note = kernel_of(name, cell) if temporal else (kernels.delta(), "")
    parts = []
    for attribute in own_weights(cell):
        weight: Tensor = getattr(cell, attribute)
        parts.append(Part(f"{name}.{attribute}".lstrip("."), cell, attribute, MatrixForm(1, *weight.shape)))
    rows = parts[0].form.rows
    kernel, row_note = kernel_by_row(kernel, rows)
    kernel, variant = distinct(kernel, rows, MOST_VARIANTS)
    return SpikingLayer(
        name=name,
        kind=type(cell).__name__,
        parts=tuple(parts),
        kernel=kernel,
        variant=variant,
        gain=torch.ones(rows, dtype=torch.float64, device="cpu"),
        sites=(Site(name, "step"),),
        note=_joined([note, row_note]),
    )


def _joined(notes: list[str]) -> str:
    """The notes that say something, each once."""
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _pooling(path: Path, module: nn.Module) -> Pooling | None:
    if not path.pools or isinstance(module, nn.Linear):
        return None

    def pooling(x: Tensor) -> Tensor:
        for pool in path.pools:
            x = pool(x)
        return x

    return pooling


def _joint_layers(traced: Trace) -> dict[str, tuple[str, ...]]:
    """Linear layers to solve together: they feed the same neuron, one of them with the neuron's own spikes.

    Returns:
        Name of a layer -> all members of its joint layer, those that feed the neuron back last.
    """
    receivers: dict[Chain, list[str]] = {}
    for name, calls in traced.calls.items():
        for chain in dict.fromkeys(use.chain for call in calls for use in call.uses[:1]):
            receivers.setdefault(chain, []).append(name)
    joint: dict[str, tuple[str, ...]] = {}
    for chain, names in receivers.items():
        recurrent = [name for name in names if _fed_by(traced.calls[name], chain.neuron)]
        linear = all(isinstance(traced.weights[name], nn.Linear) for name in names)
        if recurrent and len(names) > 1 and linear and len({_gain_values(traced.calls[name]) for name in names}) == 1:
            members = tuple(sorted(names, key=lambda name: name in recurrent))
            joint |= dict.fromkeys(members, members)
    return joint


def _gain_values(calls: list[WeightCall]) -> tuple[tuple[float, ...], ...]:
    """The factors between a weight and the neuron that integrates it first."""
    use = next(use for call in calls for use in call.uses)
    return tuple(tuple(gain.flatten().tolist()) for gain in use.path.gains)


def _fed_by(calls: list[WeightCall], neuron: str) -> bool:
    return any(origin.kind == "neuron" and origin.name == neuron for call in calls for origin, _ in call.sources)


def _skipped(model: nn.Module, traced: Trace) -> dict[str, str]:
    reasons = {}
    for name, module in model.named_modules():
        if name in traced.calls:
            continue
        if name in traced.weights:
            kind = traced.foreign.get(name)
            reasons[name] = f"{kind} computes something else than the class it comes from" if kind else "never called"
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and not (name in traced.cells and attribute in own_weights(module)):
                full = f"{name}.{attribute}" if name else attribute
                never = isinstance(module, NEURONS) and name not in traced.cells
                reason = "it never ran" if never else f"{type(module).__name__} has no rule for it"
                reasons[full] = f"{reason}; left as it is"
    return reasons
