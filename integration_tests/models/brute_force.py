"""The membrane that never resets, simulated: the host's own neurons, one weight at a time, everything else held fast.

Nothing of the package's recording or filtering is used here: hooks and ``.activation`` are swapped by hand.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from norse.torch import LILinearCell
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

NEURONS = (SNN, SNNCell, SNNRecurrent, SNNRecurrentCell)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
INTEGRATORS = ("LI", "LICell", "LIBoxCell", "LILinearCell")

Run = Callable[[], Any]


def never_spiking(p: Any) -> Any:
    """The parameters with a threshold of 1e9; refractory ones hold those of a LIF."""
    if hasattr(p, "lif"):
        return p._replace(lif=never_spiking(p.lif))
    return p._replace(v_th=torch.as_tensor(p.v_th) * 0 + 1e9) if hasattr(p, "v_th") else p


def with_spikes(state: Any, z: Tensor | None) -> Any:
    if z is None:
        return state
    return state._replace(lif=state.lif._replace(z=z)) if hasattr(state, "lif") else state._replace(z=z)


def part(state: Any, name: str) -> Any:
    return getattr(getattr(state, "lif", state), name, None)


@contextmanager
def swapped(
    model: nn.Module, step: Callable[[str, Any, Any, Any, tuple[Any, ...]], tuple[Tensor, Any]]
) -> Iterator[None]:
    """Every neuron's ``activation(x, state, ...)`` becomes ``step(name, original, x, state, rest)``."""
    neurons = [(name, module) for name, module in model.named_modules() if isinstance(module, NEURONS)]
    readouts: list[Any] = [(name, module) for name, module in model.named_modules() if isinstance(module, LILinearCell)]
    originals = [module.activation for _, module in neurons]
    try:
        for name, module in readouts:
            own, rest = module.forward, (module.input_weights, module.p, module.dt)

            def forward(x: Tensor, state: Any = None, name: str = name, own: Any = own, rest: Any = rest) -> Any:
                return step(name, lambda x, state, *rest: own(x, state), x, state, rest)

            module.forward = forward
        for (name, module), original in zip(neurons, originals, strict=True):
            module.activation = lambda x, state, *rest, name=name, original=original: step(
                name, original, x, state, rest
            )
        yield
    finally:
        for (_, module), original in zip(neurons, originals, strict=True):
            module.activation = original
        for _, module in readouts:
            del module.forward


class Simulation:
    """One normal run, remembered; then runs that never reset, in which every input is the remembered one."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.model, self.run = model, run
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self.spikes: dict[str, list[tuple[Tensor | None, Tensor, Tensor]]] = defaultdict(list)

        def step(name: str, original: Any, x: Tensor, state: Any, rest: tuple[Any, ...]) -> tuple[Tensor, Any]:
            output, new = original(x, state, *rest)
            self.spikes[name].append((part(state, "z"), x, output))
            return output, new

        with ExitStack() as stack, torch.no_grad():
            for name, module in self.weights():
                hook = module.register_forward_pre_hook(
                    lambda _, inputs, name=name: self.inputs[name].append(inputs[0])
                )
                stack.callback(hook.remove)
            stack.enter_context(swapped(model, step))
            run()

    def weights(self) -> list[tuple[str, nn.Module]]:
        return [(name, module) for name, module in self.model.named_modules() if isinstance(module, WEIGHTS)]

    def membranes(self) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """v of every neuron and the output of every weight, at every step, with the weights that the model now has."""
        v: dict[str, list[Tensor]] = defaultdict(list)
        outputs: dict[str, list[Tensor]] = defaultdict(list)

        def step(name: str, original: Any, x: Tensor, state: Any, rest: tuple[Any, ...]) -> tuple[Tensor, Any]:
            z, recorded, output = self.spikes[name][len(v[name])]
            *matrices, p, dt = rest
            kind = type(self.model.get_submodule(name)).__name__
            x = recorded if matrices else x
            answer, new = original(x, with_spikes(state, z if matrices else None), *matrices, never_spiking(p), dt)
            v[name].append(part(new, "v"))
            return (answer if kind in INTEGRATORS else output), new

        def hold(name: str) -> Callable[..., tuple[Tensor]]:
            return lambda module, inputs: (self.inputs[name][len(outputs[name])],)

        with ExitStack() as stack, torch.no_grad():
            for name, module in self.weights():
                stack.callback(module.register_forward_pre_hook(hold(name)).remove)
                keep = module.register_forward_hook(lambda _, i, output, name=name: outputs[name].append(output))
                stack.callback(keep.remove)
            stack.enter_context(swapped(self.model, step))
            self.run()
        return v, outputs

    def hessian(
        self, tensors: list[Tensor], row: int, collect: Callable[[Any], Tensor], transposed: Any = None
    ) -> Tensor:
        """``2 sum D_i D_j`` over every response D to the columns of one row of the weights, taken one at a time.

        Args:
            tensors: the weights, rows first.
            row: which one.
            collect: what is looked at of :meth:`membranes`.
            transposed: the transposed convolution whose weight it is: (inputs, outputs of one group, *kernel).
        """
        saved = [tensor.clone() for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.zero_()
            rest = collect(self.membranes())
            columns = []
            for tensor in tensors:
                for entry in _columns(tensor, row, transposed):
                    entry.fill_(1.0)
                    columns.append(collect(self.membranes()) - rest)
                    entry.zero_()
        finally:
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)
        responses = torch.stack(columns)
        return 2 * responses @ responses.T


def _columns(tensor: Tensor, row: int, transposed: Any) -> Iterator[Tensor]:
    """Views of one entry each, those of a row, in the order (input, kernel position)."""
    weight, group, output = tensor.view(*tensor.shape[:2], -1), slice(row, row + 1), slice(None)
    if transposed is not None:
        inputs = len(tensor) // transposed.groups
        number, place = divmod(row, tensor.shape[1])
        group, output = slice(number * inputs, (number + 1) * inputs), slice(place, place + 1)
    for block in weight[group, output].split(1):
        for channel in block.split(1, 1):
            yield from channel[0, 0].split(1)
