"""Strangers' networks through NIR: written and read again, the answers are the same, or the layer is named.

``python -m integration_tests.strangers.nir_files 2000 0`` tries 2,000 from seed 0 on: chains of Norse's modules, graphs
of NIR's nodes, and now and then a network of one's own class, which says nothing about its wiring. Answers are compared
in float64, in which no sum that is taken in another order moves a spike.
"""

import copy
import random
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import nir
import numpy
import torch
from torch import Tensor, nn

from integration_tests.strangers.channels import Outcome, count, surroundings
from integration_tests.strangers.compression import same, values_of
from integration_tests.strangers.networks import Stranger, network
from integration_tests.strangers.nir_networks import Chain, chain, graph, stepped
from sbc_plugin import Prune, Quantize, compress
from sbc_plugin.calibration.driver import first_result
from sbc_plugin.errors import CompressionError, UnsupportedModelError
from sbc_plugin.nir import read, trace, write

NEAR = 1e-5  # of a threshold: a product of float32 and a rate, kept over some ten steps, may be as far off
TOLERANCE = 2e-5  # of an answer that is no spike


def attempt(seed: int) -> Outcome:
    """Write and read the network of a seed, and judge what comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = random.Random(seed + 3).random()
        if kind < 0.03:
            return _of_ones_own(seed)
        return _of_chain(seed) if kind < 0.6 else _of_graph(seed)


def _of_ones_own(seed: int) -> Outcome:
    """Trace a network whose class says nothing of its wiring, and compare it on other spikes."""
    stranger = network(seed, more=True)
    model = stranger.model
    before, values = surroundings(model), values_of(model)
    swap = False if stranger.forward is None else None
    output = None
    try:
        write_refused = _writes(model)
        try:
            traced = trace(model, stranger.native, batch_first=swap)
        except UnsupportedModelError as error:  # what stands behind the last module is left out where it is said
            if (told := re.search(r"give output='([^']+)' to end", str(error))) is None:
                raise
            output = told[1]
            traced = trace(model, stranger.native, batch_first=swap, output=output)
    except CompressionError as error:
        untouched = before == surroundings(model) and same(values, values_of(model))
        return Outcome("expected", str(error)) if untouched else Outcome("changed", "a refusal left something behind")
    except Exception as error:
        return Outcome("raw", f"{type(error).__name__}: {error}")
    if not write_refused:
        return Outcome("wrong", "a network of unknown wiring was written")
    if before != surroundings(model) or not same(values, values_of(model)):
        return Outcome("changed", "the model, its modes or the random state are not as before")
    x = stranger.batch.flip(0, 1).double()
    with torch.no_grad():
        found = stepped(traced.double(), x)
        wrong = differs(found, _answers(stranger, output, x).reshape(found.shape))
    return Outcome("wrong", f"the traced network {wrong}") if wrong else Outcome("right")


def _answers(stranger: Stranger, output: str | None, x: Tensor) -> Tensor:
    """What the model returns, or what a module of it hands on, in float64."""
    model, handed = copy.deepcopy(stranger.model).float().double(), list[Tensor]()
    module = model.get_submodule(output or "")
    hook = module.register_forward_hook(lambda _, given, result: handed.append(first_result(result)))
    returned = stranger.run(model, x)
    hook.remove()
    return torch.stack(handed) if output is not None else returned


def _writes(model: nn.Module) -> bool:
    """Whether writing the model says that its wiring is not known."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(Path(folder) / "a.nir", model)
        except UnsupportedModelError as error:
            return "does not say how its modules are connected" in str(error) and type(model).__name__ in str(error)
    return False


