"""Seconds and loss of each pruning solver on one large spiking layer, 500 x 2312 at 97 % zeros unless told otherwise.

    python integration_tests/benchmarks/solver_speed.py [--rows 500] [--columns 2312] [--solvers auto obs ...]

The layer is made from a seed: images of ten classes of blobs are moved along three saccades in front of an event sensor
(``columns = 2 * side^2``: on and off events), and a network columns-rows-10 of LIF neurons is trained on them for some
steps. The Hessian is that of its first layer, inputs filtered by the neuron's impulse response. Each solver's mask gets
the same exact refit before its loss is taken; the seconds of ``obs`` (the greedy ordering, B_in = 10) are those of the
mask alone, those of the others of mask and refit. One JSON line a solver is appended to ``results/solver_speed.jsonl``.
"""

import argparse
import json
import math
import platform
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sbc_plugin.core.hessian import HessianAccumulator, layer_loss
from sbc_plugin.core.obs import obs_mask
from sbc_plugin.core.pruning import prune, refit

ALPHA = 0.25  # dt / tau_mem, dimensionless
STEPS = 10  # T
RESULTS = Path(__file__).parent / "results" / "solver_speed.jsonl"


def blob_images(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, side, side) of 10 classes, each six blobs whose places jitter, and the class of each."""
    label = torch.randint(10, (count,), generator=generator)
    place = (0.2 + 0.6 * torch.rand(10, 6, 2, generator=generator)) * side
    width = (0.03 + 0.05 * torch.rand(10, 6, generator=generator)) * side
    place = place[label] + 0.05 * side * torch.randn(count, 6, 2, generator=generator)
    pixel = torch.arange(side, dtype=torch.float32)
    near = -((pixel - place[..., None]) ** 2) / (2 * width[label][..., None, None] ** 2)  # (count, 6, 2, side)
    image = (near[:, :, 0, :, None] + near[:, :, 1, None, :]).exp().amax(1)
    return image, label


def saccade_events(image: Tensor, generator: torch.Generator) -> Tensor:
    """Events (T, count, 2 * side * side) of a sensor that sees the images move along a triangle; 1 % is noise."""
    side = image.shape[-1]
    intensity = (image + 0.1).log()[:, None]
    corner = torch.tensor([[0.0, 0.0], [3.0, -3.0], [-3.0, -3.0], [0.0, 0.0]]) * side / 34

    def seen(step: int) -> Tensor:
        leg = min(int(3 * step / STEPS), 2)
        shift = torch.lerp(corner[leg], corner[leg + 1], 3 * step / STEPS - leg) * 2 / side
        theta = torch.tensor([[1.0, 0.0, -shift[0]], [0.0, 1.0, -shift[1]]]).expand(len(image), 2, 3)
        grid = F.affine_grid(theta, list(intensity.shape), align_corners=False)
        return F.grid_sample(intensity, grid, padding_mode="border", align_corners=False)[:, 0]

    reference, events = seen(0), []
    for step in range(1, STEPS + 1):
        current = seen(step)
        on, off = current - reference > 0.25, reference - current > 0.25
        reference = torch.where(on | off, current, reference)
        noise = torch.rand(len(image), 2, side, side, generator=generator) < 0.01
        events.append((torch.stack([on, off], dim=1) | noise).float().flatten(1))
    return torch.stack(events)


class Spike(torch.autograd.Function):
    """A step whose gradient is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(v)
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        (v,) = ctx.saved_tensors
        return grad / (1 + 10 * v.abs()) ** 2


