"""The shape of torch-pruning's own script: pretrain, ``get_pruner(method)``, prune to a speed-up, fine-tune.

python -m integration_tests.torch_pruning.pipeline --method sbc --model spiking --speed-up 2
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.demo import digits, network
from sbc_plugin.torch_pruning import get_pruner

Batches = Sequence[tuple[Tensor, Tensor]]


def spiking_model() -> nn.Module:
    return network.build()


def plain_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of a spiking model on (T, N, 2, 16, 16), or of a plain one on how many events each pixel sent."""
    if isinstance(model, nn.Sequential) and any(isinstance(module, nn.ReLU) for module in model):
        output: Tensor = model(x.mean(0))
        return output
    return network.spike_counts(model, x) * network.LOGITS_PER_SPIKE


def accuracy(model: nn.Module, batches: Batches) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(int((logits(model, x).argmax(1) == labels).sum()) for x, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def train(model: nn.Module, batches: Batches, epochs: int, rate: float, pruner: Any = None) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        model.train()
        for x, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(logits(model, x), labels).backward()
            if pruner is not None:
                pruner.regularize(model)
            optimizer.step()


def operations(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> float:
    counted, _ = tp.utils.count_ops_and_params(model, example_inputs=example_inputs[0])
    return float(counted)


def progressive_pruning(pruner: Any, model: nn.Module, speed_up: float, example_inputs: tuple[Tensor, ...]) -> float:
    model.eval()
    dense = operations(model, example_inputs)
    reached = 1.0
    while reached < speed_up and pruner.current_step < pruner.iterative_steps:
        pruner.step()
        reached = dense / operations(model, example_inputs)
    return reached


def run(arguments: argparse.Namespace, data: digits.Digits) -> dict[str, float]:
    torch.manual_seed(arguments.seed)
    spiking = arguments.model == "spiking"
    model = spiking_model() if spiking else plain_model()
    if arguments.restore:
        model.load_state_dict(network.pretrained(arguments.seed).state_dict())
    batches = data.training.batches(32)
    test = data.test.batches(256)
    train(model, batches, arguments.epochs, 2e-2 if spiking else 5e-3)
    dense = accuracy(model, test)

    first = data.training.x[0, :1].float()
    example_inputs = (first,) if spiking else (data.training.x[:, :1].float().mean(0),)
    calibration = data.calibration.batches(100)
    if not spiking:
        calibration = [(x.mean(0), labels) for x, labels in calibration]
    pruner = get_pruner(
        arguments.method,
        model,
        example_inputs,
        calibration_data=calibration,
        global_pruning=arguments.global_pruning,
        iterative_steps=arguments.iterative_steps,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 10],
    )
    if arguments.sparsity_learning:
        train(model, batches, arguments.sparsity_learning, 5e-3, pruner)
    reached = progressive_pruning(pruner, model, arguments.speed_up, example_inputs)
    pruned = accuracy(model, test)
    train(model, batches, arguments.finetune, 5e-3)
    return {"dense": dense, "pruned": pruned, "finetuned": accuracy(model, test), "speed_up": reached}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--method", default="sbc")
    result.add_argument("--model", choices=["spiking", "plain"], default="spiking")
    result.add_argument("--speed-up", type=float, default=2.0)
    result.add_argument("--iterative-steps", type=int, default=40)
    result.add_argument("--global-pruning", action="store_true")
    result.add_argument("--epochs", type=int, default=network.EPOCHS)
    result.add_argument("--sparsity-learning", type=int, default=0, help="epochs with the pruner's regularisation")
    result.add_argument("--finetune", type=int, default=2, help="epochs")
    result.add_argument("--restore", action="store_true", help="start from the demo's checkpoint of this seed")
    result.add_argument("--seed", type=int, default=0)
    return result


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(run(parser().parse_args(), digits.load()))


if __name__ == "__main__":
    main()
