"""NeuroBench's own metrics on spiking models, dense or compressed: an adapter to its ``NeuroBenchModel``."""

from typing import Any

from torch import Tensor, nn

from sbc_plugin.errors import extra
from sbc_plugin.layers import Forward, library_of

with extra("neurobench"):
    from neurobench.hooks.layer import LayerHook
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.models import NeuroBenchModel

__all__ = ["SpikingModel"]


class SpikingModel(NeuroBenchModel):  # type: ignore[misc]  # NeuroBench has no types
    """A spiking model as NeuroBench's ``Benchmark`` takes it; docs/guides/neurobench.md shows what agrees with ours.

    Args:
        model: a Norse model, dense or compressed.
        forward: ``forward(model, batch)`` runs one whole sequence (T, B, ...); the library's default if None.

    Raises:
        UnsupportedModelError: a model that is not spiking.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        super().__init__()
        self.net = model.eval()
        self.library = library_of(model)
        self.forward = forward
        self._default: Forward | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """Run a ``batch`` (B, T, ...), the order of NeuroBench; the output has the batch first as well."""
        output = self._run(batch)
        output = output[0] if isinstance(output, tuple | list) else output
        batch_first: Tensor = output.transpose(0, 1) if output.dim() > 2 else output
        return batch_first.detach()

    def _run(self, batch: Tensor) -> Any:
        if self.forward is not None:
            return self.forward(self.net, batch.transpose(0, 1))
        if self._default is None:  # seen on a copy, so that no metric counts these calls
            copy = self.library.copy_model(self.net)
            self._default = self.library.default_forward(copy, batch, batch_first=True)
        return self._default(self.net, batch)

    def __net__(self) -> nn.Module:
        """The model itself."""
        return self.net

    def activation_layers(self) -> list[dict[str, Any]]:
        """Every module that spikes, by its name in ``model.named_modules()``."""
        spiking = self.library.thresholds(self.net)
        return [{"layer_name": name, "layer": self.net.get_submodule(name)} for name in spiking]

    def register_hooks(self) -> None:
        """Watch what neurons send and what weights are given."""
        self.activation_hooks += [_Spikes(entry["layer"], entry["layer_name"]) for entry in self.activation_layers()]
        self.connection_hooks += [LayerHook(layer) for layer in self.connection_layers()]


class _Spikes(NeuronHook):  # type: ignore[misc]  # NeuroBench has no types
    """A neuron's spikes without its state, which Norse returns beside them."""

    def hook_fn(self, layer: nn.Module, input: Any, output: Any) -> None:
        self.activation_outputs.append(output[0] if isinstance(output, tuple) else output)
