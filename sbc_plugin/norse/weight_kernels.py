"""The impulse response that counts for a weight: of its neuron, of a cascade, or of what the next weight feeds.

Functions that approximate return a note for the report beside their result, "" where the result is exact.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.norse.autograd_paths import Path
from sbc_plugin.norse.call_trace import Trace, Use
from sbc_plugin.norse.neurons import WITH_WEIGHTS, kernel_of


class Response(NamedTuple):
    """What happens to a weight's output.

    Attributes:
        kernel: impulse response of what integrates it; parameters in the neuron's own shape.
        path: between the weight and what integrates it.
        target: what that is, for the report.
        notes: what was approximated.
    """

    kernel: Kernel
    path: Path
    target: str
    notes: tuple[str, ...] = ()


def neuron_response(use: Use, names: dict[int, str], temporal: bool) -> Response:
    """The response of the cascade that integrates a weight; ``names`` are those of modules, by id."""
    neuron = use.neurons[-1]
    kernel, note = cascade_kernel(use, names, temporal)
    notes = [note] if note else []
    target = type(neuron).__name__
    if use.path.nonlinear:
        notes.append(f"{use.path.nonlinear} between weight and {target}: M = I")
        kernel = kernels.delta()
    elif isinstance(neuron, WITH_WEIGHTS):
        kernel, mean_note = _mean_kernel(kernel)
        notes += [f"no neuron before the input weights of {target}; its kernel counts", mean_note]
    return Response(kernel, use.path, target, tuple(notes))


def response_without_neuron(name: str, traced: Trace, names: dict[int, str], temporal: bool) -> Response:
    """The response of a weight that reaches no neuron: a readout, or one whose output goes into another weight."""
    calls = traced.calls[name]
    # 1. The neuron behind the next weight.
    for successor, path in (after for call in calls for after in call.successors):
        use = next((use for later in traced.calls[successor] for use in later.uses), None)
        if use is None or successor == name:
            continue
        if nonlinear := path.nonlinear or use.path.nonlinear:
            return Response(kernels.delta(), path, successor, (f"{nonlinear} between weight and neuron: M = I",))
        kernel, note = cascade_kernel(use, names, temporal)
        kernel, mean_note = _mean_kernel(kernel)
        notes = (f"no neuron before {successor!r}; its kernel counts", note, mean_note)
        return Response(kernel, path, successor, notes)
    # 2. A readout. A loop that adds up its outputs reaches several calls through one sum; one that stacks does not.
    outputs = [path for call in calls for path in call.outputs]
    if not outputs:
        note = "its output was not followed to a neuron or to the model's output: M = I"
        return Response(kernels.delta(), Path(), "readout", (note,))
    if any(path.reduced for path in outputs) or (len(outputs) > 1 and not any(path.stacked for path in outputs)):
        return Response(kernels.sum_over_time(), outputs[0], "readout (sum)")
    return Response(kernels.delta(), outputs[0], "readout")


def cascade_kernel(use: Use, names: dict[int, str], temporal: bool = True) -> tuple[Kernel, str]:
    """The kernel of a cascade of neurons, in the place of the first one that is not linear M = I, and a note."""
    if not temporal:
        return kernels.delta(), ""
    whole: Kernel | None = None
    for neuron in use.neurons:
        kernel, note = kernel_of(names.get(id(neuron), ""), neuron)
        if note:
            return kernel, note
        whole = kernel if whole is None else whole.then(kernel)
    assert whole is not None
    return whole, ""


def same_dynamics(uses: list[Use], names: dict[int, str]) -> bool:
    """Whether all cascades answer an impulse in the same way."""
    one_of_each = {use.neurons: use for use in uses}
    first, *others = [cascade_kernel(use, names)[0] for use in one_of_each.values()]
    return all(_same_kernel(first, other) for other in others)


def kernel_by_row(kernel: Kernel, rows: int) -> tuple[Kernel, str]:
    """The kernel with parameters of per-neuron shape reduced to (rows,), and a note.

    A row of a convolution serves many neurons; where their parameters differ, the mean counts.
    """
    notes: set[str] = set()

    def reduced(parameter: Tensor) -> Tensor:
        if parameter.numel() == 1:
            return parameter.reshape(())
        if parameter.numel() == rows:
            return parameter.reshape(rows)
        spread = parameter.reshape(rows, -1) if parameter.numel() % rows == 0 else parameter.reshape(1, -1)
        if not torch.equal(spread, spread[:, :1].expand_as(spread)):
            notes.add("time constants differ within a row; their mean counts")
        mean = spread.mean(1)
        return mean if len(mean) == rows else mean.reshape(())

    decays, gains = (tuple(map(reduced, parameters)) for parameters in (kernel.decays, kernel.gains))
    return Kernel(kernel.name, decays, gains, kernel.delay), "".join(notes)


def _mean_kernel(kernel: Kernel) -> tuple[Kernel, str]:
    """The kernel of neurons behind another weight, each of which every row reaches: their mean parameters."""
    uneven = any(not torch.equal(p, p.flatten()[0].expand_as(p)) for p in (*kernel.decays, *kernel.gains))
    decays, gains = (tuple(p.mean() for p in parameters) for parameters in (kernel.decays, kernel.gains))
    note = "time constants differ behind the next weight; their mean counts" if uneven else ""
    return Kernel(kernel.name, decays, gains, kernel.delay), note


def _same_kernel(one: Kernel, other: Kernel) -> bool:
    return (one.name, one.delay) == (other.name, other.delay) and all(
        map(torch.equal, (*one.decays, *one.gains), (*other.decays, *other.gains))
    )
