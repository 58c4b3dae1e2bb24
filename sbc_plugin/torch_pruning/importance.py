"""``SBCImportance``: what a channel is worth to the layers that read it, for any pruner of torch-pruning.

A channel is worth what the layers that read it, its consumers, lose without it after their other weights were adapted:
the sum of equation 4 over all consumers and their rows, each consumer's losses taken as fractions of its total. What
changes in the neuron that sends the channel does not count by itself: a spike train that no layer reads costs nothing,
and neither does one without a spike.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.calibration.shares import kept
from sbc_plugin.core.matrix_form import WEIGHTED
from sbc_plugin.core.pruning.channels import channel_losses, elimination_scores
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.layers import Forward
from sbc_plugin.settings import Calibration
from sbc_plugin.torch_pruning.consumers import Consumer, is_depthwise
from sbc_plugin.torch_pruning.statistics import gather_consumers


class Edge(NamedTuple):
    """One weight that a group of coupled channels cuts.

    Attributes:
        module: that owns the weight.
        attribute: "weight", "input_weights" or "recurrent_weights".
        reads: True where inputs (columns) go, False where outputs (rows) go.
        indices: (n,), the channels of this weight.
        roots: (n,), the channel of the group's root that each belongs to.
    """

    module: nn.Module
    attribute: str
    reads: bool
    indices: Tensor
    roots: Tensor


def edges(group: Any) -> Iterator[Edge]:
    """The weights that a group of torch-pruning cuts; members of the group without a weight are left out."""
    for item in group.items:
        module, indices, roots = item.dep.target.module, item.idxs, item.root_idxs
        if not indices or not isinstance(module, nn.Module):
            continue
        roots = indices if roots is None or any(root is None for root in roots) else roots
        found = [torch.tensor([int(i) for i in each], device="cpu") for each in (indices, roots)]
        reads = item.dep.handler.__name__ == "prune_in_channels"
        if isinstance(module, WEIGHTED):
            if not is_depthwise(module):
                yield Edge(module, "weight", reads, *found)
        elif hasattr(module, "input_weights"):
            yield Edge(module, "input_weights", reads, *found)
            if not reads and hasattr(module, "recurrent_weights"):
                yield Edge(module, "recurrent_weights", False, *found)
                yield Edge(module, "recurrent_weights", True, *found)


@dataclass
class Coupling:
    """What a group does to one consumer.

    Attributes:
        consumer: the layer that loses inputs, rows or both.
        inputs: (part, its input channels (n,), their roots (n,)).
        rows: (rows,), the root that takes the row with it; -1 for rows that stay.
    """

    consumer: Consumer
    inputs: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows = torch.full((len(self.consumer.owner),), -1, device="cpu")


class SBCImportance(tp.importance.Importance):  # type: ignore[misc]
    """Scores channels by the spike-train objective, and compensates the layers that lose them.

    Drop-in for any script of torch-pruning: ``tp.pruner.MagnitudePruner(model, x, importance=SBCImportance(loader))``.
    From the first score on, each group that this model's dependency graph makes compensates its consumers inside
    ``group.prune()``; a group that is not pruned changes nothing.

    Args:
        calibration_data: iterable of batches, read again at each calibration: (T, B, ...) for spiking networks.
        forward: ``forward(model, batch)`` runs one whole batch.
        calibration: temporal, damping, max_samples and device count.
        recalibrate: calibrate anew at the first score after a cut, instead of once.
        compensate: False only scores.
        greedy: rank in the order of elimination; False scores each channel as if it went alone.

    Attributes:
        skipped: name -> reason, for weights that lose inputs without being scored or compensated.

    Raises:
        CalibrationError: no calibration data.
    """

    def __init__(
        self,
        calibration_data: Iterable[Any] | None,
        forward: Forward | None = None,
        *,
        calibration: Calibration = DEFAULT,
        recalibrate: bool = False,
        compensate: bool = True,
        greedy: bool = True,
    ) -> None:
        if calibration_data is None:
            raise CalibrationError(
                'method "sbc" scores channels on data: pass calibration_data, an iterable of batches (T, B, ...) for a '
                "spiking network, (B, ...) for any other; labels may be beside them, a few hundred samples are enough"
            )
        self.calibration_data = kept(calibration_data)
        self.forward, self.calibration = forward, calibration
        self.recalibrate, self.compensate, self.greedy = recalibrate, compensate, greedy
        self.skipped: dict[str, str] = {}
        self._consumers: dict[tuple[int, str], tuple[Consumer, int]] = {}
        self._graph: Any = None
        self._stale = False

    def __call__(self, group: Any, ties: int = 1, limit: int | None = None) -> Tensor | None:
        """A score for each channel of the group, (channels,), float64; None if no layer reads them.

        Args:
            group: of torch-pruning.
            ties: channels of this many equal parts go together (grouped convolutions, heads): they share a score.
            limit: order only this many channels, to save time; None orders all.

        Raises:
            CalibrationError: no data, data that does not fit, or a layer that stays silent.
            SettingsError: the channels cannot be dealt to so many parts.
            SingularHessianError: a Hessian is not positive definite.
        """
        self.attach(group._DG)
        if not self._consumers or (self.recalibrate and self._stale):
            self.calibrate()
        place = {int(root): number for number, root in enumerate(group[0].idxs)}
        units, uneven = divmod(len(place), ties)
        if uneven:
            raise SettingsError(
                f"{len(place)} channels cannot be dealt to {ties} equal parts; num_heads, in_channel_groups or "
                "out_channel_groups do not fit the model"
            )
        readers = []
        for coupling in self._couplings(group):
            fed = [(part, inputs, _placed(roots, place, units)) for part, inputs, roots in coupling.inputs]
            readers += coupling.consumer.readers(fed, _placed(coupling.rows, place, units)) if fed else []
        if not any(edge.reads for edge in edges(group)):
            return None
        if self.greedy:
            scores = elimination_scores(readers, units, None if limit is None else -(-limit // ties)).repeat(ties)
        else:
            scores = channel_losses(readers, units).repeat(ties)
        ranks.spread([scores])  # processors differ in the last bits, which a tie would show
        return scores

    def calibrate(self) -> None:
        """Gather the statistics of the model as it is now.

        Raises:
            CalibrationError: no data, data that does not fit, or a layer that stays silent; or no model is known yet.
        """
        if self._graph is None:
            raise CalibrationError("no model yet: call the importance with a group, or attach(graph), first")
        model = self._graph.model
        found, self.skipped = gather_consumers(model, self.calibration_data, self.calibration, self.forward)
        self._consumers = {
            (id(part.module), part.attribute): (consumer, number)
            for consumer in found
            for number, part in enumerate(consumer.parts)
        }
        self._stale = False

    def attach(self, graph: Any) -> None:
        """Let every group that this dependency graph makes from now on compensate its consumers when it is pruned."""
        if self._graph is graph:
            return
        self._graph, self._consumers = graph, {}
        make = graph.get_pruning_group

        def get_pruning_group(*given: Any, **named: Any) -> Any:
            group = make(*given, **named)
            if self._graph is graph:
                group.prune = self._pruning(group, group.prune)
            return group

        graph.get_pruning_group = get_pruning_group

    def _pruning(self, group: Any, cut: Callable[..., None]) -> Callable[..., None]:
        def prune(idxs: list[int] | None = None, record_history: bool = True) -> None:
            if not record_history:
                self._consumers = {}  # a history is replayed, and weights are filled in afterwards
            elif idxs is None:  # otherwise the group makes another one, whose prune() comes here
                self.before_cut(group)
            cut(idxs, record_history)

        return prune

    def before_cut(self, group: Any) -> None:
        """Compensate the consumers of the channels that are about to go, and shrink their statistics.

        Raises:
            UnsupportedModelError: a grouped convolution would be cut unevenly.
            SingularHessianError: a Hessian is not positive definite.
        """
        if not self._consumers and self.compensate:
            self.calibrate()
        changes = [
            coupling.consumer.remove(
                [(part, inputs) for part, inputs, _ in coupling.inputs], coupling.rows >= 0, self.compensate
            )
            for coupling in self._couplings(group)
        ]
        for apply in changes:
            apply()
        self._stale = True

    def place(self, group: Any) -> int:
        """Where the first layer whose outputs the group cuts stands in the order in which layers run."""
        if not self._consumers:
            self.calibrate()
        order = {key: number for number, key in enumerate(self._consumers)}
        cut = [order.get((id(edge.module), edge.attribute), len(order)) for edge in edges(group) if not edge.reads]
        return min(cut, default=len(order))

    def _couplings(self, group: Any) -> list[Coupling]:
        """What the group does to each consumer that has statistics."""
        found: dict[int, Coupling] = {}
        for edge in edges(group):
            if (id(edge.module), edge.attribute) not in self._consumers:
                continue
            consumer, part = self._consumers[id(edge.module), edge.attribute]
            coupling = found.setdefault(id(consumer), Coupling(consumer))
            if edge.reads:
                coupling.inputs.append((part, edge.indices, edge.roots))
            else:
                coupling.rows[edge.indices] = edge.roots
        return list(found.values())


def _placed(roots: Tensor, place: dict[int, int], units: int) -> Tensor:
    """The unit of each root channel; -1 stays -1."""
    return torch.tensor(
        [place[root] % units if root >= 0 else -1 for root in roots.tolist()], dtype=torch.long, device="cpu"
    )
