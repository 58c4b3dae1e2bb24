"""The demo's five networks under the demo's budgets, and higher sparsities: accuracy on digits that nobody has seen."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from sbc_plugin.demo import digits, network
from sbc_plugin.demo.run import BUDGETS, Budget, measure
from sbc_plugin.settings import Prune, Quantize

SEEDS = range(5)
MORE = (
    Budget("97 % sparse", "magnitude", prune=Prune(0.97)),
    Budget("2:4", "magnitude", prune=Prune(0.5, pattern="2:4")),
    Budget("3 bits", "rtn", quantize=Quantize(3)),
)
ORDER = [*BUDGETS[:2], MORE[0], MORE[1], BUDGETS[2], MORE[2], BUDGETS[3], BUDGETS[4]]


def lines(seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line for each seed, budget and method."""
    data = digits.load()
    for seed in seeds:
        dense = network.pretrained(seed)
        for row in tqdm(measure(dense, data, ORDER), desc=f"digits, seed {seed}", leave=False, disable=None):
            yield {"seed": seed} | asdict(row)
