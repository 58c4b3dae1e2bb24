"""Run a copy of a model with its neurons made linear, so that no change of a channel is lost below a threshold.

The weights of the copy are drawn anew, because a change would be lost behind weights of 0, behind a rectifier that
never opens, or in a gate that is open as far as it can be.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import eval_mode, undisturbed
from sbc_plugin.calibration.plain import library_or_plain
from sbc_plugin.layers import SNNLibrary
from sbc_plugin.torch_pruning.graph.dependency_graph import (
    channel_axis,
    replaced,
    run_once,
    state_items,
    tensors_in,
    trace_inputs,
)

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@contextmanager
def linear_neurons(model: nn.Module, library: SNNLibrary) -> Iterator[None]:
    """Inside the block the model runs in eval mode, without gradients, and its neurons pass on what they receive."""
    held = eval_mode if any(module.training for module in model.modules()) else undisturbed
    with held(model), torch.no_grad(), library.linear_neurons(model):
        yield


def random_inputs(model: nn.Module, example_inputs: Any, seed: int = 0) -> Any:
    """Inputs of the same shape that are nowhere 0."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return (0.5 + torch.rand(value.shape, generator=generator, device="cpu")).to(value)

    inputs = trace_inputs(model, example_inputs)
    if isinstance(inputs, dict):
        return {name: drawn(value) for name, value in inputs.items()}
    return tuple(drawn(value) for value in inputs)


