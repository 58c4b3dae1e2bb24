"""Norse's neurons: which impulse response each has, and where its state keeps v, i and z.

A neuron is *linear below threshold* if, as long as it does not spike, its membrane is a cascade of first-order
recurrences of its input. Those have a kernel here, and a test compares each with the neuron's own measured response. Of
the rest, the classes that Norse ships are compressed with M = I, which the report says; a class without a
description is refused. :func:`register_neuron` describes one.
"""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import torch
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from norse.torch.utils.import_nir import CubaLIF
from torch import Tensor, nn

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import Kernel
from sbc_plugin.errors import UnsupportedModelError

RECURRENT = (SNNRecurrentCell, SNNRecurrent)
WITH_WEIGHTS = (*RECURRENT, norse.LILinearCell)
NEURONS = (SNNCell, SNN, *WITH_WEIGHTS)
SEQUENCE = (SNN, SNNRecurrent)

UNREACHABLE = 1e9  # not inf: reset_subtract computes 0 * (v - v_th), which is nan

KernelRule = Callable[[nn.Module], Kernel]


def _rate(neuron: nn.Module, name: str) -> Tensor:
    # In the host's own precision, as its step computes it; only then float64.
    parameters, dt = getattr(neuron.p, "lif", neuron.p), float(neuron.dt)  # type: ignore[arg-type]
    return (dt * tensor_of(getattr(parameters, name)).detach()).double()


def tensor_of(value: Any) -> Tensor:
    """A neuron's parameter as a tensor; a number becomes one on the CPU, where it goes with tensors of any device."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def _lif_box(neuron: nn.Module) -> Kernel:
    return kernels.lif_box(_rate(neuron, "tau_mem_inv"))


def _lif(neuron: nn.Module) -> Kernel:
    return kernels.lif(_rate(neuron, "tau_mem_inv"), _rate(neuron, "tau_syn_inv"))


def _lsnn(neuron: nn.Module) -> Kernel:
    return kernels.lif(_rate(neuron, "tau_mem_inv"), _rate(neuron, "tau_syn_inv"), delay=1)


def _iaf(neuron: nn.Module) -> Kernel:
    return kernels.iaf()


_RULES: dict[type[nn.Module], KernelRule] = {
    norse.LIFBoxCell: _lif_box,
    norse.LIBoxCell: _lif_box,
    norse.LIFCell: _lif,
    norse.LIF: _lif,
    norse.LIFRecurrentCell: _lif,
    norse.LIFRecurrent: _lif,
    norse.LIFRefracCell: _lif,
    norse.LIFRefracRecurrentCell: _lif,
    norse.LIFRefracRecurrent: _lif,
    norse.LICell: _lif,
    norse.LI: _lif,
    norse.LILinearCell: _lif,
    norse.LSNNCell: _lsnn,
    norse.LSNN: _lsnn,
    norse.LSNNRecurrentCell: _lsnn,
    norse.LSNNRecurrent: _lsnn,
    norse.IAFCell: _iaf,
    norse.IAF: _iaf,
}
_INTEGRATORS = (norse.LIBoxCell, norse.LICell, norse.LI, norse.LILinearCell)
_NONLINEAR = tuple(
    getattr(norse, name)
    for name in dir(norse)
    if name.startswith(("LIFEx", "LIFAdEx", "Izhikevich", "LIFMC"))
    and isinstance(getattr(norse, name), type)
    and issubclass(getattr(norse, name), NEURONS)
)


def register_neuron(cls: type[nn.Module], rule: KernelRule) -> None:
    """Teach a neuron class of one's own: ``rule(neuron)`` returns the kernel of its membrane below threshold.

    The class must keep its step in ``.activation(x, state, p, dt)``, as Norse's ``SNNCell`` and ``SNN`` do.

    Raises:
        UnsupportedModelError: the class is no Norse neuron.
    """
    if not issubclass(cls, NEURONS):
        raise UnsupportedModelError(
            f"{cls.__name__} is not a subclass of Norse's SNNCell, SNN or their recurrent forms"
        )
    _RULES[cls] = rule


def kernel_of(name: str, neuron: nn.Module) -> tuple[Kernel, str]:
    """The kernel of a neuron, per-neuron parameters still in their own shape, and a note for the report ("" if exact).

    Raises:
        UnsupportedModelError: a class without a rule.
    """
    for cls in type(neuron).__mro__:
        if cls in _RULES:
            return _RULES[cls](neuron), ""
    kind = type(neuron).__name__
    if isinstance(neuron, _NONLINEAR):
        return kernels.delta(), f"{kind} is not linear below threshold: M = I"
    raise UnsupportedModelError(
        f"neuron {name!r} of class {kind} has no rule; describe its membrane with sbc_plugin.norse.register_neuron, "
        "or use Calibration(temporal=False)"
    )


def is_neuron(module: nn.Module) -> bool:
    """Whether the module is a neuron, or Norse's import of NIR's CubaLIF: a scale, a synapse, a scale and a neuron."""
    return isinstance(module, (*NEURONS, CubaLIF))


def holds_weights(module: nn.Module) -> bool:
    """Whether the module is a neuron with weights of its own."""
    return isinstance(module, WITH_WEIGHTS)


def own_weights(neuron: nn.Module) -> tuple[str, ...]:
    """The attributes of a neuron's own weights whose products its current is, (neurons, inputs) each."""
    if isinstance(neuron, RECURRENT):
        return ("input_weights", "recurrent_weights")
    return ("input_weights",) if isinstance(neuron, WITH_WEIGHTS) else ()


def is_integrator(neuron: nn.Module) -> bool:
    """Whether the neuron never spikes and passes its membrane on: a synapse, or a readout."""
    return isinstance(neuron, _INTEGRATORS)


def is_spiking(neuron: nn.Module) -> bool:
    """Whether the module is a Norse neuron that spikes."""
    return isinstance(neuron, NEURONS) and not is_integrator(neuron)


def state_tensor(state: Any, name: str) -> Tensor | None:
    """``v``, ``i`` or ``z`` of a neuron's state, also where it is nested (LIFRefrac); None if it has none."""
    value = getattr(state, name, None)
    if value is None and hasattr(state, "lif"):
        value = getattr(state.lif, name, None)
    return value


def threshold_of(neuron: nn.Module) -> Tensor | None:
    """The threshold of a neuron that spikes, scalar or a value a neuron; None where it has none of that name."""
    parameters = getattr(neuron, "p", None)
    value = getattr(getattr(parameters, "lif", parameters), "v_th", None) if is_spiking(neuron) else None
    return None if value is None else tensor_of(value)


def below_threshold(neuron: nn.Module, state: Any) -> tuple[Any, Any] | None:
    """(parameters, state) with a threshold that no membrane reaches: a step then shows v before reset.

    None for neurons without a threshold, and for those whose threshold shapes the membrane itself (LIFEx, LIFAdEx).
    """
    parameters = _unreachable(neuron.p)
    if parameters is None or isinstance(neuron, _NONLINEAR):
        return None
    if hasattr(state, "b"):  # LSNN compares with an adapting threshold, which follows v_th only slowly
        state = state._replace(b=torch.full_like(state.b, UNREACHABLE))
    return parameters, state


def _unreachable(parameters: Any) -> Any:
    if hasattr(parameters, "lif"):
        return parameters._replace(lif=_unreachable(parameters.lif))
    if not hasattr(parameters, "v_th") or not hasattr(parameters, "_replace"):
        return None
    return parameters._replace(v_th=torch.full_like(tensor_of(parameters.v_th), UNREACHABLE))
