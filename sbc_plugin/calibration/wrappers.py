"""Modules that only call another one: what compiles a model, or runs it on several devices."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    >>> unwrapped(nn.DataParallel(nn.Linear(2, 3)))
    Linear(in_features=2, out_features=3, bias=True)
    """
    while True:
        if isinstance(model, PARALLEL):
            model = model.module
        elif is_compiled(model):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether the module is what ``torch.compile`` made of another."""
    dynamo = sys.modules.get("torch._dynamo")  # seconds to import, and there once anything was compiled
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


@contextmanager
def eager() -> Iterator[None]:
    """Inside the block compiled modules run as they were written, so that hooks see every call."""
    stance = getattr(torch.compiler, "set_stance", None) if "torch._dynamo" in sys.modules else None
    if stance is None:
        yield
    else:
        with stance("force_eager"):
            yield
