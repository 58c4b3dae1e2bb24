"""The number types that models are run in: autocast is switched off, half precision is summed in single."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def autocast_off() -> Iterator[tuple[str, ...]]:
    """Inside the block layers compute in the type of their weights; the device types where autocast was on.

    As a decorator it does so for a whole function.

    >>> with torch.autocast("cpu", torch.bfloat16), autocast_off() as devices:
    ...     print(devices, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    ('cpu',) torch.float32
    """
    available = torch.amp.autocast_mode.is_autocast_available
    devices = tuple(device for device in DEVICES if available(device) and torch.is_autocast_enabled(device))
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield devices


def at_least_single(x: Tensor) -> Tensor:
    """The same numbers in float32 if they are in half precision or whole, for sums that would round or overflow.

    >>> at_least_single(torch.ones(1, dtype=torch.float16)).dtype, at_least_single(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
