"""One forward pass that shows which calls of weights each neuron step integrates, and where every output goes.

Each weight and each neuron returns tensors that carry a tag, so that :mod:`sbc_plugin.norse.autograd_paths` can follow
a neuron's input back to the calls that it came from.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.core.matrix_form import MatrixForm, matrix_form
from sbc_plugin.layers import Forward
from sbc_plugin.norse.autograd_paths import Origin, Path, origins, tagged
from sbc_plugin.norse.layer_checks import WEIGHTS, cell_input_check, check_plain, weight_input_check
from sbc_plugin.norse.neurons import NEURONS, RECURRENT, is_integrator, state_tensor
from sbc_plugin.norse.recording import Step, intercept_steps


class Chain(NamedTuple):
    """Steps of one neuron that hand one state on.

    Attributes:
        neuron: its name.
        number: counts the neuron's chains.
    """

    neuron: str
    number: int


class Use(NamedTuple):
    """A weight call's output, integrated at one neuron step.

    Attributes:
        chain: that the step belongs to.
        neurons: the cascade's modules, the integrating neuron last.
        path: between weight and neuron.
        batch: sequences in the step.
    """

    chain: Chain
    neurons: tuple[nn.Module, ...]
    path: Path
    batch: int


@dataclass
class WeightCall:
    """One call of a weight module.

    Attributes:
        length: first axis of its input.
        sources: what its input came from.
        uses: neuron steps that integrated its output; of integrators only as long as no spiking neuron follows.
        provisional: whether the uses are integrators'.
        outputs: paths from this call to the model's output.
        successors: weights that took its output without a neuron in between.
    """

    length: int
    sources: list[tuple[Origin, Path]]
    uses: list[Use] = field(default_factory=list)
    provisional: bool = True
    outputs: list[Path] = field(default_factory=list)
    successors: list[tuple[str, Path]] = field(default_factory=list)

    def add(self, use: Use, spiking: bool) -> None:
        """Write down a use; a spiking neuron's replaces those of the integrators on the way to it."""
        if spiking and self.provisional:
            self.uses, self.provisional = [], False
        if spiking != self.provisional:
            self.uses.append(use)


@dataclass
class Trace:
    """What one pass showed.

    Attributes:
        weights: name -> module, for all that have a matrix form.
        calls: name -> its calls, in order.
        recurrent: recurrent cells that ran: name -> module.
        order: names of both, as they first ran.
        steps: how many steps each chain has.
    """

    weights: dict[str, nn.Module] = field(default_factory=dict)
    calls: dict[str, list[WeightCall]] = field(default_factory=dict)
    recurrent: dict[str, nn.Module] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    steps: dict[Chain, int] = field(default_factory=dict)


def trace(model: nn.Module, batch: Any, forward: Forward) -> Trace:
    """Run one batch with gradients enabled and follow each neuron's input back to the weights it came from.

    Raises:
        CalibrationError: an input does not fit its layer.
        UnsupportedModelError: a weight is parametrised or pruned by hooks.
    """
    check_plain(model)
    tracer = _Tracer(model)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for handle in tracer.hooks():
            stack.callback(handle.remove)
        stack.enter_context(intercept_steps(model, tracer.on_step))
        output = forward(model, _normal(batch))
    for tensor in tensors_in(output):
        for origin, path in origins(tensor):
            for call, full in tracer.weight_calls(origin, path):
                call.outputs.append(full)
    return tracer.trace


