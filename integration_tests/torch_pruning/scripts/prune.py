"""A pruning script as torch-pruning's users write them: its method is chosen by if and elif, and it knows no SBC.

The tests run it as it is, by the launcher, and with one line more.
"""

import argparse
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.second = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def make_model() -> nn.Module:
    stem = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*stem, Residual(12), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 16, CLASSES))


def make_data(count: int, seed: int) -> TensorDataset:
    """Four patterns in noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.randint(CLASSES, (count,), generator=generator)
    return TensorDataset(patterns[y] + 3 * torch.randn(count, 3, 8, 8, generator=generator), y)


def make_loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Test data first, so that the first loader is not the one to calibrate on."""
    test = DataLoader(make_data(128, 2), batch_size=64)
    order = torch.Generator().manual_seed(3)
    return DataLoader(make_data(512, 1), batch_size=32, shuffle=True, drop_last=True, generator=order), test


def train(model: nn.Module, loader: DataLoader[Any], pruner: Any = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if pruner is not None:
            pruner.regularize(model)
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[Any]) -> float:
    model.eval()
    right = [model(x).argmax(1) == y for x, y in loader]
    return float(torch.cat(right).float().mean())


def make_pruner(model: nn.Module, example_inputs: Tensor, args: argparse.Namespace) -> tuple[Any, bool]:
    learns_sparsity = False
    entry = partial(tp.pruner.MagnitudePruner, global_pruning=args.global_pruning)
    if args.method == "random":
        importance = tp.importance.RandomImportance()
    elif args.method == "l1":
        importance = tp.importance.MagnitudeImportance(p=1)
    elif args.method == "l2":
        importance = tp.importance.MagnitudeImportance(p=2)
    elif args.method == "fpgm":
        importance = tp.importance.FPGMImportance(p=2)
    elif args.method == "lamp":
        importance = tp.importance.LAMPImportance(p=2)
    elif args.method == "slim":
        learns_sparsity, importance = True, tp.importance.BNScaleImportance()
        entry = partial(tp.pruner.BNScalePruner, reg=1e-5, global_pruning=args.global_pruning)
    elif args.method == "group_norm":
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        entry = partial(tp.pruner.GroupNormPruner, global_pruning=args.global_pruning)
    elif args.method == "growing_reg":
        learns_sparsity, importance = True, tp.importance.GroupMagnitudeImportance(p=2)
        entry = partial(tp.pruner.GrowingRegPruner, reg=1e-5, delta_reg=1e-5, global_pruning=args.global_pruning)
    else:
        raise NotImplementedError(args.method)
    kept = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    pruner = entry(
        model,
        example_inputs,
        importance=importance,
        iterative_steps=args.iterative_steps,
        pruning_ratio=1.0,
        pruning_ratio_dict={},
        max_pruning_ratio=1.0,
        ignored_layers=kept,
        unwrapped_parameters=[],
    )
    return pruner, learns_sparsity


def prune(pruner: Any, model: nn.Module, example_inputs: Tensor, speed_up: float) -> float:
    """Steps until the model takes ``1 / speed_up`` of its operations."""
    model.eval()
    before, _ = tp.utils.count_ops_and_params(model, example_inputs)
    reached = 1.0
    while reached < speed_up and pruner.current_step < pruner.iterative_steps:
        pruner.step()
        reached = before / tp.utils.count_ops_and_params(model, example_inputs)[0]
    return reached


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default=None)
    parser.add_argument("--speed-up", type=float, default=2.0)
    parser.add_argument("--iterative-steps", type=int, default=50)
    parser.add_argument("--global-pruning", action="store_true")
    parser.add_argument("--save", default=None)
    parser.add_argument("--fail", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = make_model()
    train_loader, test_loader = make_loaders()
    train(model, train_loader)
    example_inputs = train_loader.dataset[0][0].unsqueeze(0)
    pruner, learns_sparsity = make_pruner(model, example_inputs, args)
    if learns_sparsity:
        train(model, train_loader, pruner)
    dense = accuracy(model, test_loader)
    reached = prune(pruner, model, example_inputs, args.speed_up)
    pruned = accuracy(model, test_loader)
    print(f"{args.method}: {reached:.2f}x, {dense:.3f} -> {pruned:.3f}")
    if args.save is not None:
        torch.save({"model": model.state_dict(), "reached": reached, "kind": type(pruner).__name__}, args.save)
    if args.fail:
        raise SystemExit(args.fail)


if __name__ == "__main__":
    main()
