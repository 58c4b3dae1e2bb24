"""How a budget is spent over the phases of a plan: zeros and bits are chosen and weights go; then the rest is met."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sbc_plugin.calibration.blocks import InBlocks, overview_of
from sbc_plugin.calibration.hessians import Statistics
from sbc_plugin.compression.layer import check_reached
from sbc_plugin.compression.measures import Measure
from sbc_plugin.compression.objective import Targets
from sbc_plugin.compression.state import State, row_of, silent_in
from sbc_plugin.compression.within import Chosen, Share, Shares, Within, Work, times
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import BudgetError, in_layer
from sbc_plugin.evaluation.report import joined
from sbc_plugin.settings import Budget

SLACK = 1.08  # so many times the weights stay while they are tuned: rounding tuned weights makes more zeros, or fewer


@dataclass(frozen=True)
class Spending:
    """A budget on its way.

    Attributes:
        budget: that was asked for.
        measure: how it is counted.
        aims: what the dense network did.
        tuned: whether weights are tuned between the phases.
        choose: finds the best shares, and tells of how many that were tried.
        shares: what each layer gets; None until they are chosen.
        rule: by which they were chosen.
        met: the state that met the budget; None until then.
    """

    budget: Budget
    measure: Measure
    aims: Targets
    tuned: bool
    choose: Callable[[Within, Targets], tuple[Chosen, int]]
    shares: Shares | None = None
    rule: str = ""
    met: State | None = None

    def run(self, stage: Work, state: State, known: Mapping[str, Statistics] | None) -> tuple["Spending", State]:
        """The next phase: choose and prune, or fit, quantise and write.

        Args:
            stage: whose settings prune, or not any more.
            state: of the model now.
            known: statistics of the network as it is, if they are known already.

        Raises:
            CompressionError: as :meth:`sbc_plugin.compression.stage.Stage.run`, and a budget that is too small.
        """
        statistics = known or stage.gather()
        seen = overview_of(statistics)
        active: Mapping[str, Statistics] = {}
        if not isinstance(statistics, InBlocks):
            reached = {name: each for name, each in statistics.items() if seen[name].diagonal.any()}
            active = {**state.active, **reached}
            statistics = {**statistics, **active}
        for layer in stage.layers if self.shares is None else ():
            with in_layer(layer.name):
                check_reached(seen[layer.name].diagonal)
        choosing = self.shares is None
        targets = state.weights
        if choosing:
            targets = stage.without_silent(targets, seen, silent_in(seen))
        shares, rule, after = stage.journal.once(
            "spent", self._spent, stage, replace(state, weights=targets), statistics
        )
        for layer in stage.layers:
            layer.write(after.weights[layer.name])
        spending = replace(self, shares={name: Share(*share) for name, share in shares.items()}, rule=rule)
        after = replace(after, active=active)
        return (spending if choosing else replace(spending, met=after)), after

    def _spent(
        self, stage: Work, state: State, statistics: Mapping[str, Statistics]
    ) -> tuple[dict[str, tuple[int, int | None]], str, State]:
        """The shares of layers as plain numbers, the rule, and the state with the weights that follow.

        Raises:
            BudgetError: the budget is too small.
        """
        with stage.clock("budgets"):
            within = Within.of(stage, self.budget, self.measure, state.weights, statistics)
            shares, rule = self.shares, self.rule
            if shares is None:
                best, tried = self.choose(within, self.aims)
                shares, rule = best.shares, f"{best.rule}, the best of {tried}"
                slack = SLACK if self.tuned else 1.0
                kept = {layer.name: times(shares[layer.name], slack, within.most(layer)) for layer in stage.layers}
                found = within.all_solved({name: replace(share, bits=None) for name, share in kept.items()})
            else:
                fit = within.fitted(shares, grow=self.tuned)
                if fit is None:
                    raise BudgetError(
                        f"a budget of {self.measure.told(self.measure.limit)} is too small: with one weight left in "
                        "each layer, the network still takes more"
                    )
                found = within.all_solved(fit.shares)
                shares = fit.shares
        solutions: dict[str, Solution] = {name: solution for name, (solution, _) in found.items()}
        seen = overview_of(statistics)
        rows = [row_of(layer, solutions[layer.name], seen[layer.name], found[layer.name][1]) for layer in stage.layers]
        if state.rows:
            rows = [row.after(earlier) for row, earlier in zip(rows, state.rows, strict=True)]
        after = replace(
            state,
            weights={name: solution.weight for name, solution in solutions.items()},
            rows=tuple(rows),
            grids={name: solution.grid for name, solution in solutions.items() if solution.grid is not None},
            active={},
        )
        return {name: (share.kept, share.bits) for name, share in shares.items()}, rule, after

    def closed(self, stage: Work, state: State) -> State:
        """The state in the end, which is within the budget; with a note on what was asked for and what it takes.

        Args:
            stage: whose layers are written.
            state: after all phases; where scales that were tuned since cost more, they are put back.
        """
        assert self.met is not None
        cost = self.measure.of_model(state.weights)
        if cost > self.measure.limit:
            state = replace(self.met, notes=state.notes)
            for layer in stage.layers:
                layer.write(state.weights[layer.name])
            cost = self.measure.of_model(state.weights)
        told = self.measure.told
        note = f"at most {told(self.measure.limit)} asked for, {told(cost)} delivered; shared by {self.rule}"
        return replace(state, notes=joined(state.notes, {"budget": note}))
