"""NIR's neurons as Norse's, and back: time constants, resistance, input weight, leak, threshold and reset.

Both follow the same equations, Norse in steps of ``dt`` by Euler's method: a membrane moves by ``dt / tau`` of the way
to ``v_leak + r I``, a synapse by ``dt / tau_syn`` of the way to ``w_in S``. Of a neuron without leak (IF) the input is
a train of impulses, and the membrane moves by ``r S``, whatever dt is. All values in s and in the units of the file.
"""

from collections.abc import Callable
from typing import Any

import nir
import norse.torch as norse
import numpy
import torch
from norse.torch.functional.iaf import IAFFeedForwardState
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.functional.threshold import threshold
from norse.torch.utils.import_nir import CubaLIF
from torch import Tensor, nn

from sbc_plugin.errors import CheckpointError, SettingsError, UnsupportedModelError

Reset = Callable[..., Tensor]

RESETS: dict[str, Reset] = {"reset_value": reset_value, "reset_subtract": reset_subtract}
NEURON_NODES = (nir.LIF, nir.LI, nir.IF, nir.CubaLIF, nir.CubaLI)
PER_NEURON = ("tau", "tau_mem", "tau_syn", "r", "v_leak", "v_threshold", "v_reset", "w_in")
SLACK = 1e-6  # of dt / tau, for files that hold float32


class Gain(nn.Module):
    """Multiply by a constant: NIR's Scale."""

    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain)

    def forward(self, x: Tensor) -> Tensor:
        """``gain * x``."""
        return self.gain * x


class Scaled(nn.Module):
    """A neuron whose input is multiplied by its resistance first."""

    r: Tensor

    def __init__(self, r: Tensor, cell: nn.Module) -> None:
        super().__init__()
        self.register_buffer("r", r)
        self.cell = cell

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """One step of the neuron with input ``r * x``."""
        return self.cell(self.r * x, state)


class Cascade(nn.Module):
    """A synapse followed by a membrane: v follows r I, and I follows w_in S."""

    w_in: Tensor
    r: Tensor

    def __init__(self, w_in: Tensor, synapse: nn.Module, r: Tensor, lif: nn.Module) -> None:
        super().__init__()
        self.register_buffer("w_in", w_in)
        self.register_buffer("r", r)
        self.synapse, self.lif = synapse, lif

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """One step of synapse and membrane."""
        before, after = (None, None) if state is None else state
        current, before = self.synapse(self.w_in * x, before)
        output, after = self.lif(self.r * current, after)
        return output, (before, after)


# What node_of turns into a node.
NEURON_CLASSES = (
    Scaled,
    Cascade,
    CubaLIF,
    norse.LIFBoxCell,
    norse.LIBoxCell,
    norse.IAFCell,
    norse.IAF,
    norse.LIFCell,
    norse.LIF,
    norse.LIFRecurrentCell,
    norse.LIFRecurrent,
    norse.LICell,
    norse.LI,
)


def subtracting_step(x: Tensor, state: Any, p: Any, dt: float) -> tuple[Tensor, Any]:
    """A step of an integrate-and-fire neuron that subtracts its threshold at a spike; Norse's own resets to a value."""
    v = state.v + x
    z = threshold(v - p.v_th, p.method, p.alpha)
    return z, IAFFeedForwardState(v=reset_subtract(z, v, p.v_reset, p.v_th))


