"""torchvision's networks with random weights, half of each layer's channels cut: SBC against torch-pruning's own.

Where SBC refuses a network, every method runs with the layers kept whole that the audit names.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import tables
from integration_tests.benchmarks.accuracy import Known, digest
from sbc_plugin.errors import CompressionError
from sbc_plugin.torch_pruning import audit, get_pruner

SEEDS = {"squeezenet1_1": 3, "mobilenet_v3_small": 3, "mobilenet_v2": 3}  # of the others 1
METHODS = ("sbc", "l1", "taylor", "hessian")
CALIBRATION, TESTED, BATCH = 256, 64, 32  # images

# The network, and the smallest image that it takes.
_make: Callable[..., Any] = torchvision.models.get_model


def _vision_transformer() -> nn.Module:
    """Its last layer starts at 0, and would answer 0 whatever is cut."""
    model: Any = _make("vit_b_16", image_size=32)
    nn.init.normal_(model.heads.head.weight, std=0.02)
    made: nn.Module = model
    return made


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "squeezenet1_1": (partial(_make, "squeezenet1_1"), 32),
    "mobilenet_v3_small": (partial(_make, "mobilenet_v3_small"), 32),
    "shufflenet_v2_x1_0": (partial(_make, "shufflenet_v2_x1_0"), 32),
    "mobilenet_v2": (partial(_make, "mobilenet_v2"), 32),
    "efficientnet_b0": (partial(_make, "efficientnet_b0"), 32),
    "resnet18": (partial(_make, "resnet18"), 32),
    "resnext50_32x4d": (partial(_make, "resnext50_32x4d"), 32),
    "regnet_y_400mf": (partial(_make, "regnet_y_400mf"), 32),
    "convnext_tiny": (partial(_make, "convnext_tiny"), 32),
    "swin_t": (partial(_make, "swin_t"), 32),
    "googlenet": (partial(_make, "googlenet", aux_logits=False, init_weights=False), 32),
    "vit_b_16": (_vision_transformer, 32),
    "densenet121": (partial(_make, "densenet121"), 32),
    "resnet50": (partial(_make, "resnet50"), 32),
    "vgg11_bn": (partial(_make, "vgg11_bn"), 32),
    "maxvit_t": (partial(_make, "maxvit_t"), 224),
}


def images(count: int, size: int, seed: int) -> Tensor:
    """Noise, because random weights know no more of a photograph."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The model's scores, (N, 1000)."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(BATCH)])


def set_gradients(model: nn.Module, x: Tensor, squared: bool) -> None:
    """What "taylor" and "hessian" start from: the gradient, or the sum of squares of the gradient of each batch."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number, part in enumerate(x.split(BATCH)):
        label = torch.randint(1000, (len(part),), generator=torch.Generator().manual_seed(number))
        loss = functional.cross_entropy(model(part), label)
        for sum_, gradient in zip(sums.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            sum_ += gradient.square() if squared else gradient
    for name, parameter in model.named_parameters():
        parameter.grad = sums[name]


def measured(name: str, seed: int, method: str, whole: Sequence[str] = ()) -> dict[str, Any]:
    """What becomes of one network: works, refused or error; how long it took; and the error of its output.

    Args:
        name: of the network.
        seed: of weights and images.
        method: of :data:`METHODS`.
        whole: layers that are ignored, beside the last one.
    """
    build, size = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().eval()
        calibration, tested = images(CALIBRATION, size, 2 * seed), images(TESTED, size, 2 * seed + 1)
        dense = outputs(model, tested)
        if method in ("taylor", "hessian"):
            set_gradients(model, calibration, squared=method == "hessian")
        readout = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        given = {"calibration_data": list(calibration.split(BATCH))} if method == "sbc" else {}
        line: dict[str, Any] = {"network": name, "seed": seed, "budget": "50 %", "method": method}
        ignored = [readout, *map(model.get_submodule, whole)]
        if whole:
            line["whole"] = list(whole)
        started = time.process_time()
        try:
            get_pruner(method, model, calibration[:1], pruning_ratio=0.5, ignored_layers=ignored, **given).step()
            line |= {"outcome": "works", "seconds": time.process_time() - started}
            pruned = outputs(model, tested)
        except CompressionError as error:
            return line | {"outcome": "refused", "reason": str(error), "seconds": time.process_time() - started}
        except Exception as error:  # what torch-pruning leaves behind may not run
            return line | {"outcome": "error", "reason": f"{type(error).__name__}: {error}"}
    weights = sum(parameter.numel() for parameter in model.parameters())
    return line | {"output_error": float((pruned - dense).square().sum() / dense.square().sum()), "weights": weights}


def refused_layers(name: str, seed: int) -> list[str]:
    """The layers that the audit says cannot be cut."""
    build, size = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().eval()
    return [layer for layer, _ in audit(model, images(1, size, 2 * seed)).problems]


def lines(known: Known = lambda line: False, networks: Sequence[str] = tuple(NETWORKS)) -> Iterator[dict[str, Any]]:
    """A line for each network, seed and method that has none yet; SBC first, which says what stays whole."""
    cases = [(name, seed) for name in networks for seed in range(SEEDS.get(name, 1))]
    for name, seed in tqdm(cases, desc="zoo", unit="network", leave=False, disable=None):
        mark = digest([name, CALIBRATION, TESTED, BATCH])
        todo = [{"network": name, "seed": seed, "budget": "50 %", "method": m, "settings": mark} for m in METHODS]
        if all(map(known, todo)):
            continue
        found = measured(name, seed, "sbc")
        whole: list[str] = []
        if found["outcome"] == "refused":
            whole = refused_layers(name, seed)
            found = measured(name, seed, "sbc", whole) | {"refused": found["reason"]}
        yield found | {"settings": mark}
        for method in METHODS[1:]:
            yield measured(name, seed, method, whole) | {"settings": mark}


def table(found: list[tables.Line]) -> str:
    """A row for each network: what SBC says of it, its time, and the output error of each method."""
    rows = []
    for name in dict.fromkeys(line["network"] for line in found):
        mine = {m: [line for line in found if (line["network"], line["method"]) == (name, m)] for m in METHODS}
        outcomes = {_outcome(line) for line in mine["sbc"]}
        seconds = [
            tables.mean([line["seconds"] for line in mine[m] if "seconds" in line] or [0]) for m in ("sbc", "l1")
        ]
        rows.append(
            [name, ", ".join(sorted(outcomes)), *(f"{value:.1f}" for value in seconds), *map(_error, mine.values())]
        )
    heads = ["network", "SBC", "seconds", "seconds of l1", *(f"error, {m}" for m in ("SBC", *METHODS[1:]))]
    return tables.markdown(heads, rows)


def _outcome(line: tables.Line) -> str:
    whole = len(line.get("whole", []))
    return f"{line['outcome']}, {whole} layers whole" if whole else line["outcome"]


def _error(found: list[tables.Line]) -> str:
    errors = [line["output_error"] for line in found if line["outcome"] == "works"]
    return tables.spread(errors, 2) if errors else found[0]["outcome"] if found else ""
