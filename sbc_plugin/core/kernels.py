"""Impulse responses of membranes, and causal filtering along time.

Below threshold every neuron treated here is a cascade of first-order recurrences

    y[t] = decay * y[t-1] + gain * x[t]                                                                          (6)

so its impulse response ``h`` is known in closed form and ``M x`` costs O(T). A :class:`Kernel` holds the cascade; its
parameters are scalars, or (variants,) when neurons of one layer have different time constants.
Source: docs/theory.md, section "Kernels".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbc_plugin.errors import SettingsError

Parameter = Tensor | float


@dataclass(frozen=True)
class Kernel:
    """A cascade of recurrences (6), one ``(decay, gain)`` a stage, answering ``delay`` steps late.

    Attributes:
        name: for reports, e.g. "lif_box".
        decays: of each stage, scalar () or (variants,), dimensionless, per time step.
        gains: as ``decays``.
        delay: steps between an input and the first answer.
    """

    name: str
    decays: tuple[Tensor, ...] = ()
    gains: tuple[Tensor, ...] = ()
    delay: int = 0

    @property
    def variants(self) -> int | None:
        """How many different responses there are; None for a single one without an axis of its own."""
        sizes = [parameter.numel() for parameter in (*self.decays, *self.gains) if parameter.dim()]
        return max(sizes) if sizes else None

    @property
    def is_identity(self) -> bool:
        """Whether the answer is the input itself (M = I)."""
        return not self.decays and self.delay == 0

    def then(self, other: "Kernel") -> "Kernel":
        """The kernel of this cascade followed by another, e.g. a synapse and then a membrane."""
        name = f"{self.name} > {other.name}"
        return Kernel(name, self.decays + other.decays, self.gains + other.gains, self.delay + other.delay)


def _stage(decay: Parameter, gain: Parameter) -> tuple[Tensor, Tensor]:
    return _float64(decay), _float64(gain)


def _float64(value: Parameter) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def _cascade(name: str, *stages: tuple[Parameter, Parameter], delay: int = 0) -> Kernel:
    tensors = [_stage(*stage) for stage in stages]
    return Kernel(name, tuple(decay for decay, _ in tensors), tuple(gain for _, gain in tensors), delay)


def delta() -> Kernel:
    """h = [1]: M = I, the current-based Hessian of OBC and GPTQ."""
    return Kernel("delta")


def sum_over_time() -> Kernel:
    """h[k] = 1, for a readout summed over time.

    >>> impulse_response(sum_over_time(), 3).tolist()
    [1.0, 1.0, 1.0]
    """
    return _cascade("sum", (1.0, 1.0))


def iaf() -> Kernel:
    """h[k] = 1: integrate and fire, ``v += x``."""
    return _cascade("iaf", (1.0, 1.0))


def lif_box(alpha: Parameter) -> Kernel:
    """h[k] = a (1-a)^k, a = dt / tau_mem (dimensionless): ``v += a (x - v)``, the paper's kernel with tau = 1/a.

    >>> impulse_response(lif_box(0.5), 3).tolist()
    [0.5, 0.25, 0.125]
    """
    alpha = _float64(alpha)
    return _cascade("lif_box", (1 - alpha, alpha))


def lif(alpha: Parameter, beta: Parameter, delay: int = 0) -> Kernel:
    """h[k] = a sum_{j<=k} (1-a)^(k-j) (1-b)^j, a = dt / tau_mem, b = dt / tau_syn.

    Norse's LIF: ``i += x; v += a (i - v); i -= b i``.

    Args:
        alpha: a, scalar or (variants,).
        beta: b, scalar or (variants,).
        delay: 1 where the membrane sees the current one step late (LSNN).

    Returns:
        The kernel.

    >>> impulse_response(lif(0.5, 0.5), 3).tolist()
    [0.5, 0.5, 0.375]
    """
    alpha, beta = _float64(alpha), _float64(beta)
    return _cascade("lif", (1 - beta, 1.0), (1 - alpha, alpha), delay=delay)


class CausalFilter:
    """Applies a kernel step by step, keeping one state a stage, so memory does not grow with T.

    Args:
        kernel: with V variants the answer gains a leading axis: (V, ...) for an input (...).

    >>> causal = CausalFilter(lif_box(0.5))
    >>> [causal.step(torch.tensor(x)).item() for x in (1.0, 0.0, 0.0)]
    [0.5, 0.25, 0.125]
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.reset()

    def reset(self) -> None:
        """Forget the past: a new sequence begins."""
        self._states: list[Tensor | None] = [None] * len(self.kernel.decays)
        self._late: list[Tensor] = []

    def step(self, x: Tensor) -> Tensor:
        """Answer to one more step ``x`` (...): (...), or (variants, ...). ``x`` must be floating point."""
        variants = self.kernel.variants
        if variants is not None:
            x = x.expand(variants, *x.shape)
        for stage, (decay, gain) in enumerate(zip(self.kernel.decays, self.kernel.gains, strict=True)):
            past, new = self._states[stage], x * _broadcast(gain, x)
            if past is not None:
                new = torch.addcmul(new, past, _broadcast(decay, x))
            self._states[stage] = x = new
        if self.kernel.delay:
            self._late.append(x)
            x = self._late.pop(0) if len(self._late) > self.kernel.delay else torch.zeros_like(x)
        return x


