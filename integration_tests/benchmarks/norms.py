"""Channels cut through a norm over all of them, or not: torchvision's ConvNeXt, trained on handwritten digits.

torch-pruning's methods cut the residual stream, and the LayerNorms then average over fewer channels, which changes what
every layer behind them receives. SBC refuses that; `check=False` does it all the same. With the *stream whole* only the
hidden layers of the blocks lose channels.
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from tqdm import tqdm

from integration_tests.benchmarks import brevitas_flows, tables
from integration_tests.benchmarks.records import Line, commit
from sbc_plugin.torch_pruning import get_pruner

SEEDS, EPOCHS, BATCH, RATE = (0, 1, 2), 12, 64, 3e-3
TRAINING, CALIBRATION, SIZE = 1_200, 256, 32  # images, images, pixels
STREAM, WHOLE = "stream cut", "stream whole"
# Fractions of the channels that leave about the same products.
PAIRS = ({STREAM: 0.3, WHOLE: 0.6}, {STREAM: 0.5, WHOLE: 0.9})
METHODS = {STREAM: ("l1", "group_norm", "sbc"), WHOLE: ("l1", "sbc")}


def network() -> nn.Module:
    """Four blocks in two stages of 32 and 64 channels."""
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    return ConvNeXt(stages, stochastic_depth_prob=0.0, layer_scale=1.0, num_classes=10)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) in a seeded order, and labels."""
    images, labels = brevitas_flows.digits()
    images = functional.interpolate((images + 1) / 2, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    return images.contiguous() - 0.3, labels


def trained(seed: int) -> nn.Module:
    """The network, trained from ``seed``, in eval mode."""
    x, labels = (part[:TRAINING] for part in digits())
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = EPOCHS * -(-TRAINING // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for some in torch.randperm(TRAINING, generator=generator).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[some]), labels[some]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def outputs(model: nn.Module) -> Tensor:
    """Scores of the images that are not trained on."""
    with torch.no_grad():
        return torch.cat([model(part) for part in digits()[0][TRAINING:].split(100)])


def products(model: nn.Module) -> float:
    """Multiply-accumulates of an image."""
    return float(tp.utils.count_ops_and_params(model, digits()[0][:1])[0])


def pruned(dense: nn.Module, method: str, kept: str, ratio: float) -> nn.Module:
    """A copy with fewer channels.

    Args:
        dense: is not changed.
        method: of torch-pruning, or "sbc".
        kept: STREAM or WHOLE.
        ratio: of the channels that go, of each layer that is cut.
    """
    model, (x, _) = deepcopy(dense), digits()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    hidden = {name for name in layers if name.endswith("block.3")}
    readout = list(layers)[-1]
    ignored = [layers[name] for name in layers if name == readout or (kept == WHOLE and name not in hidden)]
    given = {"calibration_data": list(x[:CALIBRATION].split(32)), "check": kept == WHOLE} if method == "sbc" else {}
    get_pruner(method, model, x[:1], pruning_ratio=ratio, ignored_layers=ignored, **given).step()
    return model


def lines() -> Iterator[Line]:
    """A line for each seed, fraction, way and method."""
    labels = digits()[1][TRAINING:]
    for seed in tqdm(SEEDS, desc="norms", unit="seed", leave=False, disable=None):
        dense = trained(seed)
        expected, cost = outputs(dense), products(dense)
        line: Line = {"network": "ConvNeXt", "seed": seed, "commit": commit()}
        line["dense"] = float((expected.argmax(1) == labels).double().mean())
        for number, pair in enumerate(PAIRS):
            for kept, methods in METHODS.items():
                for method in methods:
                    model = pruned(dense, method, kept, pair[kept])
                    found = outputs(model)
                    yield line | {
                        "budget": f"{kept}, {number}",
                        "method": method,
                        "products": products(model) / cost,
                        "output_error": float((found - expected).square().sum() / expected.square().sum()),
                        "accuracy": float((found.argmax(1) == labels).double().mean()),
                    }


def table(found: list[Line]) -> str:
    """Products left, error of the output and accuracy of each way and method."""
    rows = []
    for number in range(len(PAIRS)):
        for kept, methods in METHODS.items():
            for method in methods:
                here = [x for x in found if (x["budget"], x["method"]) == (f"{kept}, {number}", method)]
                rows.append(
                    [
                        kept,
                        "SBC" if method == "sbc" else method,
                        f"{100 * tables.mean([line['products'] for line in here]):.0f} %",
                        tables.spread([line["output_error"] for line in here], 3),
                        tables.spread([100 * line["accuracy"] for line in here]),
                    ]
                )
    dense = tables.spread([100 * accuracy for accuracy in {line["seed"]: line["dense"] for line in found}.values()])
    heads = ["which layers", "method", "products left", "error of the output", "accuracy, %"]
    return f"{tables.markdown(heads, rows)}\n\nThe dense networks reach {dense} %."
