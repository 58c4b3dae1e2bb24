"""The benchmark's cases: each a network, its data, checkpoints trained from several seeds, and budgets to compress to.

case = CASES_BY_NAME["2fc-events"]
data = case.data()                      # FileNotFoundError says how to get data that are not there
dense = case.trained(seed=0)
small, report = compress(dense, data.calibration.batches(100), forward=case.forward, prune=Prune(0.9))
case.accuracy(small, data.test)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from integration_tests.benchmarks import checkpoints, fashion, vowels
from integration_tests.benchmarks.networks import events, recurrent, resnets, static, transformer
from integration_tests.benchmarks.splits import Split
from sbc_plugin.demo.digits import Events
from sbc_plugin.demo.run import Budget
from sbc_plugin.evaluation.answers import scores_of
from sbc_plugin.layers import Forward
from sbc_plugin.norse import default_forward
from sbc_plugin.settings import Prune, Quantize


@dataclass(frozen=True)
class Training:
    """How ``train.py`` makes a case's checkpoints; chosen on a part of the training data.

    Attributes:
        epochs: passes over the training data.
        batch: sequences a step.
        learning_rate: AdamW's, at the top of a one-cycle schedule.
        scale: factor from scores to logits.
        on_grid: then train as long again with 45 % zeros and the rest on a grid of 4 bits a tensor.
    """

    epochs: int
    batch: int = 64
    learning_rate: float = 2e-3
    scale: float = 1.0
    on_grid: bool = False


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Attributes:
        name: also of the checkpoints.
        title: what it is, for people.
        build: the untrained network, drawn from torch's global generator; takes whole sequences (T, B, ...).
        data: loads the split; FileNotFoundError where the data are absent.
        shape: of one step of one sequence, so that a test needs no data.
        seeds: of the committed checkpoints.
        budgets: that every method gets.
        training: how the checkpoints were made.
        forward: of :func:`sbc_plugin.compress`; None = its default.
        target: of sequences (T, B, ...), what the network shall answer, (B, ...); None: the class of its label.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    data: Callable[[], Split]
    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    budgets: tuple[Budget, ...]
    training: Training
    forward: Forward | None = None
    target: Callable[[Tensor], Tensor] | None = None

    def trained(self, seed: int) -> nn.Module:
        """The network trained from ``seed``, in eval mode.

        Raises:
            CheckpointError: there is no checkpoint of this seed.
        """
        with torch.random.fork_rng(devices=[]):
            network = self.build()
        return checkpoints.restore(network, checkpoints.path_of(self.name, seed))

    def scores(self, model: nn.Module, x: Tensor) -> Tensor:
        """(B, classes) of the sequences ``x`` (T, B, ...): spike counts, or what the readout summed over time."""
        scores = scores_of((self.forward or default_forward(model, x))(model, x))
        assert scores is not None
        return scores

    def accuracy(self, model: nn.Module, part: Events, batch: int = 250) -> float:
        """The fraction of sequences whose label scores highest; of equal scores, the first wins.

        Of a network that answers with numbers, the fraction of their variance that it explains.
        """
        if self.target is not None:
            return self._explained(model, part, batch, self.target)
        with torch.no_grad():
            right = sum(int((self.scores(model, x).argmax(1) == labels).sum()) for x, labels in part.batches(batch))
        return right / len(part)

    def _explained(self, model: nn.Module, part: Events, batch: int, target: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            pairs = [(self.scores(model, x), target(x)) for x, _ in part.batches(batch)]
        found, wanted = (torch.cat(each).double() for each in zip(*pairs, strict=True))
        return float(1 - (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


JOINT = Budget("90 % sparse, 4 bits", "magnitude", prune=Prune(0.9), quantize=Quantize(4))
BY_TENSOR = Budget("2 bits a tensor", "rtn", quantize=Quantize(2, granularity="tensor"))
# Two bits are three values around 0, or, with a zero point, four.
FOUR_VALUES = Budget("2 bits, zero point", "rtn", quantize=Quantize(2, symmetric=False))
# In the memory of so many bits for each weight, finer grids where they save most.
MIXED = Budget("2 bits on average", "rtn", quantize=Quantize(2, allocation="loss"))
FINE_MIXED = Budget("4 bits on average", "rtn", quantize=Quantize(4, allocation="loss"))
FOUR_MIXED = Budget("2 bits on average, zero point", "rtn", quantize=Quantize(2, symmetric=False, allocation="loss"))
TENSOR_MIXED = Budget(
    "2 bits on average a tensor, zero point",
    "rtn",
    quantize=Quantize(2, granularity="tensor", symmetric=False, allocation="loss"),
)


def budgets(sparsities: tuple[int, ...], bits: tuple[int, ...] = (4, 2)) -> tuple[Budget, ...]:
    """A budget for each sparsity in per cent, and for each number of bits a channel."""
    return (
        *(Budget(f"{percent} % sparse", "magnitude", prune=Prune(percent / 100)) for percent in sparsities),
        *(Budget(f"{count} bits", "rtn", quantize=Quantize(count)) for count in bits),
    )


def _on_images(name: str, title: str, build: Callable[[], nn.Module]) -> Case:
    """A case on still images, shown four times."""
    return Case(
        name=name,
        title=f"{title}, Fashion-MNIST images, T = {fashion.IMAGE_STEPS}",
        build=build,
        data=partial(fashion.load, fashion.still),
        shape=(1, 28, 28),
        seeds=(0, 1, 2),
        budgets=(*budgets((80, 90, 95)), FINE_MIXED, MIXED, JOINT),
        training=Training(epochs=4, learning_rate=5e-3, scale=0.5),
    )


CASES = (
    Case(
        name="2fc-events",
        title="2312-500-10, Fashion-MNIST as saccade events, T = 10",
        build=events.two_linear,
        data=partial(fashion.load, fashion.events),
        shape=(2, events.SIDE, events.SIDE),
        seeds=(0, 1, 2, 3, 4),
        budgets=(*budgets((95, 97, 98)), FOUR_VALUES, BY_TENSOR, MIXED, JOINT),
        training=Training(epochs=6, learning_rate=5e-3, scale=0.5),
    ),
    Case(
        name="conv-events",
        title="four convolutions and two linear layers, Fashion-MNIST as saccade events, T = 10",
        build=events.convolutional,
        data=partial(fashion.load, fashion.events),
        shape=(2, events.SIDE, events.SIDE),
        seeds=(0, 1, 2),
        budgets=(*budgets((70, 80, 90, 95)), FOUR_VALUES, BY_TENSOR, MIXED, FOUR_MIXED, TENSOR_MIXED, JOINT),
        training=Training(epochs=6, learning_rate=5e-3, scale=0.3),
    ),
    _on_images("vgg-static", "VGG of nine layers, direct coding", static.vgg),
    _on_images("sew-resnet", "SEW-ResNet of eight blocks", resnets.sew_resnet),
    _on_images("ms-resnet", "membrane-shortcut ResNet of eight blocks", resnets.ms_resnet),
    _on_images("spike-transformer", "spike-driven Transformer of four blocks", transformer.spike_transformer),
    Case(
        name="recurrent",
        title="12-96-9 with LIFRecurrent, JapaneseVowels, T = 29",
        build=recurrent.recurrent,
        data=vowels.load,
        shape=(vowels.CHANNELS,),
        seeds=(0, 1, 2, 3, 4),
        budgets=(*budgets((70, 80, 90, 95)), MIXED, JOINT),
        training=Training(epochs=40, batch=20, learning_rate=5e-3, scale=0.2),
    ),
)
CASES_BY_NAME = {case.name: case for case in CASES}
