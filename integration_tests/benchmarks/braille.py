"""A recurrent network on tactile recordings: letters of Braille read by an artificial fingertip, half of them held out.

Recordings: L2MU-Braille (Apache-2.0, original Zenodo 7050094), 578 of 256 steps, 12 taxels, 7 letters. Network:
``braille_noDelay_bias_zero.nir`` of neuromorphs/NIR (BSD-3), 12-38-7 with recurrent CubaLIF neurons. Both lie in the
folder ``braille`` of a data folder:

    python -m integration_tests.benchmarks.braille DATA      # or SBC_DATA=DATA
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn
from tqdm import tqdm

from integration_tests.benchmarks import records
from sbc_plugin import Prune, Quantize, compress

SEEDS = range(6)
CALIBRATION = 289  # of 578 recordings
STEPS, TAXELS = 256, 12
RECORDINGS, NETWORK = "braille7_dev.npz", "braille_noDelay_bias_zero.nir"
BUDGETS: dict[str, dict[str, Any]] = {
    "50 % sparse": {"prune": Prune(0.5)},
    "70 % sparse": {"prune": Prune(0.7)},
    "4 bits": {"quantize": Quantize(4)},
    "3 bits": {"quantize": Quantize(3)},
}


def folder_of(argument: Path | None = None) -> Path | None:
    """The folder with recordings and network: below ``argument``, else below ``$SBC_DATA``; None if there is none."""
    given = argument or (Path(os.environ["SBC_DATA"]) if "SBC_DATA" in os.environ else None)
    folder = None if given is None else given / "braille"
    return folder if folder is not None and all((folder / name).exists() for name in (RECORDINGS, NETWORK)) else None


def recordings(folder: Path) -> tuple[Tensor, Tensor]:
    """Spikes (T, N, taxels) and labels (N,)."""
    stored = numpy.load(folder / RECORDINGS)
    labels = torch.from_numpy(stored["label"].astype(numpy.int64))
    bits = numpy.unpackbits(stored["packed"], axis=1)[:, : STEPS * TAXELS].reshape(len(labels), STEPS, TAXELS)
    return torch.from_numpy(bits).float().transpose(0, 1).contiguous(), labels


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


def lines(folder: Path, seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """A line for each seed (which draws the calibration half), budget and method; accuracy on the other half."""
    x, labels = recordings(folder)
    dense = network(folder)
    for seed in tqdm(seeds, desc="braille", leave=False, disable=None):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        known, held_out = order[:CALIBRATION], order[CALIBRATION:]

        def measured(model: nn.Module, held_out: Tensor = held_out) -> float:
            return accuracy(model, x[:, held_out], labels[held_out])

        yield {"seed": seed, "budget": "none", "method": "none", "accuracy": measured(dense), "seconds": 0.0}
        for budget, settings in BUDGETS.items():
            for method in ("magnitude" if "prune" in settings else "rtn", "obc", "sbc"):
                start = time.perf_counter()
                small, _ = compress(dense, [x[:, known]], method=method, progress=False, **settings)
                seconds = round(time.perf_counter() - start, 3)
                score = measured(small)
                yield {"seed": seed, "budget": budget, "method": method, "accuracy": score, "seconds": seconds}


def lines_if_present() -> Iterator[dict[str, Any]] | None:
    """:func:`lines` of the data below ``$SBC_DATA``; None where there is none."""
    folder = folder_of()
    return None if folder is None else lines(folder)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code, 0 also where there is no data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder that holds braille/; default $SBC_DATA")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    folder = folder_of(options.data)
    if folder is None:
        print(f"skipped: no folder braille/ with {RECORDINGS} and {NETWORK}; give the data folder, or set SBC_DATA")
        return 0
    print(records.write("braille", lines(folder, range(options.seeds))), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
