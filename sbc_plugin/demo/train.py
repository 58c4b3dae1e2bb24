"""Train the demo's networks and store them; ``python -m sbc_plugin.demo.train`` made those that are shipped."""

import argparse
import time
from pathlib import Path

import torch

from sbc_plugin.demo import digits, network


def main(arguments: list[str] | None = None) -> None:
    """Train one network a seed, print its accuracy on held-out digits, and write its checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m sbc_plugin.demo.train", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds to train (default: 0 to 4)")
    parser.add_argument("--output", type=Path, default=network.CHECKPOINTS, help="folder (default: the package's own)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums are then taken in the same order everywhere; a second thread gains little
    torch.set_flush_denormal(True)
    options.output.mkdir(parents=True, exist_ok=True)
    data = digits.load()
    for seed in options.seed:
        start = time.perf_counter()
        trained = network.train(seed, data.training)
        seconds = time.perf_counter() - start
        path = network.store(trained, seed, options.output)
        print(f"seed {seed}: {network.accuracy(trained, data.test):.1%} of held-out digits, {seconds:.0f} s, {path}")


if __name__ == "__main__":
    main()
