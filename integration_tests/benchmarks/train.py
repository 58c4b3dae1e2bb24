"""Train the benchmark's networks: surrogate gradients through time, AdamW, one-cycle learning rate, one thread.

    python -m integration_tests.benchmarks.train 2fc-events --seed 0 1 2

writes ``checkpoints/CASE-SEED.safetensors`` and prints a JSON line. With ``--validate`` the last tenth of the training
data is left out, accuracy is measured on it, and nothing is written: that is how hyperparameters were chosen.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from integration_tests.benchmarks import checkpoints
from integration_tests.benchmarks.cases import CASES, Case
from integration_tests.benchmarks.sequence_cases import SEQUENCE_CASES
from sbc_plugin.demo.digits import Events

WEIGHT_DECAY = 1e-4
CASES_BY_NAME = {case.name: case for case in (*CASES, *SEQUENCE_CASES)}


def train(case: Case, seed: int, training: Events) -> nn.Module:
    """The trained network, in eval mode; the same seed, data and thread count give the same on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = case.build()
        fit(case, network, training, f"{case.name}, seed {seed}")
        if case.training.on_grid:
            fit(case, network, training, f"{case.name}, seed {seed}, on its grid", on_grid(network))
    return network


def on_grid(network: nn.Module, sparsity: float = 0.45, levels: int = 7) -> Callable[[], None]:
    """A function that rounds matrices after each step, of which the optimiser's steps add up unrounded.

    The smallest weights of each are zero from now on; the others lie on a grid with a power of two as its step, so that
    they are exact in half precision.
    """
    parts = []
    for weight in (parameter for parameter in network.parameters() if parameter.dim() > 1):
        values = weight.detach()
        kept = values.abs() > values.abs().quantile(sparsity)
        step = 2.0 ** math.ceil(math.log2(float(values.abs().max()) / levels))
        parts.append((weight, values * kept, values.clone(), kept, step))

    @torch.no_grad()
    def put_back() -> None:
        for weight, exact, written, kept, step in parts:
            exact.add_(weight - written).mul_(kept)
            written.copy_((exact / step).round().clamp(-levels, levels) * step)
            weight.copy_(written)

    return put_back


def fit(
    case: Case, network: nn.Module, training: Events, title: str, after_step: Callable[[], None] = lambda: None
) -> None:
    """Train ``network`` in place as ``case.training`` says, from the weights that it has; it ends in eval mode.

    Draws the order of the sequences from torch's global generator.

    Args:
        case: for its recipe and its scores.
        network: to train.
        training: sequences and labels.
        title: of the progress bar.
        after_step: called after each step of the optimiser, e.g. to put pruned weights back to zero.
    """
    recipe = case.training
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = recipe.epochs * (len(training) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    with tqdm(total=steps, desc=title, leave=False, disable=None) as bar:
        for _ in range(recipe.epochs):
            order = torch.randperm(len(training))
            for chosen in order.split(recipe.batch)[: len(training) // recipe.batch]:
                x = training.x[:, chosen].float()
                scores = case.scores(network, x) * recipe.scale
                loss = (
                    functional.cross_entropy(scores, training.labels[chosen])
                    if case.target is None
                    else functional.mse_loss(scores, case.target(x))
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                after_step()
                bar.update()
    network.eval()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES_BY_NAME)
    parser.add_argument("--seed", type=int, nargs="+", help="default: all of the case")
    parser.add_argument("--output", type=Path, default=checkpoints.CHECKPOINTS, help="folder of the checkpoints")
    parser.add_argument("--validate", action="store_true", help="judge on a tenth of the training data, write nothing")
    for name, kind in (("epochs", int), ("batch", int), ("learning_rate", float), ("scale", float)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the case's own")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    case = CASES_BY_NAME[options.case]
    names = ("epochs", "batch", "learning_rate", "scale")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    case = replace(case, training=replace(case.training, **chosen))
    try:
        data = case.data()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    training, judged = data.training, data.test
    if options.validate:
        kept = len(training) * 9 // 10
        training, judged = training.subset(slice(0, kept)), training.subset(slice(kept, None))
    for seed in options.seed or case.seeds:
        start = time.perf_counter()
        network = train(case, seed, training)
        seconds = round(time.perf_counter() - start, 1)
        if not options.validate:
            checkpoints.store(network, checkpoints.path_of(case.name, seed, options.output))
        accuracy = case.accuracy(network, judged)
        print(json.dumps({"case": case.name, "seed": seed, "accuracy": accuracy, "seconds": seconds} | chosen))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