def trained_weight(events: Tensor, label: Tensor, rows: int, steps: int, generator: torch.Generator) -> Tensor:
    """The first weight (rows, columns) of a LIF network trained on the events; prints its training accuracy."""
    columns = events.shape[-1]
    first = (torch.randn(rows, columns, generator=generator) / math.sqrt(columns)).requires_grad_()
    second = (torch.randn(10, rows, generator=generator) / math.sqrt(rows)).requires_grad_()
    optimizer = torch.optim.Adam([first, second], lr=2e-3)
    for step in range(steps):
        batch = torch.randint(events.shape[1], (200,), generator=generator)
        current = 4 * events[:, batch] @ first.T
        v, count = torch.zeros(200, rows), torch.zeros(200, rows)
        for at in range(STEPS):
            v = v + ALPHA * (current[at] - v)
            spike = Spike.apply(v - 0.25)
            v = v - 0.25 * spike
            count = count + spike
        loss = F.cross_entropy(count @ second.T, label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == steps - 1:
            accuracy = ((count @ second.T).argmax(1) == label[batch]).float().mean()
            print(f"trained {steps} steps: cross entropy {loss:.3f}, accuracy {accuracy:.3f}")
    return first.detach()


def membrane_hessian(events: Tensor) -> Tensor:
    """``2 / n (M X)^T (M X)`` of events (T, count, columns) for the kernel ``a (1 - a)^k``."""
    accumulator, v = HessianAccumulator(events.shape[-1]), torch.zeros(events.shape[1:])
    for x in events:
        v = v + ALPHA * (x - v)
        accumulator.add(v)
    return accumulator.hessian()


def main() -> None:
    """Run the solvers named on the command line and append what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--columns", type=int, default=2312)
    parser.add_argument("--sparsity", type=float, default=0.97)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--obs-step", type=int, default=10)
    parser.add_argument("--solvers", nargs="+", default=["auto", "admm", "magnitude", "obs"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    settings = parser.parse_args()
    side = math.isqrt(settings.columns // 2)
    if 2 * side * side != settings.columns:
        parser.error(f"--columns must be 2 * side^2; {settings.columns} is not, {2 * side * side} is")
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    generator = torch.Generator().manual_seed(settings.seed)
    image, label = blob_images(settings.sequences, side, generator)
    events = saccade_events(image, generator)
    weight = trained_weight(events, label, settings.rows, settings.train_steps, generator)
    hessian = membrane_hessian(events)
    zeros = round(settings.sparsity * weight.numel())
    dead = int((hessian.diagonal() == 0).sum())
    print(
        f"{settings.rows} x {settings.columns}, {dead} columns never spike, {zeros} zeros, {settings.threads} threads"
    )
    found = {}
    for solver in settings.solvers:
        start, start_cpu = time.perf_counter(), time.process_time()
        if solver == "obs":
            mask = obs_mask(weight, hessian, zeros, step=settings.obs_step)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            loss = layer_loss(weight, refit(weight, mask, hessian), hessian)
        else:
            solution = prune(weight, hessian, zeros, solver=solver)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            loss, mask = solution.loss, solution.mask
        if int((~mask).sum()) != zeros:
            raise RuntimeError(f"{solver}: {int((~mask).sum())} zeros, {zeros} asked for")
        found[solver] = {"seconds": seconds, "cpu_seconds": cpu, "loss": loss}
        print(f"{solver:10} {seconds:8.2f} s  {cpu:8.2f} s of processor time  loss {loss:.5f}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    settings.results.parent.mkdir(parents=True, exist_ok=True)
    with settings.results.open("a") as file:
        for solver, outcome in found.items():
            line = {"case": "solver-speed", "solver": solver, **outcome}
            if "obs" in found:  # of processor time too: on a shared machine that is the steadier one
                for unit in ("seconds", "cpu_seconds"):
                    line[f"obs_{unit}_over_this"] = found["obs"][unit] / outcome[unit]
            names = ("rows", "columns", "sparsity", "sequences", "train_steps", "seed", "threads", "obs_step")
            line |= {name: getattr(settings, name) for name in names}
            line |= {"dead_columns": dead, "torch": torch.__version__, "python": platform.python_version()}
            line |= {"machine": platform.machine(), "commit": commit.strip()}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
