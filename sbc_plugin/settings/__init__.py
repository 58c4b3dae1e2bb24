"""What to do, as frozen records that validate themselves: :class:`Prune`, :class:`Quantize`, :class:`Calibration`.

:class:`Budget` says what a whole network may cost, in the place of the first two.
"""

import re
from dataclasses import dataclass
from numbers import Real

import torch

from sbc_plugin.core.pruning.patterns import parse_pattern
from sbc_plugin.core.sizes import bytes_of
from sbc_plugin.errors import SettingsError
from sbc_plugin.settings.budget import Budget as Budget

SOLVERS = ("auto", "magnitude", "obs", "admm", "hybrid")
ALLOCATIONS = ("lamp", "uniform", "loss")
BIT_ALLOCATIONS = ("uniform", "loss")
SCALES = ("mse", "absmax", "power_of_two")
ORDERS = ("one-shot", "sequential")
OUTPUTS = ("classes", "values")
TUNING_STEPS = 200  # by default, where weights move
TUNED_SEQUENCES = 32  # of a piece, which one step of tuning is taken on; larger pieces cost more time and gain nothing
METHODS = ("sbc", "obc", "magnitude", "rtn")
SECOND_ORDER = METHODS[:2]  # whose solvers use Hessians


@dataclass(frozen=True)
class Prune:
    """How many weights go, and which shapes of zeros are allowed.

    Attributes:
        sparsity: fraction of zeros over all compressed weights together, 0 <= sparsity < 1. N:M fixes it to 1 - N/M.
        pattern: "unstructured"; "N:M" such as "2:4" (N kept of M consecutive inputs); "block:K" (K inputs together).
        solver: "auto", "magnitude", "obs" (greedy as in the paper, but one weight a step, which is exact; the paper
            removes ``ceil(columns / 256)`` at once), "admm" or "hybrid". "auto" is "obs" for small layers and "hybrid"
            for large ones, or "admm" where a network has more than 16 of these.
        allocation: how layers share the budget: "lamp", "uniform" or "loss".
        refit: move the kept weights to their least-squares optimum.
        rescale: then scale each row so that its membrane keeps its mean square, which least squares shrinks; only
            with ``refit``, and only for "sbc" and "obc".
        silent_first: weights from neurons that never spike in calibration go first, and then those into such neurons
            whose spikes no layer reads any more, as far as the budget goes; only unstructured, and only for "sbc" and
            "obc".
            None = where single weights go and tuning follows.
        rounds: prune in so many rounds, each calibrated on what the one before it left, and each leaving half as many
            weights. Meant for tuning, which then follows the last; only for "sbc" and "obc", and not with N:M. None =
            1.

    Raises:
        SettingsError: a value out of range, or a sparsity that contradicts the pattern.
    """

    sparsity: float
    pattern: str = "unstructured"
    solver: str = "auto"
    allocation: str = "lamp"
    refit: bool = True
    rescale: bool = False
    silent_first: bool | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.sparsity) and 0 <= self.sparsity < 1):
            raise SettingsError(
                f"sparsity={self.sparsity!r} is not a fraction of zeros; use 0 <= sparsity < 1, e.g. 0.9"
            )
        _choice("solver", self.solver, SOLVERS)
        _choice("allocation", self.allocation, ALLOCATIONS)
        pattern = parse_pattern(self.pattern)
        if pattern.kind == "n:m" and abs(self.sparsity - (1 - pattern.kept / pattern.size)) > 1e-9:
            fixed = 1 - pattern.kept / pattern.size
            raise SettingsError(
                f"pattern={self.pattern!r} has a sparsity of {fixed:g}, sparsity={self.sparsity:g} contradicts it; "
                f"use Prune({fixed:g}, pattern={self.pattern!r})"
            )
        if self.rescale and not self.refit:
            raise SettingsError(
                "rescale=True scales what refit has moved, and refit=False moves nothing; leave one out"
            )
        if self.silent_first and pattern.kind != "unstructured":
            raise SettingsError(f"silent_first needs pattern='unstructured', found {self.pattern!r}; leave one out")
        if self.rounds is not None and (not _is_whole(self.rounds) or self.rounds < 1):
            raise SettingsError(f"rounds={self.rounds!r} must be a whole number of at least 1")
        if (self.rounds or 1) > 1 and pattern.kind == "n:m":
            raise SettingsError(f"pattern {self.pattern!r} leaves no choice of rounds; leave rounds={self.rounds} out")


