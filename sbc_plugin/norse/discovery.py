"""Which neuron integrates each weight's output, and what lies between: from one traced pass, never from order."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import Kernel, distinct
from sbc_plugin.core.matrix_form import MatrixForm, Pooling, matrix_form
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import UNEVEN_GAIN, Forward, Part, Site, SpikingLayer
from sbc_plugin.norse.autograd_paths import Path, constant_gain
from sbc_plugin.norse.call_trace import Chain, Trace, Use, WeightCall, trace
from sbc_plugin.norse.neurons import NEURONS, RECURRENT, is_spiking, kernel_of

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
    _refuse_shared(model)
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
    parts = tuple(Part(name, seen.weights[name], "weight", matrix_form(seen.weights[name])) for name in members)
    form, calls = parts[0].form, seen.calls[members[0]]
    notes: list[str] = []
    use = next((use for call in calls for use in call.uses), None)
    if use is None:
        kernel, path, target = _without_neuron(members[0], seen, names, notes, temporal)
    else:
        target = type(use.neurons[-1]).__name__
        kernel, path = _cascade_kernel(use, names, notes, temporal), use.path
        if path.nonlinear:
            notes.append(f"{path.nonlinear} between weight and {target}: M = I")
            kernel = kernels.delta()
        elif isinstance(use.neurons[-1], RECURRENT):
            notes.append(f"no neuron before the input weights of {target}; its kernel counts")
            kernel = _averaged(kernel, notes)
    sites, forgetful = _sites(calls, seen, notes)
    if forgetful:
        notes.append("the neuron's state is discarded after each step: M = I")
        kernel = kernels.delta()
    if use is not None and temporal and not _alike({u.neurons: u for call in calls for u in call.uses}, names):
        notes.append("also feeds neurons with other dynamics; the first one counts")
    kernel = kernel if temporal else kernels.delta()
    kernel, variant = distinct(_by_row(kernel, form.rows, notes), form.rows, MOST_VARIANTS)
    gain, exact = constant_gain(path.gains, form.rows)
    if not exact:
        notes.append(UNEVEN_GAIN)
    kind = f"{' + '.join(type(part.module).__name__ for part in parts)} > {target}"
    pooling = None if path.nonlinear else _composed(path, form)
    return SpikingLayer(
        " + ".join(members), kind, parts, kernel, variant, gain, pooling, sites, "; ".join(dict.fromkeys(notes))
    )


def _cell_layer(name: str, cell: nn.Module, temporal: bool) -> SpikingLayer:
    kernel, note = kernel_of(name, cell) if temporal else (kernels.delta(), "")
    parts = []
    for attribute in ("input_weights", "recurrent_weights"):
        weight: Tensor = getattr(cell, attribute)
        parts.append(Part(f"{name}.{attribute}", cell, attribute, MatrixForm(1, *weight.shape)))
    rows, notes = parts[0].form.rows, [note] if note else []
    kernel, variant = distinct(_by_row(kernel, rows, notes), rows, MOST_VARIANTS)
    gain = torch.ones(rows, dtype=torch.float64, device="cpu")
    site = (Site(name, "step"),)
    return SpikingLayer(name, type(cell).__name__, tuple(parts), kernel, variant, gain, None, site, "; ".join(notes))


def _cascade_kernel(use: Use, names: dict[int, str], notes: list[str], temporal: bool) -> Kernel:
    if not temporal:
        return kernels.delta()
    whole: Kernel | None = None
    for neuron in use.neurons:
        kernel, note = kernel_of(names.get(id(neuron), ""), neuron)
        if note:
            notes.append(note)
            return kernel
        whole = kernel if whole is None else whole.then(kernel)
    assert whole is not None
    return whole


def _alike(uses: dict[tuple[nn.Module, ...], Use], names: dict[int, str]) -> bool:
    """Whether all cascades answer an impulse in the same way."""
    found = [_cascade_kernel(use, names, [], True) for use in uses.values()]
    parameters = [(*kernel.decays, *kernel.gains) for kernel in found]
    return all(
        kernel.name == found[0].name and kernel.delay == found[0].delay and all(map(torch.equal, mine, parameters[0]))
        for kernel, mine in zip(found, parameters, strict=True)
    )


def _without_neuron(
    name: str, seen: Trace, names: dict[int, str], notes: list[str], temporal: bool
) -> tuple[Kernel, Path, str]:
    """A readout, or a weight whose output goes into another weight."""
    calls = seen.calls[name]
    outputs = [path for call in calls for path in call.outputs]
    for call in calls:
        for successor, path in call.successors:
            use = next((use for later in seen.calls[successor] for use in later.uses), None)
            if use is not None and successor != name:
                if path.nonlinear or use.path.nonlinear:
                    notes.append(f"{path.nonlinear or use.path.nonlinear} between weight and neuron: M = I")
                    return kernels.delta(), path, successor
                notes.append(f"no neuron before {successor!r}; its kernel counts")
                return _averaged(_cascade_kernel(use, names, notes, temporal), notes), path, successor
    # A loop that adds up its outputs reaches several calls through one sum; one that stacks them does not.
    if any(path.reduced for path in outputs) or (len(outputs) > 1 and not any(path.stacked for path in outputs)):
        return kernels.sum_over_time(), outputs[0], "readout (sum)"
    if not outputs:
        notes.append("its output was not followed to a neuron or to the model's output: M = I")
    return kernels.delta(), outputs[0] if outputs else Path(), "readout"


def _sites(calls: list[WeightCall], seen: Trace, notes: list[str]) -> tuple[tuple[Site, ...], bool]:
    """The sites of a weight in the order of its calls, and whether its neuron forgets its state at each step."""
    first = [call.uses[0].chain if call.uses else None for call in calls]
    chains = list(dict.fromkeys(first))
    # A call used at many steps of its neuron holds the whole sequence, unless every step reaches every call.
    used = [max(Counter(use.chain for use in call.uses).values(), default=0) for call in calls]
    whole = max(used) > 1 and len(calls) < max(used) * max(len(chains), 1)
    if not whole:
        steps = [seen.steps[chain] for chain in chains if chain is not None]
        forgetful = len(chains) > 1 and set(steps) == {1} and len({chain[0] for chain in chains if chain}) == 1
        sites = chains[:1] if forgetful else chains
        if any(chain != sites[number % len(sites)] for number, chain in enumerate(first)) and not forgetful:
            notes.append("its calls follow no fixed rhythm; one causal filter takes them all")
            sites = [first[0]]
        return tuple(Site(chain[0] if chain else None, "step") for chain in sites), forgetful
    sites_found = []
    for call, chain in zip(calls, first, strict=True):
        use = call.uses[0]
        length = max(Counter(use.chain for use in call.uses).values())
        layout = "constant"
        if use.path.indexed:
            # With one sequence in the batch, (T * 1, ...) looks like (T, ...): "merged" is right for both.
            layout = "sequence" if call.length == length and use.batch > 1 else "merged"
        sites_found.append(Site(chain[0] if chain else None, layout))
    return tuple(sites_found), False


def _averaged(kernel: Kernel, notes: list[str]) -> Kernel:
    """The kernel of neurons behind another weight, each of which every row reaches: their mean parameters."""
    if any(not torch.equal(p, p.flatten()[0].expand_as(p)) for p in (*kernel.decays, *kernel.gains)):
        notes.append("time constants differ behind the next weight; their mean counts")
    decays, gains = (tuple(p.mean() for p in parameters) for parameters in (kernel.decays, kernel.gains))
    return Kernel(kernel.name, decays, gains, kernel.delay)


def _by_row(kernel: Kernel, rows: int, notes: list[str]) -> Kernel:
    """Parameters of per-neuron shape reduced to (rows,): a row of a convolution serves many neurons."""

    def reduced(parameter: Tensor) -> Tensor:
        if parameter.numel() == 1:
            return parameter.reshape(())
        if parameter.numel() == rows:
            return parameter.reshape(rows)
        spread = parameter.reshape(rows, -1) if parameter.numel() % rows == 0 else parameter.reshape(1, -1)
        if not torch.equal(spread, spread[:, :1].expand_as(spread)):
            notes.append("time constants differ within a row; their mean counts")
        mean = spread.mean(1)
        return mean if len(mean) == rows else mean.reshape(())

    return Kernel(kernel.name, tuple(map(reduced, kernel.decays)), tuple(map(reduced, kernel.gains)), kernel.delay)


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


def _refuse_shared(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{attribute}" if name else attribute
            if parameter.dim() >= 2 and owners.setdefault(id(parameter), full) != full:
                raise UnsupportedModelError(
                    f"{owners[id(parameter)]!r} and {full!r} share one parameter, so neither can change alone; "
                    "use one module twice, or give each its own copy"
                )


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
