"""Whole channels cut, then two epochs of training with labels: SBC against torch-pruning's own importances.

`get_pruner(method, ..., pruning_ratio=...)` cuts the same fraction of each layer's channels, so that all methods leave
the same products (MACs), about half. Then the network is trained by the recipe of the dense one, for two epochs of at
most 2,000 sequences. The gradient of *taylor* is that of the calibration data with labels. *group_norm* goes without
sparsity learning, which would be training that the others do not get. The plain CNN has no neurons; it is trained on
the digits as images.

On 2fc-events this speaks against us: half of its one hidden layer can go at little cost by any method, two epochs on a
tenth of the training data do SBC no good, and it ends behind the others.
"""

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
from integration_tests.benchmarks.accuracy import Known, digest
from integration_tests.benchmarks.cases import Case, Training
from integration_tests.benchmarks.records import Line, commit
from integration_tests.benchmarks.subjects import SUBJECTS, Parts, Subject
from integration_tests.benchmarks.train import fit
from integration_tests.models.small_cnn import SmallCNN
from sbc_plugin.demo.digits import Events
from sbc_plugin.torch_pruning import get_pruner

CNN = "plain CNN"
METHODS = ("sbc", "l1", "group_norm", "taylor")
SEEDS = (0, 1, 2)
EPOCHS = 2
# The fraction of each layer's channels that leaves about half of the products; 2fc-events has one layer to cut.
RATIOS = {CNN: 0.3, "digits": 0.3, "2fc-events": 0.5}
TRAINING = 2_000  # sequences of an epoch
CUT, TRAINED = "cut", f"{EPOCHS} epochs later"
NETWORKS = tuple(RATIOS)


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
    get_pruner(method, model, (example,), pruning_ratio=RATIOS[case.name], ignored_layers=[readout], **given).step()
    model.zero_grad()
    return model


def products(case: Case, model: nn.Module, calibration: Events) -> float:
    """Multiply-accumulates of one example."""
    return float(tp.utils.count_ops_and_params(model, (example_of(case, calibration),))[0])


def lines(known: Known = lambda line: False, networks: tuple[str, ...] = NETWORKS) -> Iterator[Line]:
    """Measure what is not known yet: lines of each network, seed and method, right after the cut and after training."""
    for name in networks:
        subject = subject_of(name)
        case, parts = subject.case, subject.parts(0)
        training = parts.training.subset(slice(0, TRAINING))
        recipe = replace(case, training=replace(case.training, epochs=EPOCHS))
        for seed in tqdm(SEEDS, desc=f"fine-tuning, {name}", unit="seed", leave=False, disable=None):
            dense = subject.trained(seed)
            line = {"network": name, "seed": seed, "dense": case.accuracy(dense, parts.test)}
            cost = products(case, dense, parts.calibration)
            for method in METHODS:
                line |= {"method": method, "settings": digest([str(recipe.training), RATIOS[name], TRAINING])}
                if known(line | {"budget": TRAINED}):
                    continue
                model = pruned(case, deepcopy(dense), parts, method)
                line |= {"products": products(case, model, parts.calibration) / cost, "commit": commit()}
                yield line | {"budget": CUT, "accuracy": case.accuracy(model, parts.test)}
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    fit(recipe, model, training, f"{name}, {method}")
                yield line | {"budget": TRAINED, "accuracy": case.accuracy(model, parts.test)}


def table(found: list[Line]) -> str:
    """Accuracy of each network and method right after the cut and after training, and how far SBC is ahead in both."""
    accuracies = {tuple(line[name] for name in ("network", "method", "budget", "seed")): line for line in found}

    def of(network: str, method: str, budget: str) -> list[float]:
        return [100 * accuracies[network, method, budget, seed]["accuracy"] for seed in SEEDS]

    rows = []
    for network, method in dict.fromkeys((line["network"], line["method"]) for line in found):
        here = [line for line in found if (line["network"], line["method"], line["budget"]) == (network, method, CUT)]
        row = [network, tables.spread([100 * line["dense"] for line in here]), "SBC" if method == "sbc" else method]
        row.append(f"{100 * tables.mean([line['products'] for line in here]):.0f} %")
        for budget in (CUT, TRAINED):
            theirs, ours = of(network, method, budget), of(network, "sbc", budget)
            ahead = [one - other for one, other in zip(ours, theirs, strict=True)]
            row += [tables.spread(theirs), "" if method == "sbc" else tables.spread(ahead)]
        rows.append(row)
    heads = ["network", "dense, %", "method", "products left"]
    heads += [cell for budget in (CUT, TRAINED) for cell in (f"{budget}, %", "SBC ahead")]
    return tables.markdown(heads, rows)