def _of_chain(seed: int) -> Outcome:
    stranger, draw = chain(seed), random.Random(seed + 4)
    model, codes = stranger.model, False
    before, values = surroundings(model), values_of(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nir"
        try:
            spiking = any(hasattr(getattr(module, "p", None), "v_th") for module in model.modules())
            if spiking and stranger.foreign is None and draw.random() < 0.3:
                codes = draw.random() < 0.7
                quantize = Quantize(draw.randint(2, 8), scale=draw.choice(["mse", "power_of_two"]))
                model, _ = compress(
                    model, [stranger.batch], method="rtn", prune=Prune(0.5), quantize=quantize, progress=False
                )
            write(path, model, input_shape=stranger.shape, codes=codes)
            again = read(path)
        except CompressionError as error:
            return _judged(stranger, str(error), before == surroundings(model), path)
        except Exception as error:
            return Outcome("raw", f"{type(error).__name__}: {error}")
        if stranger.foreign is not None:
            return Outcome("wrong", f"{stranger.foreign!r} has no counterpart in NIR, and was written")
        if codes and (wrong := _wrong_codes(nir.read(path, type_check=False))):
            return Outcome("wrong", wrong)
        if before != surroundings(stranger.model) or not same(values, values_of(stranger.model)):
            return Outcome("changed", "the model, its modes or the random state are not as before")
        return _compared(stranger, model, again, path)


def _judged(stranger: Chain, reason: str, untouched: bool, path: Path) -> Outcome:
    if path.exists() or not untouched:
        return Outcome("changed", f"a refusal left something behind: {reason}")
    if stranger.foreign is not None and f"'{stranger.foreign}" not in reason:
        return Outcome("wrong", f"a refusal that does not name {stranger.foreign!r}: {reason}")
    return Outcome("expected" if stranger.foreign is not None else "refused", reason)


def _compared(stranger: Chain, model: nn.Module, again: Any, path: Path) -> Outcome:
    x = stranger.batch.double()
    with torch.no_grad():
        # NIR's readers hold float32, so a float64 model is rounded first.
        expected = stranger.run(copy.deepcopy(model).float().double(), x)
        found = stepped(copy.deepcopy(again).double(), x)
        if wrong := differs(found, expected):
            return Outcome("wrong", f"the model that was read {wrong}")
        write(path, again)
        twice = stepped(read(path), stranger.batch.float())
        once = stepped(again, stranger.batch.float())
    return Outcome("right") if torch.equal(once, twice) else Outcome("wrong", "written twice, it answers otherwise")


def _wrong_codes(stored: Any) -> str:
    for name, node in stored.nodes.items():
        if "codes" in node.metadata:
            codes, scale = node.metadata["codes"], node.metadata["scale"]
            back = codes * numpy.reshape(scale, (-1, *[1] * (codes.ndim - 1)))
            if abs(codes).max() > 127 or not numpy.allclose(back, node.weight, rtol=1e-5, atol=0):
                return f"{name}: codes times scale are not the weight"
        elif hasattr(node, "weight"):
            return f"{name}: there are no codes"
    return ""


def differs(found: Tensor, expected: Tensor) -> str:
    """How an answer is another one, "" if it is the same."""
    if found.shape != expected.shape:
        return f"answers with {tuple(found.shape)}, not {tuple(expected.shape)}"
    if not found.isfinite().all():
        return "answers with numbers that are not finite"
    scale = float(expected.abs().max().clamp_min(1.0))
    difference = float((found.double() - expected.double()).abs().max()) / scale
    return f"answers {difference:.2g} away" if difference > TOLERANCE else ""


def _of_graph(seed: int) -> Outcome:
    made = graph(seed)
    with tempfile.TemporaryDirectory() as folder:
        path, copied = Path(folder) / "a.nir", Path(folder) / "b.nir"
        try:
            nir.write(path, made.source)
            reset = "reset_subtract" if made.subtract else "reset_value"
            model = read(path, dt=1e-3, reset_method=reset)
            write(copied, model)
            again = read(copied)
        except CompressionError as error:
            return Outcome("refused", str(error))
        except Exception as error:
            return Outcome("raw", f"{type(error).__name__}: {error}")
    with torch.no_grad():
        x = made.batch.float()
        if not torch.equal(stepped(model, x), stepped(again, x)):
            return Outcome("wrong", "written and read again, it answers otherwise")
        found = stepped(copy.deepcopy(model).double(), made.batch)
    if wrong := differs(found, made.expected):
        return Outcome("rounding" if made.margin < NEAR else "wrong", f"the model that was read {wrong}")
    return Outcome("right")


REPRODUCTION = """\
# {kind}: {reason}
from integration_tests.strangers.nir_files import attempt
from integration_tests.strangers.nir_networks import chain, graph
from sbc_plugin.nir import graph_of, read
s = chain({seed})  # or graph({seed}), by the draw of attempt
print(s.model, s.shape, s.foreign)
print(graph_of(s.model, input_shape=s.shape))
print(read(graph_of(s.model, input_shape=s.shape)))
print(attempt({seed}))"""


def reproduction(seed: int, outcome: Outcome) -> str:
    """Ten lines that show the fault of a seed."""
    return REPRODUCTION.format(kind=outcome.kind, reason=" ".join(outcome.reason.split())[:300], seed=seed)


if __name__ == "__main__":
    sys.exit(bool(count(attempt, reproduction, *map(int, sys.argv[1:]))))