class Replay:
    """Records one forward and repeats it with some channels of one layer changed, all other outputs held as recorded.

    Args:
        model: left as it is.
        example_inputs: as for torch-pruning.
        forward: ``forward(model, example_inputs)``.
        seed: of the weights and inputs that are drawn.

    Attributes:
        twin: the copy that runs.
        layers: the model's layers that ran, by name.
        inputs: the example inputs, their values replaced by others that are nowhere 0.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, forward: Callable[..., Any] = run_once, seed: int = 0
    ) -> None:
        self.model, self.library, self.forward = model, library_or_plain(model), forward
        self.twin = self._drawn_anew(2 + 3 * seed)
        self.inputs = random_inputs(model, example_inputs, 3 * seed)
        state_items(model, self.inputs)
        self.layers = {name: module for name, module in model.named_modules() if self.is_layer(module)}
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[Tensor]] = {}

        def scale(name: str, call: int, x: Tensor, output: Tensor) -> Tensor:
            return self._scaled(name, output) if call == 0 else output

        def record(name: str, call: int, x: Tensor, output: Tensor) -> Tensor:
            self._inputs.setdefault(name, []).append(x.detach().clone())
            self._outputs.setdefault(name, []).append(output.detach().clone())
            return output

        self._run(scale)
        self._run(record)
        self.layers = {name: layer for name, layer in self.layers.items() if name in self._outputs}

    def drawn_again(self, seed: int) -> "Replay":
        """A replay of the same model with other weights and inputs."""
        return Replay(self.model, self.inputs, self.forward, seed)

    def is_layer(self, module: nn.Module) -> bool:
        """Whether the module reads channels with weights: a Linear, a convolution, or a neuron with its own weights."""
        return isinstance(module, WEIGHTED) or self.library.holds_weights(module)

    def channels(self, name: str) -> int:
        """Outputs of a layer."""
        output = self._outputs[name][0]
        return int(output.shape[channel_axis(self.layers[name], output)])

    def changed(self, tested: Mapping[str, Tensor], change: float) -> dict[str, Tensor]:
        """For each layer, (inputs,): which of its inputs differ from the record while channels are changed.

        Args:
            tested: layer -> (channels,), bool, the outputs that are changed.
            change: by how much, times the layer's largest output.
        """
        hits: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(1)

        def perturb(reader: str, call: int, x: Tensor, output: Tensor) -> Tensor:
            axis = channel_axis(self.layers[reader], x)
            differs = (x != self._inputs[reader][call]).movedim(axis, 0).flatten(1).any(1).cpu()
            hits[reader] = hits[reader] | differs if reader in hits else differs
            held = self._outputs[reader][call].clone()
            if reader in tested:
                size = change * (1 + held.abs().max())
                noise = 1 + torch.rand(held.shape, generator=generator, device="cpu").to(held)
                held += size * noise * _along(tested[reader], channel_axis(self.layers[reader], held), held)
            return held

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if not self.library.holds_weights(layer):  # whatever it would compute, its output is the record
                    twin = self.twin.get_submodule(name)
                    stack.enter_context(replaced(twin, "forward", _returning(self._outputs[name])))
            self._run(perturb)
        return hits

    @torch.no_grad()
    def _drawn_anew(self, seed: int) -> nn.Module:
        """A copy of the model in which no weight is 0, and most sums of positive numbers are positive."""
        twin = self.library.copy_model(self.model).eval()
        generator = torch.Generator().manual_seed(seed)

        def about_one(value: Tensor, spread: float) -> Tensor:
            return (1 + spread * torch.randn(value.shape, generator=generator, device="cpu")).to(value)

        values = [parameter for parameter in twin.parameters() if parameter.is_floating_point()]
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and isinstance(module.running_var, Tensor):
                module.running_var.copy_(about_one(module.running_var, 0.1))
                module.running_mean.copy_(about_one(module.running_var, 0.3) - 1)  # type: ignore[union-attr]
            if self.library.holds_weights(module):  # which may be plain tensors
                own = ("input_weights", "recurrent_weights", "g_coupling")
                values += [getattr(module, name) for name in own if hasattr(module, name)]
        for value in values:
            fan_in = value[0].numel() if value.dim() > 1 and len(value) else 1
            value.copy_(about_one(value, 0.3 * fan_in**0.5) / fan_in)
        return twin

    def _scaled(self, name: str, output: Tensor) -> Tensor:
        """Scale a layer of the twin so that its largest output is 1; products of outputs would grow without bound."""
        layer, size = self.twin.get_submodule(name), float(output.abs().max())
        if not 0 < size < float("inf"):
            return output
        held = [layer.input_weights] if self.library.holds_weights(layer) else [layer.weight, layer.bias]
        for value in held:
            if isinstance(value, Tensor):
                value.data /= size
        return output / size

    def _run(self, on_call: Any) -> None:
        calls: dict[str, int] = {}
        with ExitStack() as stack:
            stack.enter_context(linear_neurons(self.twin, self.library))
            for name in self.layers:

                def hook(_: Any, inputs: Any, named: Any, output: Any, name: str = name) -> Any:
                    x = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
                    call = calls[name] = calls.get(name, -1) + 1
                    if isinstance(output, tuple):
                        first = on_call(name, call, x, output[0])
                        return (first, self.library.linear_state(output[1], first), *output[2:])
                    return on_call(name, call, x, output)

                layer = self.twin.get_submodule(name)
                stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
            self.forward(self.twin, self.inputs)


def _returning(outputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """A forward that gives these outputs, one at each call."""
    calls = iter(outputs)
    return lambda *_, **__: next(calls, outputs[-1])


def _along(channels: Tensor, axis: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = len(channels)
    return channels.reshape(shape).to(like)


def outputs_without(
    replay: Replay, sent: Mapping[nn.Module, Sequence[int]], read: Mapping[nn.Module, Sequence[int]]
) -> list[Tensor]:
    """The outputs of the replay's twin with these output and input channels of its modules set to 0."""

    def silenced(module: nn.Module, x: Tensor, channels: Iterable[int]) -> Tensor:
        copy = x.clone()
        copy.movedim(channel_axis(module, copy), 0)[list(channels)] = 0
        return copy

    with ExitStack() as stack:
        stack.enter_context(linear_neurons(replay.twin, replay.library))
        for module, channels in sent.items():

            def after(module: nn.Module, _: Any, output: Any, channels: Any = channels) -> Any:
                if isinstance(output, tuple):
                    return (silenced(module, output[0], channels), *output[1:])
                return silenced(module, output, channels)

            stack.callback(module.register_forward_hook(after).remove)
        for module, channels in read.items():

            def before(module: nn.Module, inputs: Any, channels: Any = channels) -> Any:
                return (silenced(module, inputs[0], channels), *inputs[1:])

            stack.callback(module.register_forward_pre_hook(before).remove)
        return tensors_in(replay.forward(replay.twin, replay.inputs))
