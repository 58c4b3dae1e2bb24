"""A recurrent network on tactile recordings: letters of Braille read by an artificial fingertip, half of them held out.

Recordings: L2MU-Braille (Apache-2.0, original Zenodo 7050094), 578 of 256 steps, 12 taxels, 7 letters. Network:
``braille_noDelay_bias_zero.nir`` of neuromorphs/NIR (BSD-3), 12-38-7 with recurrent CubaLIF neurons. Both lie in the
folder ``braille`` of the data folder ``$SBC_DATA``.
"""

import os
import warnings
from pathlib import Path

import nir
import norse.torch as norse
import numpy
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn

from integration_tests.benchmarks.splits import Split

CALIBRATION = 289  # of 578 recordings
STEPS, TAXELS = 256, 12
RECORDINGS, NETWORK = "braille7_dev.npz", "braille_noDelay_bias_zero.nir"


def folder_of(argument: Path | None = None) -> Path | None:
    """The folder with recordings and network: below ``argument``, else below ``$SBC_DATA``; None if there is none."""
    given = argument or (Path(os.environ["SBC_DATA"]) if "SBC_DATA" in os.environ else None)
    folder = None if given is None else given / "braille"
    return folder if folder is not None and all((folder / name).exists() for name in (RECORDINGS, NETWORK)) else None


def folder() -> Path:
    """:func:`folder_of` ``$SBC_DATA``.

    Raises:
        FileNotFoundError: it is not set, or holds no recordings.
    """
    if (found := folder_of()) is None:
        raise FileNotFoundError(f"no folder braille/ with {RECORDINGS} and {NETWORK} below $SBC_DATA; set SBC_DATA")
    return found


def recordings(folder: Path) -> tuple[Tensor, Tensor]:
    """Spikes (T, N, taxels) and labels (N,)."""
    stored = numpy.load(folder / RECORDINGS)
    labels = torch.from_numpy(stored["label"].astype(numpy.int64))
    bits = numpy.unpackbits(stored["packed"], axis=1)[:, : STEPS * TAXELS].reshape(len(labels), STEPS, TAXELS)
    return torch.from_numpy(bits).float().transpose(0, 1).contiguous(), labels


def halves(seed: int) -> Split:
    """One half of the recordings, drawn by ``seed``, to calibrate with; the other to test with.

    The network was trained by others; "not seen" means here, not seen by calibration.

    Raises:
        FileNotFoundError: the recordings are not there.
    """
    x, labels = recordings(folder())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    known, held_out = ((x[:, some].transpose(0, 1), labels[some]) for some in order.tensor_split([CALIBRATION]))
    return Split(known, held_out, lambda sequences: sequences.transpose(0, 1), CALIBRATION)


def network(folder: Path) -> nn.Module:
    """The trained network, one step a call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import, about shapes that it infers
        imported: nn.Module = norse.from_nir(nir.read(folder / NETWORK), dt=1e-4, reset_method=reset_value)
    return imported


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The fraction of recordings (T, N, taxels) whose letter's neuron spikes most."""
    state, counts = None, torch.zeros(())
    with torch.no_grad():
        for step in x:
            spikes, state = model(step, state)
            counts = counts + spikes
    return float((counts.argmax(1) == labels).double().mean())
