"""torch-pruning's own tests, from its source distribution, with SBC in the place of what they test.

They are fetched by pip into ``build/`` when they are needed, and never committed. Each file runs as it is: it is
executed, and then each ``test_`` function in it is called. ``python -m integration_tests.torch_pruning.host_suite
VARIANT FILE`` runs one and prints what happened.
"""

import functools
import importlib.metadata
import random
import runpy
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from sbc_plugin.torch_pruning import SBCImportance, SBCPruner, register

CACHE = Path(__file__).parents[2] / "build" / "torch-pruning-tests"
SIDE = 32  # pixels
WIDE = ("test_reshape.py",)  # its last layer reads 16384 columns: 2 GB for each Hessian
VARIANTS = ("stock", "pruner", "importance", "registered")
PRUNERS = ("BasePruner", "MetaPruner", "MagnitudePruner", "BNScalePruner", "GroupNormPruner", "GrowingRegPruner")


@functools.cache
def fetched_tests() -> Path | None:
    """The folder of the tests of the version that is installed; None where pip cannot fetch them."""
    version = importlib.metadata.version("torch-pruning")
    folder = CACHE / f"torch_pruning-{version}"
    if not folder.is_dir():
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(CACHE)]
        command = [sys.executable, "-m", "pip", "download", *options, f"torch-pruning=={version}"]
        if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode:
            return None
        with tarfile.open(CACHE / f"torch_pruning-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder / "tests"


class Examples:
    """The example inputs of the last graph that was built, and others like them: something to calibrate on."""

    def __init__(self) -> None:
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)

        def like(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.randn(value.shape, generator=generator)
            return {k: like(v) for k, v in value.items()} if isinstance(value, dict) else [like(v) for v in value]

        yield from (like(self.last) for _ in range(4))

    def forward(self, model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, dict):
            return model(**batch)
        return model(batch) if isinstance(batch, Tensor) else model(*batch)

    @contextmanager
    def seen(self) -> Iterator[None]:
        build = tp.DependencyGraph.build_dependency

        @functools.wraps(build)
        def watched(graph: Any, model: Any, example_inputs: Any, *args: Any, **named: Any) -> Any:
            self.last = example_inputs
            return build(graph, model, example_inputs, *args, **named)

        with mock.patch.object(tp.DependencyGraph, "build_dependency", watched):
            yield


@contextmanager
def in_place(variant: str) -> Iterator[None]:
    """Inside the block torch-pruning's names hold what the variant says."""
    examples = Examples()
    given: dict[str, Any] = {"calibration_data": examples, "forward": examples.forward}

    def pruner(cls: type) -> type:
        def init(self: Any, model: Any, example_inputs: Any, importance: Any = None, **named: Any) -> None:
            for name in ("reg", "delta_reg", "alpha", "group_lasso"):
                named.pop(name, None)
            SBCPruner.__init__(self, model, example_inputs, **named, **given)

        return type(cls.__name__, (SBCPruner,), {"__init__": init})

    def importance(cls: type) -> type:
        def init(self: Any, *args: Any, **named: Any) -> None:
            SBCImportance.__init__(self, **given)

        return type(cls.__name__, (SBCImportance,), {"__init__": init})

    with ExitStack() as stack:
        stack.enter_context(examples.seen())
        if variant == "pruner":
            for name in PRUNERS:
                stack.enter_context(mock.patch.object(tp.pruner, name, pruner(getattr(tp.pruner, name))))
        if variant == "importance":
            classes = {name: value for name, value in vars(tp.importance).items() if isinstance(value, type)}
            for name, cls in classes.items():
                if issubclass(cls, tp.importance.Importance) and cls is not tp.importance.Importance:
                    stack.enter_context(mock.patch.object(tp.importance, name, importance(cls)))
        if variant == "registered":
            stack.enter_context(register(**given, in_place_of="l2"))
        yield


class NarrowResNet(ResNet):
    """torchvision's ResNet with an eighth of the channels behind its first layers."""

    def __init__(self, block: Any, blocks: list[int]) -> None:
        super().__init__(block, blocks)
        self.fc = nn.Linear(512 * block.expansion // 8, 1000)

    def _make_layer(self, block: Any, planes: int, *args: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **named)


SMALL: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: NarrowResNet(BasicBlock, [2, 2, 2, 2]),
    "resnet50": lambda: NarrowResNet(Bottleneck, [3, 4, 6, 3]),
    "densenet121": lambda: DenseNet(growth_rate=8, block_config=(3, 6, 6, 3), num_init_features=16, bn_size=2),
    "vit_b_16": lambda: VisionTransformer(
        image_size=SIDE, patch_size=16, num_layers=4, num_heads=12, hidden_dim=96, mlp_dim=384
    ),
    "convnext_base": lambda: ConvNeXt(
        [CNBlockConfig(*stage) for stage in ((16, 32, 2), (32, 64, 2), (64, 128, 4), (128, None, 2))]
    ),
}


@contextmanager
def small_models() -> Iterator[None]:
    """torchvision's models are built the same way with fewer channels, and images of 224 pixels a side have 32.

    No test of theirs asks for a number of channels. Weights are drawn; where a test asks for trained ones, they are the
    same for each call.
    """
    randn = torch.randn

    def made(build: Callable[[], nn.Module], pretrained: bool = False) -> nn.Module:
        with torch.random.fork_rng(enabled=pretrained):
            if pretrained:
                torch.manual_seed(0)
            return build()

    def small_images(*shape: Any, **named: Any) -> Tensor:
        return randn(*shape[:-2], SIDE, SIDE, **named) if shape[-2:] == (224, 224) else randn(*shape, **named)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "randn", small_images))
        for name, build in SMALL.items():
            stack.enter_context(mock.patch.object(models, name, functools.partial(made, build)))
        yield


@contextmanager
def small_layers() -> Iterator[None]:
    """Layers that a test makes itself have an eighth of their channels where it asks for 64 or more, its input too."""

    def eighth(size: Any) -> Any:
        return size // 8 if isinstance(size, int) and size >= 64 else size

    def small(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: make(*map(eighth, given), **{key: eighth(size) for key, size in named.items()})

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "randn", small(torch.randn)))
        for kind in (nn.Linear, nn.ConvTranspose2d):
            stack.enter_context(mock.patch.object(kind, "__init__", small(kind.__init__)))
        yield


def run(variant: str, file: str) -> str:
    """Nothing if the file's tests pass, else the error in one line."""
    folder = fetched_tests()
    assert folder is not None
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    path = sys.path.copy()
    narrowed = small_layers() if file in WIDE else nullcontext()
    try:
        with warnings.catch_warnings(), in_place(variant), small_models(), narrowed:
            warnings.simplefilter("ignore")
            names = runpy.run_path(str(folder / file))
            for name, value in names.items():
                if name.startswith("test_") and callable(value):
                    value()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        sys.path[:] = path
    return ""


if __name__ == "__main__":
    import contextlib
    import io
    import time

    for each in sys.argv[2:] or sorted(p.name for p in (fetched_tests() or Path()).glob("test_*.py")):
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            result = run(sys.argv[1], each)
        print(f"{sys.argv[1]:10} {each:40} {time.process_time() - started:6.1f} s  {result or 'passed'}", flush=True)