def _broadcast(parameter: Tensor, x: Tensor) -> Tensor:
    parameter = parameter.to(x)
    return parameter.reshape(-1, *[1] * (x.dim() - 1)) if parameter.dim() else parameter


def filter_causal(x: Tensor, kernel: Kernel) -> Tensor:
    """``M x``: convolve ``x`` (T, ...) with the kernel along time, in O(T). Source: docs/theory.md, equation 1.

    Returns:
        (T, ...), or (variants, T, ...) for a kernel with variants.

    >>> filter_causal(torch.eye(3)[:, 0], lif_box(0.5)).tolist()
    [0.5, 0.25, 0.125]
    """
    causal = CausalFilter(kernel)
    return torch.stack([causal.step(step) for step in x], dim=0 if kernel.variants is None else 1)


def impulse_response(kernel: Kernel, steps: int) -> Tensor:
    """``h`` in float64, (steps,) or (variants, steps)."""
    impulse = torch.zeros(steps, dtype=torch.float64, device="cpu")
    impulse[:1] = 1.0
    return filter_causal(impulse, kernel)


def distinct(kernel: Kernel, neurons: int, limit: int) -> tuple[Kernel, Tensor]:
    """Reduce per-neuron parameters to at most ``limit`` responses.

    Neurons with equal parameters share a response. Where there are more than ``limit``, neurons are sorted by memory
    (the mean log of 1 - decay), cut into ``limit`` equal parts, and each part takes its mean parameters.

    Args:
        kernel: parameters scalar or (neurons,).
        neurons: N, rows of the layer.
        limit: the most responses wanted.

    Returns:
        The kernel with scalar parameters or (variants,), and the variant of each neuron, (neurons,).

    Raises:
        SettingsError: the kernel has parameters for another number of neurons.

    >>> reduced, of_neuron = distinct(lif_box(torch.tensor([0.5, 0.1, 0.5])), 3, limit=4)
    >>> reduced.variants, of_neuron.tolist()
    (2, [0, 1, 0])
    """
    if kernel.variants in (None, 1):
        decays, gains = (tuple(p.reshape(()) for p in part) for part in (kernel.decays, kernel.gains))
        return Kernel(kernel.name, decays, gains, kernel.delay), torch.zeros(neurons, dtype=torch.long, device="cpu")
    if kernel.variants != neurons:
        raise SettingsError(
            f"kernel {kernel.name!r} has parameters for {kernel.variants} neurons, the layer has {neurons}"
        )
    parameters = torch.stack([p.detach().cpu().expand(neurons) for p in (*kernel.decays, *kernel.gains)], dim=1)
    unique, variant = parameters.unique(dim=0, return_inverse=True)
    if len(unique) > limit:
        memory = (1 - parameters[:, : len(kernel.decays)]).clamp_min(1e-12).log().mean(1)
        variant = torch.empty(neurons, dtype=torch.long, device="cpu")
        for part, members in enumerate(memory.argsort(stable=True).tensor_split(limit)):
            variant[members] = part
        unique = torch.stack([parameters[variant == part].mean(0) for part in range(limit)])
    stages = len(kernel.decays)
    columns = [column.contiguous() for column in unique.unbind(1)]
    if len(unique) == 1:
        columns = [column.reshape(()) for column in columns]
    return Kernel(kernel.name, tuple(columns[:stages]), tuple(columns[stages:]), kernel.delay), variant
