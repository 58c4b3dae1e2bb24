"""Networks without a spiking neuron, and weights that no neuron integrates: their kernel is M = I.

They are brought to the same form as spiking layers, so that one way of calibrating serves both kinds of network.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sbc_plugin.calibration.attributes import graph_tensors
from sbc_plugin.calibration.batches import input_of
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.core.matrix_form import WEIGHTED, matrix_form
from sbc_plugin.errors import UnsupportedModelError, in_layer
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer, library_of


class PlainNetworks:
    """Fulfils :class:`sbc_plugin.layers.SNNLibrary` for networks without a spiking neuron."""

    def find_layers(
        self, model: nn.Module, batch: Any, forward: Forward | None = None, temporal: bool = True
    ) -> tuple[list[SpikingLayer], dict[str, str]]:
        """Every Linear and convolution that runs, in that order, with M = I; and the rest: name -> reason.

        A row's gain is that of the BatchNorm which takes the layer's output, if one does.
        """
        weighted: dict[str, nn.Module] = {
            n: module for n, module in model.named_modules() if isinstance(module, WEIGHTED)
        }
        norms: dict[str, _BatchNorm | None] = {}
        latest: dict[str, Tensor] = {}

        def ran(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                norms.setdefault(name, None)
                latest[name] = output

            return hook

        def normalises(module: Any, inputs: tuple[Tensor, ...]) -> None:
            norms.update((name, module) for name, output in latest.items() if output is inputs[0])

        with ExitStack() as stack:
            for name, module in weighted.items():
                stack.callback(module.register_forward_hook(ran(name)).remove)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    stack.callback(module.register_forward_pre_hook(normalises).remove)
            stack.enter_context(eval_mode(model))
            stack.enter_context(torch.no_grad())
            (forward or self.default_forward(model, batch))(model, batch)
        layers = [plain_layer(name, weighted[name], norm) for name, norm in norms.items()]
        return layers, {name: "never called" for name in weighted if name not in norms}

    def default_forward(self, model: nn.Module, batch: Any, batch_first: bool | None = None) -> Forward:
        """The model on the batch's input."""

        def run(model: nn.Module, batch: Any) -> Any:
            x = input_of(batch)
            parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
            moved = x if parameter is None else x.to(parameter.device)
            return model(moved.to(parameter) if parameter is not None and moved.is_floating_point() else moved)

        return run

    def is_step_model(self, model: nn.Module, batch: Any) -> bool:
        """Never, because there is no time."""
        return False

    def state_items(self, model: nn.Module, x: Tensor) -> int:
        """None, because there is no state."""
        return 0

    @contextmanager
    def watch_steps(self, model: nn.Module, on_step: Any) -> Iterator[None]:
        """Calls nothing, because there are no steps."""
        yield

    def copy_model(self, model: nn.Module) -> nn.Module:
        """A deep copy.

        Raises:
            UnsupportedModelError: a weight is parametrised, or the model keeps tensors of an autograd graph.
        """
        for name, module in model.named_modules():
            if isinstance(module, WEIGHTED):
                held = module._parameters
                if "weight" not in held or "weight_orig" in held:
                    with in_layer(name):
                        refuse_computed("weight")
        with copying(model):
            return copy.deepcopy(model, {**graph_tensors(model)})

    def is_neuron(self, module: nn.Module) -> bool:
        """Never, because there are no neurons."""
        return False

    def holds_weights(self, module: nn.Module) -> bool:
        """Never, because there are no neurons."""
        return False

    def layer_by_layer(
        self, model: nn.Module, steps: int, on_sequence: Callable[[str, Tensor], None]
    ) -> AbstractContextManager[None]:
        """Changes nothing, because there are no neurons."""
        return nullcontext()

    def linear_neurons(self, model: nn.Module) -> AbstractContextManager[None]:
        """Changes nothing, because there are no neurons."""
        return nullcontext()

    def linear_state(self, state: Any, output: Tensor) -> Any:
        """The state as it is."""
        return state


def library_or_plain(model: nn.Module) -> SNNLibrary:
    """The library whose neurons the model holds; :class:`PlainNetworks` if it holds none of a known library."""
    try:
        return library_of(model)
    except UnsupportedModelError:
        return PlainNetworks()


@contextmanager
def copying(model: nn.Module) -> Iterator[None]:
    """Copy a model inside the block, outside inference mode, with an error that names what prevents the copy.

    Raises:
        UnsupportedModelError: the model keeps tensors of an autograd graph.
    """
    try:
        with torch.inference_mode(False):
            yield
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied: {error}; detach the tensors it keeps, or use inplace=True"
        ) from error


def refuse_computed(attribute: str) -> NoReturn:
    """Refuse a weight that something computes at each call, so that what is written into it would not last.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        f"its {attribute} is computed by a parametrisation or a pruning hook; make it permanent first, "
        f"with torch.nn.utils.prune.remove(module, {attribute!r}) or "
        "torch.nn.utils.parametrize.remove_parametrizations"
    )


def plain_layer(name: str, module: nn.Module, norm: _BatchNorm | None = None) -> SpikingLayer:
    """One weight with M = I, its rows scaled by the gain of the BatchNorm behind it."""
    layer = SpikingLayer.plain(name, module, matrix_form(module))
    if norm is None or norm.running_var is None:
        return layer
    gain = layer.gain / (norm.running_var.detach().double().cpu() + norm.eps).sqrt()
    return replace(layer, gain=gain if norm.weight is None else gain * norm.weight.detach().double().cpu().abs())
