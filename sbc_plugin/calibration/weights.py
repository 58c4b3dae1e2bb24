"""A model with other weights for a while: :func:`holding`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from sbc_plugin.layers import SpikingLayer


@contextmanager
def holding(layers: Sequence[SpikingLayer], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block these layers hold other weights; then, whatever happens, those that they held before.

    Args:
        layers: of a model.
        weights: (rows, columns) by layer name, of those that change.
    """
    before = [(layer, layer.weight()) for layer in layers if layer.name in weights]
    try:
        for layer, _ in before:
            layer.write(weights[layer.name])
        yield
    finally:
        for layer, weight in before:
            layer.write(weight)
