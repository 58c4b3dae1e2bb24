"""Strangers' networks through channel pruning: the cut network is the dense one with zeros, or it is refused.

``python -m integration_tests.strangers.channels 5000 0`` tries 5,000 networks from seed 0 on. The oracle knows nothing
of groups: torch-pruning's history of cuts is repeated on a twin whose parameters hold their own positions, so that
what is left of each says where it came from. The weights of the cut network are put there, everything else is 0, and
both run in float64.
"""

import copy
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from integration_tests.strangers.networks import Stranger, network
from sbc_plugin.errors import CompressionError
from sbc_plugin.torch_pruning import exact_tracing, get_pruner

TOLERANCE = 1e-9  # of the largest output: float64, summed in another order


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes:
        kind: "right", "refused", "nothing cut", "wrong", "raw" or "changed".
        reason: of a refusal or a fault.
    """

    kind: str
    reason: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the package did something that it must not."""
        return self.kind in ("wrong", "raw", "changed")


def settings(stranger: Stranger) -> dict[str, Any]:
    """Arguments of ``get_pruner`` for a network, drawn from its seed."""
    draw = random.Random(stranger.seed + 1)
    layers = [m for m in stranger.model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    free = [layer for layer in layers if layer is not stranger.readout and layer not in stranger.rigid]
    given: dict[str, Any] = {
        "pruning_ratio": draw.choice([0.2, 0.3, 0.5, 0.7]),
        "iterative_steps": draw.choice([1, 1, 2, 3]),
        "ignored_layers": [stranger.readout],
        "num_heads": dict(stranger.heads),
    }
    if stranger.rigid and draw.random() < 0.8:
        given["ignored_layers"] += stranger.rigid
    if draw.random() < 0.9:  # a user who was told how
        given["out_channel_groups"] = dict(stranger.dealt)
    way = draw.choice(["local", "local", "global", "isomorphic", "ratios"])
    given |= {"global_pruning": way in ("global", "isomorphic"), "isomorphic": way == "isomorphic"}
    if way == "ratios" and free:
        given["pruning_ratio_dict"] = {layer: draw.choice([0.0, 0.4, 0.6]) for layer in draw.sample(free, 1)}
    if draw.random() < 0.2:
        given["round_to"] = 2
    return given


def attempt(seed: int, method: str = "sbc") -> Outcome:
    """Prune the network of a seed and compare it with the dense one."""
    stranger = network(seed)
    dense, batch, arguments = copy.deepcopy(stranger.model), stranger.batch.clone(), settings(stranger)
    before = surroundings(stranger.model)
    if method == "sbc":
        arguments |= {"calibration_data": [stranger.batch], "forward": stranger.forward}
    try:
        pruner = get_pruner(method, stranger.model, stranger.example, **arguments)
        for _ in range(arguments["iterative_steps"]):
            pruner.step()
    except CompressionError as error:
        same = all(torch.equal(a, b) for a, b in zip(_values(dense), _values(stranger.model), strict=True))
        if not same and arguments["iterative_steps"] == 1:
            return Outcome("changed", f"the model was changed before the refusal: {error}")
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("raw", f"{type(error).__name__}: {error}")
    if not torch.equal(batch, stranger.batch) or before != surroundings(stranger.model):
        return Outcome("changed", "input, modes, hooks or the random state are not as before")
    history = pruner.pruning_history()
    try:
        expected, found = masked(stranger, dense, history), stranger.model
        with torch.no_grad():
            error = difference(*(stranger.run(_in_float64(m), batch.double()) for m in (expected, found)))
    except (RuntimeError, ValueError, IndexError) as error:
        return Outcome("wrong", f"the cut network does not run: {error}")
    if error > TOLERANCE:
        return Outcome("wrong", f"outputs differ by {error:.2g} of the largest")
    return Outcome("right") if history else Outcome("nothing cut")


def masked(stranger: Stranger, dense: nn.Module, history: Any) -> nn.Module:
    """The dense network with the weights of the cut one where they came from, and 0 for all others."""
    twin = copy.deepcopy(dense)
    with exact_tracing(twin):
        example = stranger.example
        graph = tp.DependencyGraph().build_dependency(twin, (example,))
    for tensor in _values(twin):
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    graph.load_pruning_history(history)
    result = copy.deepcopy(dense)
    for name, target in _named_values(result):
        positions, value = (dict(_named_values(model))[name] for model in (twin, stranger.model))
        if positions.shape != value.shape:
            raise RuntimeError(f"{name} is {tuple(value.shape)}, its history says {tuple(positions.shape)}")
        with torch.no_grad():
            target.fill_(1.0 if name.endswith("running_var") else 0.0)
            target.view(-1)[positions.long().flatten()] = value.flatten()
    return result


def _named_values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.dim())


def _values(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in _named_values(model)]


def _in_float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def difference(expected: Tensor, found: Tensor) -> float:
    """Between two answers, as a part of the largest value."""
    if expected.shape != found.shape:
        return float("inf")
    scale = expected.abs().max().clamp_min(1e-12)
    return float((expected - found).abs().max() / scale)


def surroundings(model: nn.Module) -> Any:
    """What pruning has no business to change."""
    modules = list(model.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules]
    modes = [m.training for m in modules]
    wanted = [p.requires_grad for p in model.parameters()]
    activations = ["activation" in vars(m) for m in modules]
    return modes, hooks, wanted, activations, torch.random.get_rng_state().tolist(), torch.is_grad_enabled()


REPRODUCTION = """\
# {kind}: {reason}
from integration_tests.strangers.channels import attempt, settings
from integration_tests.strangers.networks import network
from sbc_plugin.torch_pruning import get_pruner
s = network({seed})
print(s.description)
given = settings(s) | {{"calibration_data": [s.batch], "forward": s.forward}}
pruner = get_pruner("sbc", s.model, s.example, **given)
pruner.step()  # given["iterative_steps"] times
print(attempt({seed}))"""


def reproduction(seed: int, outcome: Outcome) -> str:
    """Ten lines that show the fault of a seed."""
    reason = " ".join(outcome.reason.split())[:200]
    return REPRODUCTION.format(kind=outcome.kind, reason=reason, seed=seed)


def summary(reason: str) -> str:
    """A refusal without its names and numbers, for counting."""
    return re.sub(r"'[\w.]+'", "'...'", re.sub(r"\d+", "N", " ".join(reason.split())))[:160]


def count(
    attempt: Callable[[int], Outcome], reproduction: Callable[[int, Outcome], str], number: int = 200, first: int = 0
) -> int:
    """Try so many networks from a seed on, print faults and counts, and return how many faults there were."""
    torch.set_num_threads(1)
    start, kinds, reasons, faulty = time.perf_counter(), Counter[str](), Counter[str](), 0
    for seed in range(first, first + number):
        outcome = attempt(seed)
        kinds[outcome.kind] += 1
        if outcome.is_fault:
            faulty += 1
            print(reproduction(seed, outcome) if faulty <= 3 else f"{seed} {outcome}"[:300], flush=True)
        elif outcome.reason:
            reasons[f"{outcome.kind}: {summary(outcome.reason)}"] += 1
    print(f"{number} networks from seed {first} in {time.perf_counter() - start:.0f} s: {dict(kinds)}")
    for reason, times in reasons.most_common():
        print(f"{times:5} {reason}")
    return faulty


if __name__ == "__main__":
    sys.exit(bool(count(attempt, reproduction, *map(int, sys.argv[1:]))))
