"""Channels cut to half of the products, then epochs of training with labels: SBC against torch-pruning's own."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import brevitas_flows, tables
from integration_tests.benchmarks.cases import Case, Training
from integration_tests.benchmarks.subjects import SUBJECTS, Parts, Subject
from integration_tests.benchmarks.tables import Line
from integration_tests.benchmarks.train import fit
from integration_tests.models.small_cnn import SmallCNN
from sbc_plugin.demo.digits import Events
from sbc_plugin.torch_pruning import get_pruner

METHODS = ("sbc", "l1", "group_norm", "taylor")
SEEDS = (0, 1, 2)
EPOCHS = (1, 3)
RATIO = 0.3  # of each layer's channels, which leaves about half of the products
TRAINING = 2_000  # sequences of an epoch
CNN = "plain CNN"
NETWORKS = (CNN, "digits", "vgg-static")


@dataclass(frozen=True)
class Images:
    """The digits as images in one step, (1, B, 1, 8, 8)."""

    training: Events
    calibration: Events
    test: Events


@cache
def images() -> Images:
    """The split that the CNN is trained on."""
    x, labels = brevitas_flows.digits()
    first, last = slice(0, brevitas_flows.CALIBRATION), slice(brevitas_flows.TRAINING, None)
    training = Events(x[None, : last.start], labels[: last.start])
    return Images(training, training.subset(first), Events(x[None, last], labels[last]))


def plain_cnn() -> Subject:
    """The CNN that Brevitas' flows are measured on, as a network of sequences of one step."""
    training = Training(brevitas_flows.EPOCHS, batch=64, learning_rate=3e-3)

    def trained(seed: int) -> nn.Module:
        part = images().training
        with torch.random.fork_rng(devices=[]):
            return brevitas_flows.trained(seed, part.x[0], part.labels)

    case = Case(
        name=CNN,
        title="a CNN without neurons, scikit-learn's digits as images",
        build=lambda: SmallCNN(brevitas_flows.WIDTH),
        data=images,  # type: ignore[arg-type]
        shape=(1, 8, 8),
        seeds=SEEDS,
        budgets=(),
        training=training,
        forward=lambda model, x: model(x[0]),
    )
    return Subject(case, trained, lambda seed: images())


def subject_of(name: str) -> Subject:
    """The network with its data."""
    return plain_cnn() if name == CNN else SUBJECTS[name]


def set_gradients(case: Case, model: nn.Module, calibration: Events) -> None:
    """Give each weight the gradient of the loss on the calibration data."""
    for x, labels in calibration.batches(100):
        functional.cross_entropy(case.scores(model, x) * case.training.scale, labels, reduction="sum").backward()


def example_of(case: Case, calibration: Events) -> Tensor:
    """What torch-pruning traces: an image, a step of the demo's network, which takes one a call, or a sequence."""
    x = calibration.x[:, :1].float()
    return x if case.name not in (CNN, "digits") else x[0]


def pruned(case: Case, model: nn.Module, parts: Parts, method: str) -> nn.Module:
    """The model, in place, with fewer channels in all layers but the last."""
    readout = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    data = [(x[0] if case.name == CNN else x, labels) for x, labels in parts.calibration.batches(100)]
    given = {"calibration_data": data} if method == "sbc" else {}
    if method == "taylor":
        set_gradients(case, model, parts.calibration)
    example = example_of(case, parts.calibration)
    get_pruner(method, model, (example,), pruning_ratio=RATIO, ignored_layers=[readout], **given).step()
    model.zero_grad()
    return model


def products(case: Case, model: nn.Module, calibration: Events) -> float:
    """Multiply-accumulates of one example."""
    return float(tp.utils.count_ops_and_params(model, (example_of(case, calibration),))[0])


def lines(networks: tuple[str, ...] = NETWORKS, seeds: tuple[int, ...] = SEEDS) -> Iterator[Line]:
    """A line for each network, seed, method and number of epochs, 0 for none."""
    for name in networks:
        subject = subject_of(name)
        case = subject.case
        for seed in tqdm(seeds, desc=f"fine-tuning, {name}", unit="seed", leave=False, disable=None):
            parts, dense = subject.parts(seed), subject.trained(seed)
            training = parts.training.subset(slice(0, TRAINING))
            known = {"network": name, "seed": seed, "dense": case.accuracy(dense, parts.test)}
            cost = products(case, dense, parts.calibration)
            for method in METHODS:
                small = pruned(case, deepcopy(dense), parts, method)
                line = known | {"method": method, "products": products(case, small, parts.calibration) / cost}
                yield line | {"epochs": 0, "accuracy": case.accuracy(small, parts.test)}
                for epochs in EPOCHS:
                    model = deepcopy(small)
                    recipe = replace(case, training=replace(case.training, epochs=epochs))
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(seed)
                        fit(recipe, model, training, f"{name}, {method}")
                    yield line | {"epochs": epochs, "accuracy": case.accuracy(model, parts.test)}


def table(found: list[Line]) -> str:
    """Accuracy of each network and method before and after training, and how far SBC is ahead at the end."""
    rows = []
    for name in dict.fromkeys(line["network"] for line in found):
        here = [line for line in found if line["network"] == name]
        dense = {line["seed"]: 100 * line["dense"] for line in here}
        for method in dict.fromkeys(line["method"] for line in here):
            mine = [line for line in here if line["method"] == method]
            left = f"{100 * tables.mean([line['products'] for line in mine]):.0f} %"
            cells = [
                tables.spread([100 * line["accuracy"] for line in mine if line["epochs"] == epochs])
                for epochs in (0, *EPOCHS)
            ]
            ahead = [
                100 * (ours["accuracy"] - theirs["accuracy"])
                for ours in here
                for theirs in mine
                if (ours["method"], ours["seed"], ours["epochs"]) == ("sbc", theirs["seed"], EPOCHS[-1])
                and theirs["epochs"] == EPOCHS[-1]
            ]
            gain = "" if method == "sbc" else tables.spread(ahead)
            label = "SBC" if method == "sbc" else method
            rows.append([name, tables.spread(list(dense.values())), label, left, *cells, gain])
    heads = ["network", "dense, %", "method", "products left", "cut, %"]
    heads += [f"{epochs} epoch{'s' * (epochs > 1)}, %" for epochs in EPOCHS]
    return tables.markdown([*heads, f"SBC ahead after {EPOCHS[-1]}"], rows)
