"""The demo's network: two convolutions and two linear layers, each with spiking neurons; trained, stored, scored."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sbc_plugin.demo.digits import Events
from sbc_plugin.errors import CheckpointError, extra

with extra("norse"):
    from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState

CHECKPOINTS = Path(__file__).parent / "checkpoints"

TAU_MEM_INV = 250.0  # 1/s; with Norse's step of 1 ms the membrane keeps 3/4 of its value
GAIN = 10.0  # initial weights are scaled by this: at PyTorch's defaults no neuron reaches its threshold
LOGITS_PER_SPIKE = 0.5
EPOCHS, BATCH, LEARNING_RATE = 16, 32, 2e-2


def build() -> SequentialState:
    """The untrained network, drawn from torch's global generator; one step a call, input (N, 2, 16, 16).

    28,408 weights and no biases: a neuron that gets no input stays silent, and costs nothing on an event-driven chip.
    """
    neuron = LIFBoxParameters(tau_mem_inv=torch.tensor(TAU_MEM_INV))
    network = SequentialState(
        nn.Conv2d(2, 12, 5, stride=2, padding=2, bias=False),
        LIFBoxCell(neuron),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
        LIFBoxCell(neuron),
        nn.Flatten(),
        nn.Linear(384, 64, bias=False),
        LIFBoxCell(neuron),
        nn.Linear(64, 10, bias=False),
        LIFBoxCell(neuron),
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight *= GAIN
    return network


def spike_counts(network: nn.Module, x: Tensor) -> Tensor:
    """How often each output neuron spikes during the sequence ``x`` (T, N, 2, 16, 16), from rest. (N, 10)."""
    state = None
    counts = torch.zeros(())
    for step in x:
        spikes, state = network(step, state)
        counts = counts + spikes
    return counts


def accuracy(network: nn.Module, events: Events, batch: int = 256) -> float:
    """The fraction of sequences whose label's neuron spikes most. Of equal counts, the lowest digit wins."""
    with torch.no_grad():
        right = sum(int((spike_counts(network, x).argmax(1) == labels).sum()) for x, labels in events.batches(batch))
    return right / len(events)


def train(seed: int, training: Events) -> SequentialState:
    """A trained network: surrogate gradients through time, cross entropy of the spike counts, Adam. Under a minute.

    The same seed, data and thread count give the same network on the same machine. The global generator is left as it
    was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            shuffled = training.subset(torch.randperm(len(training)))
            for x, labels in shuffled.batches(BATCH):
                loss = functional.cross_entropy(spike_counts(network, x) * LOGITS_PER_SPIKE, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    return network


def store(network: SequentialState, seed: int, folder: Path = CHECKPOINTS) -> Path:
    """Write the weights to ``folder``; the file's path, from which :func:`pretrained` reads."""
    path = folder / f"digits_seed{seed}.safetensors"
    save_file(network.state_dict(), path)
    return path


def pretrained(seed: int, folder: Path = CHECKPOINTS) -> SequentialState:
    """The network trained from ``seed``, as ``python -m sbc_plugin.demo.train`` stored it; seeds 0 to 4 are shipped.

    Raises:
        CheckpointError: there is no checkpoint of this seed.
    """
    path = folder / f"digits_seed{seed}.safetensors"
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}; make it with: python -m sbc_plugin.demo.train --seed {seed}")
    with torch.random.fork_rng(devices=[]):
        network = build()
    network.load_state_dict(load_file(path))
    return network
