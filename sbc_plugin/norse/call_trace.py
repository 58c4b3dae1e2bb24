"""One forward pass that shows which calls of weights each neuron step integrates, and where every output goes.

Each weight and each neuron returns tensors that carry a tag, so that :mod:`sbc_plugin.norse.autograd_paths` can follow
a neuron's input back to the calls that it came from.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.core.matrix_form import WEIGHTED
from sbc_plugin.layers import Forward
from sbc_plugin.norse.autograd_paths import Origin, Path, origins, tagged
from sbc_plugin.norse.layer_checks import cell_input_check, check_plain, weight_input_check
from sbc_plugin.norse.neurons import NEURONS, WITH_WEIGHTS, is_integrator, state_tensor
from sbc_plugin.norse.steps import Step, intercept_steps
from sbc_plugin.norse.weights import computes_its_product, form_of, is_of_base_class


class Chain(NamedTuple):
    """Steps of one neuron that hand one state on.

    Attributes:
        neuron: its name.
        number: counts the neuron's chains: each call without a state begins one.
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
        """Note a use; the first one by a spiking neuron replaces those of the integrators on the way to it."""
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
        cells: neurons with weights of their own that ran: name -> module.
        order: names of both, as they first ran.
        steps: how many steps each chain has.
        foreign: subclasses of weights' modules that compute something else: name -> class.
    """

    weights: dict[str, nn.Module] = field(default_factory=dict)
    calls: dict[str, list[WeightCall]] = field(default_factory=dict)
    cells: dict[str, nn.Module] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    steps: dict[Chain, int] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)


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
        output = forward(model, _for_autograd(batch))
    for tensor in tensors_in(output):
        for call, path in tracer.calls_before(origins(tensor)):
            call.outputs.append(path)
    return tracer.trace


class _Tracer:
    """Hooks on weights and neurons that fill a :class:`Trace` while the model runs.

    Attributes:
        trace: what has been seen so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trace = Trace()
        self._fresh: set[str] = set()  # neurons called without a state, whose next step begins a chain
        self._last_chain: dict[str, Chain] = {}
        self._steps_run: dict[str, int] = {}
        self._integrated: dict[Origin, tuple[nn.Module, list[tuple[Origin, Path]]]] = {}

    def hooks(self) -> Iterator[Any]:
        """Register a hook on every weight and neuron; the handles."""
        for name, module in self.model.named_modules():
            if isinstance(module, WEIGHTED):
                self.trace.weights[name] = module
                yield module.register_forward_hook(self._on_weight(name))
                if is_of_base_class(module):
                    yield module.register_forward_pre_hook(weight_input_check(name, form_of(module)))
            elif isinstance(module, NEURONS):
                yield module.register_forward_pre_hook(self._on_neuron(name), with_kwargs=True)
            if isinstance(module, WITH_WEIGHTS):
                yield module.register_forward_pre_hook(cell_input_check(name))

    def on_step(self, step: Step) -> tuple[Tensor, Any]:
        """Note what one neuron step integrates, run it, and tag what it returns."""
        # 1. The weight calls behind the step's input.
        chain, integrator = self._chain(step), is_integrator(step.neuron)
        sources = origins(step.x)
        for origin, path in sources:
            for call, whole_path, cascade in self._through_integrators(origin, path):
                call.add(Use(chain, (*cascade, step.neuron), whole_path, len(step.x)), spiking=not integrator)
        if step.weights and step.name not in self.trace.cells:
            self.trace.order.append(step.name)
            self.trace.cells[step.name] = step.neuron
        # 2. The step itself, cut from the graph before it.
        output, state = step.run(step.x.detach())
        state = detached(state)
        v = state_tensor(state, "v")
        if v is not None:
            v.sbc_chain = chain  # type: ignore[attr-defined]
        # 3. A tag on the output, by which later calls find this step.
        number = self._steps_run[step.name] = self._steps_run.get(step.name, -1) + 1
        passes = integrator and not step.weights  # what stands before its own weights does not reach its membrane
        here = Origin("integrator" if passes else "neuron", step.name, number)
        if passes:
            self._integrated[here] = (step.neuron, sources)
        return tagged(output, here), state

    def calls_before(self, sources: Iterable[tuple[Origin, Path]]) -> Iterator[tuple[WeightCall, Path]]:
        """The weight calls among the origins of a tensor; neurons in between are not passed."""
        for origin, path in sources:
            if origin.kind == "weight":
                yield self.trace.calls[origin.name][origin.call], path

    def _on_weight(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not is_of_base_class(module) and not computes_its_product(module, inputs[0], output):
                self.trace.foreign[name] = type(module).__name__
                return output
            if name not in self.trace.calls:
                self.trace.order.append(name)
            calls = self.trace.calls.setdefault(name, [])
            sources = origins(inputs[0])
            for call, path in self.calls_before(sources):
                call.successors.append((name, path))
            calls.append(WeightCall(len(inputs[0]), sources))
            return tagged(output, Origin("weight", name, len(calls) - 1))

        return hook

    def _on_neuron(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            state = inputs[1] if len(inputs) > 1 else named.get("state")
            if state is None:
                self._fresh.add(name)

        return hook

    def _through_integrators(
        self, origin: Origin, path: Path, cascade: tuple[nn.Module, ...] = ()
    ) -> Iterator[tuple[WeightCall, Path, tuple[nn.Module, ...]]]:
        """The weight calls behind an origin, through integrators, with the integrators passed on the way."""
        if origin.kind == "weight":
            yield self.trace.calls[origin.name][origin.call], path, cascade
        elif origin.kind == "integrator" and not path.nonlinear:
            neuron, sources = self._integrated[origin]
            for earlier, before in sources:
                yield from self._through_integrators(earlier, before.before(path), (neuron, *cascade))

    def _chain(self, step: Step) -> Chain:
        chain: Chain | None = getattr(state_tensor(step.state, "v"), "sbc_chain", None)
        if chain is None:
            # A state that lost its mark (detached by the model) goes on in the neuron's last chain.
            chain = self._last_chain.get(step.name)
            if chain is None or step.name in self._fresh:
                chain = Chain(step.name, 0 if chain is None else chain.number + 1)
                self._last_chain[step.name] = chain
        self._fresh.discard(step.name)
        self.trace.steps[chain] = self.trace.steps.get(chain, 0) + 1
        return chain


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a forward's result: itself, or those of a tuple, list or dict."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for item in output for tensor in tensors_in(item)] if isinstance(output, tuple | list) else []


def detached(state: Any) -> Any:
    """The state with every tensor cut from the graph, in the same nested NamedTuples."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        values = [detached(value) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    return state


def _for_autograd(batch: Any) -> Any:
    """The batch with inference tensors cloned, because autograd refuses them."""
    if isinstance(batch, Tensor):
        return batch.clone() if batch.is_inference() else batch
    if isinstance(batch, dict):
        return {key: _for_autograd(value) for key, value in batch.items()}
    return type(batch)(map(_for_autograd, batch)) if type(batch) in (tuple, list) else batch