@dataclass(frozen=True)
class Quantize:
    """The grid that weights are rounded to.

    Attributes:
        bits: 2 to 8, of each weight; with ``allocation="loss"``, of a weight on average.
        granularity: one scale a "channel" (row), a "tensor", or "group:K" (K consecutive columns of a row); input and
            recurrent weights never share one. A layer whose columns K does not divide stays in floating point, which
            the report notes.
        scale: "mse" (least squared error: of the layer's output for "sbc" and "obc", of the weights for "rtn" and
            "magnitude"), "absmax" (nothing clips) or "power_of_two".
        symmetric: codes around 0; else an integer zero point, 0.0 still being on the grid.
        allocation: how layers share the bits: "uniform", or "loss": 2 to 8 each, so that the layers' relative losses
            together are least and the packed codes of all take no more than ``bits`` for each weight that is kept. A
            code of three values, which is all that 2 bits hold symmetrically, takes 1.6 bits.

    Raises:
        SettingsError: a value out of range.
    """

    bits: int
    granularity: str = "channel"
    scale: str = "mse"
    symmetric: bool = True
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        if not (_is_whole(self.bits) and 2 <= self.bits <= 8):
            raise SettingsError(f"bits={self.bits!r} is not supported; use a whole number from 2 to 8")
        if not isinstance(self.granularity, str) or not re.fullmatch(
            r"channel|tensor|group:[1-9]\d*", self.granularity
        ):
            raise SettingsError(f"granularity={self.granularity!r} is unknown; use 'channel', 'tensor' or 'group:32'")
        _choice("scale", self.scale, SCALES)
        _choice("allocation", self.allocation, BIT_ALLOCATIONS)


@dataclass(frozen=True)
class Calibration:
    """How the Hessians are gathered.

    Attributes:
        order: "one-shot" (one pass on the dense network) or "sequential" (layer by layer, on the compressed prefix).
        temporal: filter inputs by the membrane (M of the neuron); False is the baseline M = I.
        damping: added to the diagonal of H, as a fraction of its mean; > 0 keeps it invertible.
        alpha: of the sequential target: 1 = the dense network's membrane, 0 = the layer's own on its new input.
        max_samples: the most samples (time steps and positions) a layer takes from each batch, seeded; None = all.
        device: where the Hessians are kept and solved; None = where the weights are.
        align: after solving, bring the mean and variance that each BatchNorm channel receives, and the mean of each
            output with a bias, back to the dense network's; forward passes only. Only for "sbc" and "obc".
        tuning: gradient steps after solving, on the kept weights, towards the dense network's spikes; no labels. Needs
            surrogate gradients and the memory that training takes. Only for "sbc" and "obc". 0 does without. None = of
            "sbc" 200 where weights go, and as many again on the scales where they are quantised to 2 or 3 bits as well;
            100 at 2 and 3 bits alone; all of it if gradients can be taken, and where accuracy is expected to be lost
            without. Half of them, or a quarter, where little is expected to be lost and they cost much, and none where
            they would take much longer than all else, as counted. The report holds the number of steps; None where only
            some of these were taken. A pair such as ``(200, 100)`` gives the steps after pruning and those after
            quantisation, which is then a phase of its own.
        memory: what the process may hold at most, in bytes or as "8 GiB". It decides how many layers' Hessians are
            gathered in one pass over the data, how many sequences a step of tuning takes, and what goes to a temporary
            file. None = what the machine and the control group have left. Results do not depend on it, but for the
            pieces of tuning.
        outputs: what tuning takes the model's output for: "classes", scores of classes once they are summed over time,
            or "values", numbers of which each counts. None = "values" where labels are numbers to fit, that is floats
            that are no one-hot classes; else "classes".

    Raises:
        SettingsError: a value out of range.
    """

    order: str = "one-shot"
    temporal: bool = True
    damping: float = 0.01
    alpha: float = 0.25
    max_samples: int | None = None
    device: torch.device | str | None = None
    align: bool = False
    tuning: int | tuple[int, int] | None = None
    outputs: str | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            bytes_of(self.memory, "memory")
        _choice("order", self.order, ORDERS)
        if self.outputs is not None:
            _choice("outputs", self.outputs, OUTPUTS)
        if not (_is_number(self.damping) and 0 <= self.damping < float("inf")):
            raise SettingsError(f"damping={self.damping!r} must be a fraction >= 0 of the mean diagonal, e.g. 0.01")
        if not (_is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise SettingsError(
                f"alpha={self.alpha!r} must be from 0 (the layer's own target) to 1 (the dense network's)"
            )
        if self.max_samples is not None and not (_is_whole(self.max_samples) and self.max_samples >= 1):
            raise SettingsError(
                f"max_samples={self.max_samples!r} must be a whole number of at least 1, or None for all"
            )
        steps: tuple[object, ...] = (self.tuning,)
        if isinstance(self.tuning, tuple) and len(self.tuning) == 2:
            steps = self.tuning
        if self.tuning is not None and not all(map(_is_count, steps)):
            raise SettingsError(
                f"tuning={self.tuning!r} must be a whole number of steps, or a pair of them; 0 does without"
            )
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError):
                raise SettingsError(
                    f"device={self.device!r} is unknown to torch; use e.g. 'cpu' or 'cuda:0', or None"
                ) from None

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` as a number of bytes; None if it is left open."""
        return None if self.memory is None else bytes_of(self.memory, "memory")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, allowed))}")