class _Tracer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trace = Trace()
        self.fresh: set[str] = set()
        self.chains: dict[str, int] = {}
        self.integrated: dict[Origin, tuple[nn.Module, list[tuple[Origin, Path]]]] = {}
        self.count: dict[str, int] = {}

    def hooks(self) -> Iterable[Any]:
        for name, module in self.model.named_modules():
            if isinstance(module, WEIGHTS):
                self.trace.weights[name] = module
                yield module.register_forward_hook(self._on_weight(name, matrix_form(module)))
                yield module.register_forward_pre_hook(weight_input_check(name, matrix_form(module)))
            elif isinstance(module, NEURONS):
                yield module.register_forward_pre_hook(self._on_neuron(name), with_kwargs=True)
            if isinstance(module, RECURRENT):
                yield module.register_forward_pre_hook(cell_input_check(name))

    def _on_weight(self, name: str, form: MatrixForm) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name not in self.trace.calls:
                self.trace.order.append(name)
            calls = self.trace.calls.setdefault(name, [])
            sources = origins(inputs[0])
            for origin, path in sources:
                for call, full in self.weight_calls(origin, path):
                    call.successors.append((name, full))
            calls.append(WeightCall(len(inputs[0]), sources))
            return tagged(output, Origin("weight", name, len(calls) - 1))

        return hook

    def _on_neuron(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            state = inputs[1] if len(inputs) > 1 else named.get("state")
            if state is None:
                self.fresh.add(name)

        return hook

    def on_step(self, step: Step) -> tuple[Tensor, Any]:
        chain = self._chain(step)
        integrator = is_integrator(step.neuron)
        number = self.count[step.name] = self.count.get(step.name, -1) + 1
        sources = origins(step.x)
        for origin, path in sources:
            for call, full, cascade in self._cascades(origin, path):
                call.add(Use(chain, (*cascade, step.neuron), full, len(step.x)), spiking=not integrator)
        if step.weights and step.name not in self.trace.recurrent:
            self.trace.order.append(step.name)
            self.trace.recurrent[step.name] = step.neuron
        output, state = step.run(step.x.detach())
        here = Origin("integrator" if integrator else "neuron", step.name, number)
        if integrator:
            self.integrated[here] = (step.neuron, sources)
        state = detached(state)
        self._mark(state, chain)
        return tagged(output, here), state

    def _cascades(
        self, origin: Origin, path: Path, cascade: tuple[nn.Module, ...] = ()
    ) -> Iterable[tuple[WeightCall, Path, tuple[nn.Module, ...]]]:
        """The weight calls behind an origin, through integrators, with the integrators passed on the way."""
        if origin.kind == "weight":
            yield self.trace.calls[origin.name][origin.call], path, cascade
        elif origin.kind == "integrator" and not path.nonlinear:
            neuron, sources = self.integrated[origin]
            for earlier, before in sources:
                yield from self._cascades(earlier, before.before(path), (neuron, *cascade))

    def weight_calls(self, origin: Origin, path: Path) -> Iterable[tuple[WeightCall, Path]]:
        if origin.kind == "weight":
            yield self.trace.calls[origin.name][origin.call], path

    def _chain(self, step: Step) -> Chain:
        chain = getattr(state_tensor(step.state, "v"), "sbc_chain", None)
        if chain is None:
            # A state that lost its mark (detached by the model) goes on in the neuron's last chain.
            if step.name in self.fresh or step.name not in self.chains:
                self.chains[step.name] = self.chains.get(step.name, -1) + 1
            chain = Chain(step.name, self.chains[step.name])
        self.fresh.discard(step.name)
        self.trace.steps[chain] = self.trace.steps.get(chain, 0) + 1
        return chain

    @staticmethod
    def _mark(state: Any, chain: Chain) -> None:
        v = state_tensor(state, "v")
        if v is not None:
            v.sbc_chain = chain  # type: ignore[attr-defined]


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a forward's result: itself, or those of a tuple, list or dict."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in tensors_in(item)] if isinstance(output, tuple | list) else []


def _normal(batch: Any) -> Any:
    """The batch with inference tensors cloned: autograd does not take them."""
    if isinstance(batch, Tensor):
        return batch.clone() if batch.is_inference() else batch
    if isinstance(batch, dict):
        return {key: _normal(value) for key, value in batch.items()}
    return type(batch)(map(_normal, batch)) if type(batch) in (tuple, list) else batch


def detached(state: Any) -> Any:
    """The state with every tensor cut from the graph, in the same nested NamedTuples."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        values = [detached(value) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    return state
