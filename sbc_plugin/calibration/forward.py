"""A model, its library, and the function that runs one whole sequence: :class:`Runner`.

Everything that looks at a model while it runs goes through it: the model is in eval mode, hooks are removed on any
exit, and modes and random state are afterwards as they were before.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.attributes import attributes_kept
from sbc_plugin.calibration.batches import check_batch, sequences_in
from sbc_plugin.calibration.driver import Driver, check_has_values
from sbc_plugin.calibration.wrappers import eager, unwrapped
from sbc_plugin.layers import Forward, SNNLibrary, SpikingLayer, library_of

TRACED = 2  # sequences that show what feeds what; with one, time merged into the batch would look like time alone
OnStep: TypeAlias = Callable[[str, Tensor, Tensor | None, Tensor | None], None]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, nothing compiled; modes, random state and what forward keeps are afterwards as they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with undisturbed(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run as :func:`eval_mode` does, in the mode that the model is in."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"} - {None})
    with torch.random.fork_rng(devices=devices), eager(), attributes_kept(model):
        yield


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Keep hooks for the length of the block.

    Args:
        handles: of the hooks; a generator that registers one hook after the other is welcome, since those that it has
            registered are removed even if it fails.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


class Source(Protocol):
    """Where spikes come from: a :class:`Runner`, or a faster way to the same."""

    def spikes(self, batch: Any, keep: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Any]:
        """The spikes (T, B, ...) of each neuron module that spikes, by name, and the output."""


@dataclass(frozen=True)
class Runner:
    """How whole sequences run through a model.

    Attributes:
        model: to run.
        library: that knows the model's neurons.
        run: ``run(model, batch)`` runs one whole sequence, as it is: modes and gradients are the caller's.
    """

    model: nn.Module
    library: SNNLibrary
    run: Forward

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batch: Any,
        forward: Forward | None = None,
        batch_first: bool | None = None,
        library: SNNLibrary | None = None,
    ) -> "Runner":
        """The runner of a model on data like ``batch``.

        Args:
            model: to run.
            batch: the first one.
            forward: ``forward(model, batch)`` of the user's own; None for the library's default.
            batch_first: whether the data is (B, T, ...), for the library's default.
            library: None finds it by the model's neurons.

        Raises:
            UnsupportedModelError: the model belongs to no library that is known, or has no values.
            CalibrationError: the batch is empty, not finite, or has its sequences along another axis.
        """
        model = unwrapped(model)
        library = library or library_of(model)
        check_has_values(model)
        runner = cls(model, library, forward or library.default_forward(model, batch, batch_first))
        runner.check(batch, 0)
        return runner

    def __call__(self, batch: Any, hooks: Iterable[Any] = (), on_step: OnStep | None = None) -> Any:
        """Run one batch in eval mode; the model's output. Gradients flow where they are enabled.

        Args:
            batch: for :attr:`run`.
            hooks: handles of hooks, see :func:`hooked`.
            on_step: called after each step of a neuron, see :meth:`sbc_plugin.layers.SNNLibrary.watch_steps`.
        """
        steps = nullcontext() if on_step is None else self.library.watch_steps(self.model, on_step)
        with eval_mode(self.model), hooked(hooks), steps:
            return self.run(self.model, batch)

    def spikes(self, batch: Any, keep: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Run one batch: the spikes (T, B, ...) of each neuron module that spikes, by name, and the output.

        Args:
            batch: for :attr:`run`.
            keep: what is kept of the spikes of one step.
        """
        steps = StepSpikes(keep)
        output = self(batch, on_step=steps)
        return steps.stacked(), output

    def find_layers(self, batch: Any, temporal: bool = True) -> tuple[list[SpikingLayer], dict[str, str]]:
        """The layers in the order in which they run, and what was left out: name -> reason.

        Args:
            batch: is run once.
            temporal: False gives every layer M = I.
        """
        if self.sequences(batch) > TRACED:
            piece = next(iter(self.pieces(batch, TRACED)))
            with suppress(Exception):  # a model of a fixed batch size, or what the whole batch fails with as well
                return self.library.find_layers(self.model, piece, self.run, temporal)
        return self.library.find_layers(self.model, batch, self.run, temporal)

    def pieces(self, batch: Any, sequences: int) -> Iterable[Any]:
        """The batch in pieces of at most so many sequences; whole where only the user's own forward can read it."""
        return self.run.pieces(batch, sequences) if isinstance(self.run, Driver) else [batch]

    def sequences(self, batch: Any) -> int:
        """How many sequences a batch holds; with a forward of the user's own, if it is (T, B, ...), else 0."""
        return self.run.sequences(batch) if isinstance(self.run, Driver) else sequences_in(batch)

    def check(self, batch: Any, number: int) -> None:
        """Refuse a batch of this number that is empty, not finite, or has its sequences along another axis.

        Raises:
            CalibrationError: it does.
        """
        check_batch(batch, number)
        if isinstance(self.run, Driver):
            self.run.check(batch, number)


class StepSpikes:
    """Gathers the spikes of every step: an ``on_step`` for :class:`Runner`.

    Args:
        keep: what is kept of the spikes of one step.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        self.keep = keep
        self.steps: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, x: Tensor, feedback: Tensor | None, spikes: Tensor | None) -> None:
        """Keep the spikes of one step; an integrator has none."""
        if spikes is not None:
            self.steps.setdefault(name, []).append(self.keep(spikes))

    def stacked(self) -> dict[str, Tensor]:
        """Name -> (T, B, ...)."""
        return {name: torch.stack(steps) for name, steps in self.steps.items()}
