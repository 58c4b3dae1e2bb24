"""Statistics of more layers than fit into memory: gathered a block of layers at a time, each in a pass of its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.collector import waiting
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Overview, Statistics, gather, gather_overview
from sbc_plugin.calibration.memory import memory_left
from sbc_plugin.calibration.progress import Shown
from sbc_plugin.core.costs import hessian_memory, solver_memory
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Calibration

SINGLE = 4  # bytes of a number


class InBlocks(Mapping[str, Statistics]):
    """The statistics of all layers, of which one block at a time is in memory.

    Asking for a layer whose block is not there takes a pass over the data that gathers the block in the place of the
    one before, so layers are best asked for in order.

    Args:
        runner: of the model, which has to stay as it is.
        layers: of the model, in order.
        data: batches, iterable more than once.
        calibration: settings.
        progress: show progress bars; None = on a terminal.
        silence: also note which neurons stay silent, in the overview.
    """

    def __init__(
        self,
        runner: Runner,
        layers: Sequence[SpikingLayer],
        data: Iterable[Any],
        calibration: Calibration,
        progress: Shown,
        silence: bool,
    ) -> None:
        self._run = runner, data, calibration, progress
        self._layers, self._silence = layers, silence
        blocks = blocks_of(layers, memory_left(calibration.memory_bytes))
        self._blocks = {layer.name: block for block in blocks for layer in block}
        self._now: dict[str, Statistics] = {}
        self._seen: dict[str, Overview] = {}

    @cached_property
    def overview(self) -> dict[str, Overview]:
        """Of every layer what is small: the counts and the diagonal of its Hessian. Takes a pass of its own."""
        runner, data, calibration, progress = self._run
        return gather_overview(runner, self._layers, data, calibration, progress, self._silence)

    def overview_of(self, name: str) -> Overview:
        """The overview of one layer, which takes no pass once its block was in memory; then without silent neurons."""
        return self._seen[name] if name in self._seen else self.overview[name]

    def __getitem__(self, name: str) -> Statistics:
        if name not in self._now:
            runner, data, calibration, progress = self._run
            self._now = {}  # first, to make room
            self._now = gather(runner, self._blocks[name], data, calibration, progress)
            self._seen |= {each: statistics.overview for each, statistics in self._now.items()}
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def blocks_of(layers: Sequence[SpikingLayer], room: int | None) -> list[list[SpikingLayer]]:
    """Layers whose Hessians are gathered together, in order: as many as there is room for, at least one.

    Args:
        layers: of the model.
        room: bytes; None: without an end.
    """
    solving = max((solver_memory(layer.rows, layer.columns) for layer in layers), default=0)
    results = sum((SINGLE + SINGLE + 1) * layer.rows * layer.columns for layer in layers)  # old, new and mask
    blocks: list[list[SpikingLayer]] = [[]]
    used = start = solving + results
    for layer in layers:
        size = hessian_memory(layer.columns, layer.hessians) + SINGLE * waiting(len(layers), layer.columns)
        if room is not None and blocks[-1] and used + size > room:
            blocks.append([])
            used = start
        blocks[-1].append(layer)
        used += size
    return blocks


def in_one_pass(layers: Sequence[SpikingLayer], calibration: Calibration) -> bool:
    """Whether the Hessians of all layers are gathered in one pass over the data, because they fit into memory.

    Ranks of ``torch.distributed`` sum what they gather together, so they always take one pass.

    Args:
        layers: of the model.
        calibration: settings; ``memory`` counts.
    """
    return ranks.count() > 1 or len(blocks_of(layers, memory_left(calibration.memory_bytes))) == 1


def overview_of(statistics: Mapping[str, Statistics]) -> dict[str, Overview]:
    """What is known of every layer without its Hessian."""
    if isinstance(statistics, InBlocks):
        return statistics.overview
    return {name: each.overview for name, each in statistics.items()}
