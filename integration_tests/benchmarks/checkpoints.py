"""Trained networks in files: matrices and kernels in half precision, everything else as it is."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sbc_plugin.errors import CheckpointError

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def path_of(case: str, seed: int, folder: Path = CHECKPOINTS) -> Path:
    """The file of the network of ``case`` that was trained from ``seed``."""
    return folder / f"{case}-{seed}.safetensors"


def store(model: nn.Module, path: Path) -> None:
    """Write the model's state; weights of two or more axes are rounded to float16, half the size.

    The model itself is rounded too, so that what is measured afterwards is what the file gives back.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(parameter.half())
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half() if name in matrices else t for name, t in model.state_dict().items()}, path)


def restore(model: nn.Module, path: Path) -> nn.Module:
    """The model, in eval mode, with the state in the file.

    Raises:
        CheckpointError: there is no such file.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}; make it with: python -m integration_tests.benchmarks.train")
    model.load_state_dict(load_file(path))
    return model.eval()
