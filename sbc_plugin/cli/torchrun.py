"""The command line as a rank of ``torchrun``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from sbc_plugin.errors import RankError


@contextmanager
def under_torchrun() -> Iterator[None]:
    """Initialise ``torch.distributed`` inside the block, where ``torchrun`` has started several processes.

    Gloo is for tensors on the CPU and NCCL for those on a GPU, of which each process takes its own.

    Raises:
        RankError: the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the processes of torchrun do not find each other: {error}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()