def neuron_of(node: Any, dt: float, reset: Reset) -> nn.Module:
    """The Norse neuron of a NIR node. Parameters that are the same for all neurons become scalars.

    A CubaLIF or CubaLI whose synapse adds each spike to the current (w_in = tau_syn / dt, r = 1) is Norse's LIF or LI.

    Raises:
        SettingsError: dt is longer than a time constant.
        CheckpointError: a parameter that is no finite number, or a time constant that is not positive.
        UnsupportedModelError: a reset method that the neuron does not have.
    """
    for name in PER_NEURON:
        if hasattr(node, name):
            # An infinite time constant means no leak, an infinite threshold no spikes. Subtracting it would give NaN.
            limitless = name.startswith("tau") or (name == "v_threshold" and reset is reset_value)
            try:
                numbers(getattr(node, name), finite=not limitless)
            except CheckpointError as error:
                raise CheckpointError(f"its {name} holds {error}") from None
    if isinstance(node, nir.IF):
        return _integrate_and_fire(node, dt, reset)
    leak = _tensor(node.v_leak)
    if isinstance(node, nir.LIF | nir.LI):
        rate = _rate(node.tau, dt)
        box = _lif_box(node, rate, leak, dt, reset) if isinstance(node, nir.LIF) else _li_box(rate, leak, dt)
        return _scaled(node.r, box)
    synapse, membrane = _rate(node.tau_syn, dt), _rate(node.tau_mem, dt)
    spiking = isinstance(node, nir.CubaLIF)
    if _jumps(node, dt) and (reset is reset_value or not spiking):
        whole: nn.Module = norse.LICell(norse.LIParameters(synapse, membrane, leak), dt=dt)
        if spiking:
            th, to = _tensor(node.v_threshold), _tensor(node.v_reset)
            whole = norse.LIFCell(norse.LIFParameters(synapse, membrane, leak, th, to), dt=dt)
        return whole
    current = _li_box(synapse, torch.tensor(0.0, device="cpu"), dt)
    last = _lif_box(node, membrane, leak, dt, reset) if spiking else _li_box(membrane, leak, dt)
    return Cascade(_tensor(node.w_in), current, _tensor(node.r), last)


def node_of(neuron: nn.Module, shape: tuple[int, ...]) -> Any:
    """The NIR node of a Norse neuron, its parameters of the full ``shape``, float64 so that rates come back exactly.

    Raises:
        UnsupportedModelError: NIR has no node for this neuron.
    """
    r = torch.tensor(1.0, device="cpu")
    if isinstance(neuron, Scaled):
        r, neuron = neuron.r, neuron.cell

    def full(value: Any) -> Any:
        return numpy.broadcast_to(_array(value), shape).copy()

    def tau(rate: Any) -> Any:
        return full(1 / _array(rate))

    p: Any = getattr(neuron, "p", None)
    if isinstance(neuron, Cascade | CubaLIF):
        cascade: Any = neuron
        p, synapse = cascade.lif.p, cascade.synapse.p
        if _array(synapse.v_leak).any():
            raise UnsupportedModelError(
                "its synapse leaks to a current other than 0, which NIR has no word for (norse.from_nir makes it so "
                "wherever v_leak is not 0); read the file with sbc_plugin.nir.read"
            )
        times = {"tau_syn": tau(synapse.tau_mem_inv), "tau_mem": tau(p.tau_mem_inv), "v_leak": full(p.v_leak)}
        weights = {"r": full(neuron.r), "w_in": full(neuron.w_in)}
        if isinstance(neuron.lif, norse.LIFBoxCell):
            return nir.CubaLIF(**times, **weights, v_threshold=full(p.v_th), v_reset=full(p.v_reset))
        return nir.CubaLI(**times, **weights)
    if isinstance(neuron, norse.LIFBoxCell):
        times = {"tau": tau(p.tau_mem_inv), "v_leak": full(p.v_leak)}
        return nir.LIF(**times, r=full(r), v_threshold=full(p.v_th), v_reset=full(p.v_reset))
    if isinstance(neuron, norse.LIBoxCell):
        return nir.LI(tau=tau(p.tau_mem_inv), r=full(r), v_leak=full(p.v_leak))
    if isinstance(neuron, norse.IAFCell | norse.IAF):
        return nir.IF(r=full(r), v_threshold=full(p.v_th), v_reset=full(p.v_reset))
    lif = norse.LIFCell | norse.LIF | norse.LIFRecurrentCell | norse.LIFRecurrent
    if isinstance(neuron, lif | norse.LICell | norse.LI | norse.LILinearCell):
        times = {"tau_syn": tau(p.tau_syn_inv), "tau_mem": tau(p.tau_mem_inv), "v_leak": full(p.v_leak)}
        weights = {"r": full(r), "w_in": full(1 / (float(neuron.dt) * _array(p.tau_syn_inv)))}
        if isinstance(neuron, lif):
            return nir.CubaLIF(**times, **weights, v_threshold=full(p.v_th), v_reset=full(p.v_reset))
        return nir.CubaLI(**times, **weights)
    raise UnsupportedModelError(
        f"{type(neuron).__name__} has no counterpart in NIR; it holds LIFBox, LIF, LIFRecurrent, IAF, LI and LIBox"
    )


