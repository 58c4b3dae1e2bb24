"""The models and tasks that Norse ships, with data of their shapes and weights that make their neurons spike.

The tasks import packages that a user of their models does not need (a logger, a game, a trainer), and ``memory`` a plot
that Norse 1.1 no longer has; empty modules stand in for them. ``cifar10`` cannot be imported with Norse 1.1 at all.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

STAND_INS = ("gym", "pytorch_lightning", "torch.utils.tensorboard")


@dataclass(frozen=True)
class NorsesModel:
    """A model as it comes from the package.

    Attributes:
        name: for the table.
        model: in eval mode.
        batch: what it takes.
        output: the module with which its NIR file ends; None where it returns the output of one.
        whole: layers that channel pruning has to leave whole.
        dtype: in which answers are compared.
    """

    name: str
    model: nn.Module
    batch: Tensor
    output: str | None = None
    whole: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64


@contextmanager
def stand_ins() -> Iterator[None]:
    """Empty modules for packages that the tasks import."""
    plots: Any = import_module("norse.torch.utils.plot")
    missing = [name for name in STAND_INS if name not in sys.modules]
    try:
        for name in missing:
            module: Any = ModuleType(name)
            module.LightningModule, module.LightningDataModule, module.SummaryWriter = nn.Module, object, object
            sys.modules[name] = module
        plots.plot_spikes_2d = None
        yield
    finally:
        for name in missing:
            del sys.modules[name]
        del plots.plot_spikes_2d


def models() -> list[NorsesModel]:
    """All that can be imported; their modules are forgotten again, since they hold stand-ins."""
    known = set(sys.modules)
    try:
        with stand_ins():
            return [_lively(model) for model in _models()]
    finally:
        for name in set(sys.modules) - known:
            if name.startswith(("norse.task", "norse.dataset")):
                del sys.modules[name]


def _models() -> Iterator[NorsesModel]:
    def draw(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5).float()

    yield NorsesModel("`ConvNet`", norse.ConvNet(), draw(6, 3, 1, 28, 28), whole=("conv2",))
    yield NorsesModel("`ConvNet4`, 20 x 20", norse.ConvNet4(feature_size=20), draw(6, 3, 1, 20, 20), whole=("conv2",))
    few = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    yield NorsesModel("`MobileNetV2`, five blocks", norse.MobileNetV2(10, 1.0, few), draw(4, 3, 3, 32, 32))
    memory: Any = import_module("norse.task.memory")
    for kind in ("lif", "lsnn", "lsnnlif"):
        settings = {"optimizer": "adam", "learning_rate": 0.1, "regularization_factor": 1, "regularization_target": 1}
        given = Namespace(seq_length=8, seq_repetitions=1, model="super", neuron_model=kind, dt=1e-3, **settings)
        layers = ("layer.lif_cell", "layer.lsnn_cell") if kind == "lsnnlif" else ("layer",)
        yield NorsesModel(f"task `memory`, {kind}", memory.MemoryNet(10, 4, given), draw(3, 16, 10), "readout", layers)
    cartpole: Any = import_module("norse.task.cartpole")
    yield NorsesModel("task `cartpole`, LIF", cartpole.Policy(), 2 * draw(5, 4) - 1, dtype=torch.float32)
    yield NorsesModel("task `cartpole`, LSNN", cartpole.LSNNPolicy(), 2 * draw(5, 4) - 1, dtype=torch.float32)
    mnist: Any = import_module("norse.task.mnist")
    yield NorsesModel(
        "task `mnist`",
        mnist.LIFConvNet(784, 12, 20.0),
        2 * draw(3, 1, 28, 28),
        whole=("rsnn.conv2",),
        dtype=torch.float32,
    )
    speech: Any = import_module("norse.task.speech_commands.model")
    yield NorsesModel("task `speech_commands`, LIF", speech.lif_model(32, 20, 5), draw(10, 3, 20), "readout")
    yield NorsesModel("task `speech_commands`, LSNN", speech.lsnn_model(32, 20, 5), draw(10, 3, 20), "readout")


@torch.no_grad()
def _lively(shipped: NorsesModel) -> NorsesModel:
    torch.manual_seed(0)
    for parameter in shipped.model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(3 * (torch.randn(parameter.shape) + 0.3) / parameter[0].numel() ** 0.5)
    for module in shipped.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 2.0)
    shipped.model.eval()
    return shipped
