"""The integers behind a quantised weight, as chips and other runtimes want them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Integers:
    """One weight as integers: ``weight = (codes - zero_point) * scale``.

    Attributes:
        codes: in the weight's shape; int8, of a grid without negative codes uint8.
        scale: (rows,), float64.
        exponent: (rows,), int32, with ``scale = 2 ** exponent``; None unless all scales are known to be powers of two.
        bias: (rows,), in units of the scale; None without one.
        threshold: of the neurons behind, in units of the scale and for an input of 1: ``v_th / (scale * gain)``, where
            the gain is that of what lies between (a neuron's r and w_in, BatchNorm's factor); (rows,), or (rows,
            neurons of a row) where they differ; None where no spiking neuron follows.
        bits: of a code.
        zero_point: (rows,), int32; None where it is 0, as in every symmetric grid.
    """

    codes: Tensor
    scale: Tensor
    exponent: Tensor | None
    bias: Tensor | None
    threshold: Tensor | None
    bits: int = 8
    zero_point: Tensor | None = None


def in_units(value: Tensor, scale: Tensor) -> Tensor | None:
    """A value of the neurons behind a weight, in units of its rows' ``scale`` (rows,).

    Args:
        value: one number, one a row, or one a neuron where a row serves several, rows first.
        scale: (rows,), float64.

    Returns:
        (rows,), or (rows, neurons of a row); None if the neurons cannot be dealt to rows.

    >>> import torch
    >>> in_units(torch.tensor(1.0), torch.tensor([0.5, 0.25])).tolist()
    [2.0, 4.0]
    """
    value, rows = value.detach().to(scale), len(scale)
    if value.numel() == 1:
        value = value.reshape(1, 1).expand(rows, 1)
    if value.numel() % rows:
        return None
    found = value.reshape(rows, -1) / scale[:, None]
    return found.squeeze(1) if found.shape[1] == 1 else found
