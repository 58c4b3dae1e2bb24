"""All layers of a network with given zeros and bits, and how many weights fit a budget then: met from below."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import Overview, Statistics
from sbc_plugin.calibration.progress import Shown
from sbc_plugin.compression.clock import Clock
from sbc_plugin.compression.dealing import dealt
from sbc_plugin.compression.journal import Journal
from sbc_plugin.compression.layer import LayerSettings, layer_hessian, solve
from sbc_plugin.compression.measures import Measure, Weights, layer_bytes
from sbc_plugin.compression.sharing import Shared
from sbc_plugin.core.pruning.nested import first_in_rows, removal_order
from sbc_plugin.core.pruning.refit import refit
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import BudgetError, in_layer
from sbc_plugin.layers import SpikingLayer
from sbc_plugin.settings import Budget, Quantize

NEAR, TRIES = 0.997, 7  # of the budget, which is near enough; and how often at most the model is solved to get there
HALVINGS = 8  # more, where nothing has fit by then


@dataclass(frozen=True)
class Share:
    """What a layer gets.

    Attributes:
        kept: weights that are not zero.
        bits: of each; None = floating point.
    """

    kept: int
    bits: int | None


Shares = dict[str, Share]  # by layer name


class Work(Protocol):
    """What is asked of a stage."""

    @property
    def runner(self) -> Runner:
        """Of the model."""

    @property
    def layers(self) -> list[SpikingLayer]:
        """Of the model."""

    @property
    def settings(self) -> Mapping[str, LayerSettings]:
        """Of each layer, by name: with the method and the damping."""

    @property
    def progress(self) -> Shown:
        """Whether progress bars are shown."""

    @property
    def journal(self) -> Journal:
        """Keeps what is computed."""

    @property
    def clock(self) -> Clock:
        """Adds up what each kind of work takes."""

    def gather(self) -> Mapping[str, Statistics]:
        """The statistics of all layers, of the network as it is."""

    def without_silent(
        self, weights: Weights, overview: Mapping[str, Overview], silent: Mapping[str, Tensor]
    ) -> Weights:
        """The weights, those of silent neurons 0."""


@dataclass(frozen=True)
class _Search:
    """For the factor of all layers' weights at which a model costs just what it may.

    Attributes:
        measure: of the cost.
        most: that the factor may be.
        factor: to try next.
        last: factor and cost that were tried before.
        enough: the largest factor that fits.
        too_much: the smallest that does not.
    """

    measure: Measure
    most: float
    factor: float = 1.0
    last: tuple[float, float] | None = None
    enough: float = 0.0
    too_much: float = math.inf

    def after(self, cost: float, halve: bool) -> "_Search":
        """The search when this factor has led to a cost: along a straight line, or by halves where that fails."""
        factor, limit = self.factor, self.measure.limit
        fits = cost <= limit
        enough = max(self.enough, factor) if fits else self.enough
        too_much = self.too_much if fits else min(self.too_much, factor)
        aim = (1 + NEAR) / 2 * limit
        slope = (cost - self.measure.fixed) / factor
        if self.last is not None and self.last[0] != factor and (self.last[1] - cost) / (self.last[0] - factor) > 0:
            slope = (self.last[1] - cost) / (self.last[0] - factor)
        guess = factor + (aim - cost) / max(slope, self.measure.step * 1e-9)
        if halve or not enough < guess < too_much:
            guess = (enough + too_much) / 2 if too_much < math.inf else 1.3 * factor
        return replace(
            self, factor=min(guess, self.most, 2 * factor), last=(factor, cost), enough=enough, too_much=too_much
        )


@dataclass(frozen=True)
class Chosen:
    """An allocation of the whole budget.

    Attributes:
        shares: of each layer.
        rule: by which it was found.
        distance: of the spikes that it leads to, before tuning.
        solutions: of each layer.
        cost: of the model with them.
    """

    shares: Shares
    rule: str
    distance: float
    solutions: Mapping[str, Solution]
    cost: float


@dataclass(frozen=True)
class Within:
    """One network under a budget.

    Attributes:
        stage: whose statistics, layers and settings are used.
        budget: that was asked for.
        measure: how it is counted.
        targets: weights (rows, columns) that solutions are to come close to, by layer name.
        statistics: by layer name.
        orders: in which weights go, (rows, columns), by layer name.
    """

    stage: Work
    budget: Budget
    measure: Measure
    targets: Weights
    statistics: Mapping[str, Statistics]
    orders: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, stage: Work, budget: Budget, measure: Measure, targets: Weights, statistics: Mapping[str, Statistics]
    ) -> "Within":
        """With the order in which the weights of each layer go."""

        def order_of(layer: SpikingLayer) -> Tensor:
            weight, hessian = targets[layer.name], statistics[layer.name].accumulator.hessian()
            damping, scaled = stage.settings[layer.name].damping, weight.to(hessian) * layer.gain.to(hessian)[:, None]
            with in_layer(layer.name):
                known = layer_hessian(layer, hessian, damping)
                order = Shared(layer.name, scaled, hessian, damping).once("order", lambda: removal_order(scaled, known))
                return order if budget.fan_in is None else first_in_rows(order, budget.fan_in)

        found = dealt(stage.layers, order_of, "ordering weights", stage.progress)
        return cls(stage, budget, measure, targets, statistics, {name: order for name, (order, _) in found.items()})

    def most(self, layer: SpikingLayer) -> int:
        """How many weights of a layer may stay: those that are there, as far as the chip allows."""
        weight = self.targets[layer.name]
        in_rows = (weight != 0).sum(1)
        if self.budget.fan_in is not None:
            in_rows = in_rows.clamp_max(self.budget.fan_in)
        return min(int(in_rows.sum()), self.budget.core_weights or weight.numel())

    def shared(self, layer: SpikingLayer) -> Shared:
        """What many compressions of one network share of a layer's solutions, by their shares."""
        known = str((self.stage.settings[layer.name], self.budget.power_of_two, self.budget.fan_in))
        return Shared(layer.name, self.targets[layer.name], self._hessian(layer), layer.gain, known)

    def solved(self, layer: SpikingLayer, share: Share) -> Solution:
        """One layer with its share; the loss is relative to the target."""
        target, hessian = self.targets[layer.name], self._hessian(layer)
        known = layer_hessian(layer, hessian, self.stage.settings[layer.name].damping)
        mask = (self.orders[layer.name] >= target.numel() - share.kept).to(target.device)
        with in_layer(layer.name):
            new, grid = refit(target, mask & (target != 0), known), None
            if share.bits is not None:
                settings = self._settings(layer, share.bits)
                # A layer that an earlier phase has silenced is known by its weights alone.
                settings = settings if hessian.any() else replace(settings, method="magnitude")
                rounded = solve(layer, new, hessian, None, settings)
                new, grid = rounded.weight, rounded.grid
        gain = layer.gain.to(hessian)[:, None]
        return Solution(new, new != 0, known.loss(target.to(hessian) * gain, new.to(hessian) * gain), grid)

    def _hessian(self, layer: SpikingLayer) -> Tensor:
        with in_layer(layer.name):
            return self.statistics[layer.name].accumulator.hessian()

    def _settings(self, layer: SpikingLayer, bits: int) -> LayerSettings:
        scale = "power_of_two" if self.budget.power_of_two else "mse"
        return replace(self.stage.settings[layer.name], prune=None, quantize=Quantize(bits, scale=scale))

    def all_solved(self, shares: Shares) -> dict[str, tuple[Solution, float]]:
        """Each layer's solution, and the seconds that it took."""
        return dealt(self.stage.layers, lambda layer: self.solved(layer, shares[layer.name]), "fitting")

    @property
    def core_limit(self) -> float:
        """The most bytes of a layer."""
        limit = self.budget.core_bytes
        return float(limit) if isinstance(limit, int) else math.inf

    def core_bytes(self, layer: SpikingLayer, solution: Solution) -> float:
        """Packed size of a layer where a core's bytes are limited, else 0."""
        return 0.0 if self.budget.core_bytes is None else float(layer_bytes(layer, solution.weight))

    def fitted(self, shares: Shares, tries: int = TRIES, grow: bool = True) -> Chosen | None:
        """The shares with as many weights as fit the budget, changed by the same factor in each layer; None: too many.

        Args:
            shares: to begin with.
            tries: how often all layers are solved.
            grow: whether layers may get more than these.
        """
        most = {layer.name: self.most(layer) for layer in self.stage.layers}
        search, best = _Search(self.measure, 1.0 if not grow else math.inf), None
        for attempt in range(tries + HALVINGS):
            now = {name: times(share, search.factor, most[name]) for name, share in shares.items()}
            found = {name: solution for name, (solution, _) in self.all_solved(now).items()}
            if over := self._over_cores(found, now):
                shares = {**shares, **over}
                continue
            cost = self.measure.of_model({name: solution.weight for name, solution in found.items()})
            fits = cost <= self.measure.limit
            if fits and (best is None or cost > best.cost):
                best = Chosen(now, "", 0.0, found, cost)
            near = cost >= NEAR * self.measure.limit or search.factor >= search.most or now == _all(now, most)
            done = best is not None and attempt >= tries - 1
            if (fits and near) or done or (not fits and all(share.kept <= 1 for share in now.values())):
                break
            search = search.after(cost, halve=attempt >= tries - 1)
        return best

    def _over_cores(self, found: Mapping[str, Solution], now: Shares) -> Shares:
        """Smaller shares of layers that a core cannot hold.

        Raises:
            BudgetError: with one weight left, a core cannot hold a layer.
        """
        smaller = {}
        for layer in self.stage.layers:
            size, share = self.core_bytes(layer, found[layer.name]), now[layer.name]
            if size > self.core_limit:
                if share.kept <= 1:
                    raise BudgetError(
                        f"layer {layer.name!r} takes {size:,.0f} bytes with one weight left, and a core holds "
                        f"{self.core_limit:,.0f}"
                    )
                kept = int(share.kept * self.core_limit / size)
                smaller[layer.name] = replace(share, kept=max(1, min(share.kept - 1, kept)))
        return smaller


def times(share: Share, factor: float, most: int) -> Share:
    """The share with so many times the weights, at least one where there is one, and ``most`` at most."""
    return replace(share, kept=min(max(round(share.kept * factor), min(1, most)), most))


def _all(shares: Shares, most: Mapping[str, int]) -> Shares:
    return {name: replace(share, kept=most[name]) for name, share in shares.items()}