def reset_of(neuron: nn.Module) -> Reset:
    """The function by which a neuron resets; ``reset_value`` for those that know no other."""
    inner: Any = getattr(neuron, "lif", getattr(neuron, "cell", neuron))
    if getattr(inner, "activation", None) is subtracting_step:
        return RESETS["reset_subtract"]
    reset: Reset = getattr(getattr(inner, "p", None), "reset_method", reset_value)
    return reset


def reset_named(method: str | Reset) -> Reset:
    """A reset method by Norse's name for it, or as it is given.

    Raises:
        SettingsError: an unknown name.
    """
    reset = RESETS.get(method) if isinstance(method, str) else method
    if not callable(reset):
        known = ", ".join(map(repr, RESETS))
        raise SettingsError(f"reset_method={method!r} is unknown; use one of {known}, or give the function itself")
    return reset


def _integrate_and_fire(node: Any, dt: float, reset: Reset) -> nn.Module:
    cell = norse.IAFCell(norse.IAFParameters(v_th=_tensor(node.v_threshold), v_reset=_tensor(node.v_reset)), dt=dt)
    if reset is reset_subtract:
        cell.activation = subtracting_step
    elif reset is not reset_value:
        raise UnsupportedModelError(
            "IF resets by reset_value or reset_subtract only; choose one, or use LIF with a long time constant"
        )
    return _scaled(node.r, cell)


def _jumps(node: Any, dt: float) -> bool:
    """Whether the synapse is Norse's: an input of 1 moves the current by 1, whatever the step."""
    with numpy.errstate(over="ignore"):
        per_spike = _array(node.w_in) * dt / _array(node.tau_syn)
    return bool(numpy.allclose(per_spike, 1, rtol=0, atol=1e-9) and (_array(node.r) == 1).all())


def _li_box(rate: Tensor, leak: Tensor, dt: float) -> nn.Module:
    cell: nn.Module = norse.LIBoxCell(norse.LIBoxParameters(rate, leak), dt=dt)
    return cell


def _lif_box(node: Any, rate: Tensor, leak: Tensor, dt: float, reset: Reset) -> nn.Module:
    th, to = _tensor(node.v_threshold), _tensor(node.v_reset)
    parameters = norse.LIFBoxParameters(tau_mem_inv=rate, v_leak=leak, v_th=th, v_reset=to, reset_method=reset)
    cell: nn.Module = norse.LIFBoxCell(parameters, dt=dt)
    return cell


def _scaled(r: Any, cell: Any) -> nn.Module:
    return cell if (numpy.asarray(r) == 1).all() else Scaled(_tensor(r), cell)


def _array(value: Any) -> Any:
    value = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
    return numpy.asarray(value, numpy.float64)


def numbers(value: Any, dtype: Any = numpy.float64, finite: bool = True) -> Any:
    """The numbers of a node as an array of ``dtype``, copied.

    Raises:
        CheckpointError: text or complex numbers, NaN, or, with ``finite``, numbers that are infinite in ``dtype``.
    """
    array = numpy.asarray(value)
    if array.dtype.kind not in "biuf":
        raise CheckpointError(f"values of type {array.dtype} where real numbers are needed; the file is damaged")
    with numpy.errstate(over="ignore"):
        array = array.astype(dtype)
    if numpy.isnan(array).any() or (finite and not numpy.isfinite(array).all()):
        raise CheckpointError(f"NaN, infinity or numbers beyond {numpy.dtype(dtype)}; the file is damaged")
    return array


def _tensor(value: Any) -> Tensor:
    array = _array(value)
    if array.size and (array == array.flat[0]).all():
        array = array.flat[0]
    tensor = torch.as_tensor(array, dtype=torch.float64, device="cpu").float()
    if bool((tensor.isinf() & torch.as_tensor(numpy.isfinite(array), device="cpu")).any()):
        raise CheckpointError(f"numbers up to {abs(array).max():g}, which float32 cannot hold; the file is damaged")
    return tensor


def _rate(tau: Any, dt: float) -> Tensor:
    array = _array(tau)
    if not (array > 0).all():
        raise CheckpointError(f"a time constant of {array.min():g} s; the file is damaged")
    if (dt > array * (1 + SLACK)).any():
        raise SettingsError(
            f"dt={dt:g} s is longer than a time constant of {array.min():g} s; a NIR file does not say the time step "
            "of the network it holds: give dt="
        )
    with numpy.errstate(over="ignore"):
        return _tensor(1 / array)
