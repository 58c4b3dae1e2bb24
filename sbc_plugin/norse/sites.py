"""Where a weight's calls meet their neuron, and what each call holds: one time step, or a whole sequence."""

from collections import Counter
from typing import NamedTuple

from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.layers import Site
from sbc_plugin.norse.call_trace import Chain, WeightCall

FORGETFUL = "the neuron's state is discarded after each step: M = I"
NO_RHYTHM = "its calls follow no fixed rhythm; one causal filter takes them all"


class Sites(NamedTuple):
    """The places where a weight is integrated.

    Attributes:
        sites: in the order of the weight's calls, which repeat it.
        note: what was approximated, "" if nothing; ``FORGETFUL`` for a neuron without a memory.
    """

    sites: tuple[Site, ...]
    note: str = ""


def sites_of(calls: list[WeightCall], steps: dict[Chain, int]) -> Sites:
    """The sites of a weight.

    Args:
        calls: all calls of the weight, in order; at least one.
        steps: how many steps each chain of the model has.

    Raises:
        UnsupportedModelError: some calls hold sequences for a neuron, and others reach no neuron.
    """
    # 1. The chain that integrates each call first; None where no neuron follows.
    chain_of_call = [call.uses[0].chain if call.uses else None for call in calls]
    chains = list(dict.fromkeys(chain_of_call))
    # 2. A call that many steps of one neuron use holds a whole sequence, unless every step reaches every call.
    most = max(_most_uses(call) for call in calls)
    if most > 1 and len(calls) < most * len(chains):
        return Sites(tuple(_of_sequence(call) for call in calls))
    # 3. Otherwise each call is one time step. Chains of a single step each belong to a neuron that loses its state.
    lengths = {steps[chain] for chain in chains if chain is not None}
    neurons = {chain.neuron for chain in chains if chain is not None}
    if len(chains) > 1 and lengths == {1} and len(neurons) == 1:
        return Sites((_of_step(chains[0]),), FORGETFUL)
    # 4. The calls visit the chains in turn, again and again.
    if any(chain != chains[number % len(chains)] for number, chain in enumerate(chain_of_call)):
        return Sites((_of_step(chain_of_call[0]),), NO_RHYTHM)
    return Sites(tuple(_of_step(chain) for chain in chains))


def _most_uses(call: WeightCall) -> int:
    """At how many steps one chain uses the call, at most."""
    return max(Counter(use.chain for use in call.uses).values(), default=0)


def _of_step(chain: Chain | None) -> Site:
    return Site(None if chain is None else chain.neuron, "step")


def _of_sequence(call: WeightCall) -> Site:
    if not call.uses:
        raise UnsupportedModelError(
            "some of its calls hold whole sequences for a neuron, and another call reaches no neuron; give the latter "
            "a layer of its own"
        )
    use = call.uses[0]
    if not use.path.indexed:
        return Site(use.chain.neuron, "constant")
    # With one sequence in the batch, (T * 1, ...) looks like (T, ...): "merged" is right for both.
    sequence = call.length == _most_uses(call) and use.batch > 1
    return Site(use.chain.neuron, "sequence" if sequence else "merged")
