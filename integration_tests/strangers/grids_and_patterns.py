"""Plain arithmetic about a compressed weight: its zeros, its pattern, its grid, and the best weights for its zeros.

Nothing of the package is used here: weights are reshaped by hand, scales are found by trying, and least squares is
solved in float64.
"""

from math import frexp

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ROUNDING = {torch.float32: 2e-4, torch.float64: 2e-4}  # of a code: codes up to 255, computed in single precision
Blocks = list[tuple[Tensor, int]]  # weights (rows, inputs, kernel positions) that stand side by side


def by_hand(module: nn.Module) -> list[Tensor]:
    """The weights of a module, each (rows, inputs, kernel positions), as they are now."""
    if hasattr(module, "input_weights"):
        names = ("input_weights", "recurrent_weights")
        return [getattr(module, name).detach().clone()[..., None] for name in names if hasattr(module, name)]
    weight = module.weight.detach().clone()  # type: ignore[operator, union-attr]
    if isinstance(module, TRANSPOSED):
        groups: int = module.groups
        pieces = [piece.transpose(0, 1) for piece in weight.chunk(groups)]
        weight = torch.cat(pieces)
    return [weight.reshape(weight.shape[0], weight.shape[1], -1)]


def zeros_of(weights: list[Tensor]) -> int:
    return sum(int((weight == 0).sum()) for weight in weights)


def breaks_pattern(weight: Tensor, pattern: str, asked: int | None) -> str:
    """What contradicts a pattern in a weight (rows, inputs, positions), "" if nothing.

    Args:
        weight: with its zeros.
        pattern: "N:M" or "block:K".
        asked: how many zeros blocks were to hold; None if that is not known.
    """
    first, _, second = pattern.partition(":")
    size = int(second)
    runs = weight.transpose(1, 2).reshape(len(weight), -1, size)  # consecutive inputs of one position
    if first == "block":
        whole = int((runs == 0).all(-1).sum()) * size
        broken = asked is not None and whole < asked
        return f"whole blocks hold {whole} zeros, not {asked}" if broken else ""
    most = int((runs != 0).sum(-1).max())
    return f"{most} of {size} consecutive inputs are kept" if most > int(first) else ""


def fits_pattern(weight: Tensor, pattern: str) -> bool:
    return pattern == "unstructured" or weight.shape[1] % int(pattern.partition(":")[2]) == 0


def off_grid(weight: Tensor, bits: int, granularity: str, symmetric: bool, power_of_two: bool) -> str:
    """What contradicts a grid in a weight (rows, inputs, positions), "" if nothing."""
    rows = weight.reshape(len(weight), -1).double()
    kind, _, size = granularity.partition(":")
    if kind == "tensor":
        rows = rows.reshape(1, -1)
    elif kind == "group":
        rows = rows.reshape(-1, int(size))
    for number, row in enumerate(rows):
        if not _on_one_grid(row, bits, symmetric, power_of_two):
            return f"part {number} of {len(rows)} is on no grid of {bits} bits: {row.tolist()[:12]}"
    return ""


def _on_one_grid(row: Tensor, bits: int, symmetric: bool, power_of_two: bool) -> bool:
    """Whether one scale and one place of 0 give all values of a row by integer codes."""
    top = float(row.abs().max())
    if top == 0:
        return True
    most = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    spread = float(row.max().clamp_min(0) - row.min().clamp_max(0))
    for code in range(1, most + 1):
        scale = top / code
        if power_of_two and frexp(scale)[0] != 0.5:
            continue
        if not symmetric and spread / scale > most + 0.5:
            continue
        codes = row / scale
        if float((codes - codes.round()).abs().max()) < ROUNDING[torch.float32]:
            return True
    return False


def best_for_its_zeros(weight: Tensor, kept: Tensor, samples: Tensor, damping: float) -> Tensor:
    """The weight (rows, columns) with zeros where ``kept`` is False whose outputs are closest to the dense one's.

    Args:
        weight: dense.
        kept: (rows, columns).
        samples: (samples, columns), inputs of the layer.
        damping: of the mean squared input, added as a ridge that holds weights where they were.
    """
    x, dense = samples.double(), weight.double()
    ridge = (damping * x.square().mean(0).mean() * len(x)).sqrt()
    stacked = torch.cat([x, ridge * torch.eye(x.shape[1], dtype=torch.float64)])
    result = torch.zeros_like(dense)
    for row, (values, mask) in enumerate(zip(dense, kept, strict=True)):
        if mask.any():
            result[row, mask] = torch.linalg.lstsq(stacked[:, mask], stacked @ values[:, None]).solution[:, 0]
    return result
