"""One call of a model with its neurons watched: how often each steps, and which states it goes on from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.norse.neurons import NEURONS, state_tensor
from sbc_plugin.norse.steps import Step, intercept_steps


@dataclass
class Call:
    """What one call of the model showed.

    Attributes:
        steps: name -> how many steps of each neuron.
        lengths: lengths of the first axis of the neurons' inputs.
        resumed: neurons whose first step went on from a state of an earlier call.
        chained: whether a neuron's step went on from another step of this call.
        firsts: name -> input of the first step of each neuron.
        results: what the call returned.
    """

    steps: dict[str, int] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    resumed: set[str] = field(default_factory=set)
    chained: bool = False
    firsts: dict[str, Tensor] = field(default_factory=dict)
    results: Any = None


class Caller:
    """Calls a model and watches its neurons; the caller puts it into eval mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._shifted: dict[str, int] = {}  # name -> the step of each neuron that answers with one more
        self._latest: dict[str, tuple[Call, Tensor]] = {}

    def __call__(self, *inputs: Any) -> Call | None:
        """One call; None if it fails."""
        call, fresh = Call(), set[str]()

        def on_step(step: Step) -> tuple[Tensor, Any]:
            earlier = None if step.name in fresh else self._earlier(step)
            fresh.discard(step.name)
            call.chained |= earlier is call
            if step.name not in call.steps and earlier not in (None, call):
                call.resumed.add(step.name)
            call.steps[step.name] = call.steps.get(step.name, 0) + 1
            call.lengths.add(len(step.x) if step.x.dim() else 1)
            if step.name not in call.firsts:
                call.firsts[step.name] = step.x.clone()  # of a view, what it is a view of would stay
            output, state = step.run(step.x)
            output = output + (call.steps[step.name] == self._shifted.get(step.name))
            v = state_tensor(state, "v")
            if v is not None:
                v.sbc_made_in = step.name, call  # type: ignore[attr-defined]
                self._latest[step.name] = call, v
            return output, state

        def on_neuron(name: str) -> Any:
            def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
                if (given[1] if len(given) > 1 else named.get("state")) is None:
                    fresh.add(name)

            return hook

        handles = [
            module.register_forward_pre_hook(on_neuron(name), with_kwargs=True)
            for name, module in self.model.named_modules()
            if isinstance(module, NEURONS)
        ]
        try:
            with intercept_steps(self.model, on_step):
                call.results = self.model(*inputs)
        except Exception:
            return None
        finally:
            for handle in handles:
                handle.remove()
        return call

    def with_other_ends(self, call: Call, *inputs: Any) -> Call | None:
        """The call once more, with other outputs of every neuron in its last step of it; None if it fails."""
        self._shifted = call.steps
        try:
            return self(*inputs)
        finally:
            self._shifted = {}

    def _earlier(self, step: Step) -> Call | None:
        """The call in which the state of a step was made; a copy of a state is known by its values."""
        v = state_tensor(step.state, "v")
        if v is None:
            return None
        name, call = getattr(v, "sbc_made_in", (None, None))
        if name is not None:
            return call if name == step.name else None
        call_before, latest = self._latest.get(step.name, (None, v))
        return call_before if latest.shape == v.shape and v.any() and torch.equal(latest, v) else None
