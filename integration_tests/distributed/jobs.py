"""What each rank does in the tests of ``torch.distributed``: the same script, alone or as one rank of several.

python -m integration_tests.distributed.jobs FOLDER RANK RANKS JOB...

Each job's result goes to ``FOLDER/JOB.RANK.pt``; of a job that raises, the error.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import norse.torch as norse
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sbc_plugin
import sbc_plugin.nir
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.calibration import ranks
from sbc_plugin.checkpoint.folder import Folder
from sbc_plugin.errors import RankError
from sbc_plugin.torch_pruning import get_pruner

STEPS, SEQUENCES, BATCHES = 12, 6, 7
Result = dict[str, Any]


def _filled(model: nn.Module, gain: float = 8.0) -> nn.Module:
    """The model in float64, so that the order of sums hardly counts, with weights that make it spike."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fresh = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = gain / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.data = scale * (fresh + 0.3) if parameter.dim() > 1 else scale * fresh
    return model.double().eval()


def feedforward() -> nn.Module:
    return _filled(
        norse.SequentialState(
            nn.Linear(16, 24),
            norse.LIFBoxCell(),
            nn.Linear(24, 12),
            norse.LIFBoxCell(),
            nn.Linear(12, 4),
            norse.LICell(),
        )
    )


def recurrent() -> nn.Module:
    return _filled(norse.SequentialState(norse.LIFRecurrentCell(16, 12), nn.Linear(12, 4), norse.LIFBoxCell()))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return _filled(
        nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
    )


def spikes(batches: int = BATCHES, features: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, SEQUENCES, features)
    return [(torch.rand(shape, generator=generator) < 0.3).double() for _ in range(batches)]


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand((3, 2, 6, 6), generator=generator, dtype=torch.float64) for _ in range(5)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def compressed(model: nn.Module, data: Any, **settings: Any) -> Result:
    calibration = replace(Calibration(tuning=0), **settings.pop("calibration", {}))
    small, report = compress(model, data, calibration=calibration, **settings)
    rows = [(row.name, row.sequences, row.samples, row.sparsity, row.bits) for row in report.layers]
    return {
        "weights": weights(small), "rows": rows, "losses": [row.loss for row in report.layers],
        "notes": report.skipped, "report": report.to_json(),
    }  # fmt: skip


def once() -> Iterator[Tensor]:
    yield from spikes()


def share(empty: int) -> Any:
    """All batches as shares that the ranks give themselves, one of the ranks without any; alone, all of them."""
    data, (rank, count) = spikes(), place()
    holders = [number for number in range(count) if number != empty] if count > 1 else [0]
    return sbc_plugin.sharded(data[holders.index(rank) :: len(holders)] if rank in holders else [])


def collated(found: list[Any]) -> Tensor:
    return torch.stack([each[0] for each in found], dim=1)


def sampled() -> DataLoader[Any]:
    """A loader as in scripts of DDP; 42 sequences are as many for each of 2 ranks, and padded by 2 for 4."""
    sequences = torch.cat(spikes(), dim=1).transpose(0, 1)
    sampler = None
    if place()[1] > 1:
        sampler = DistributedSampler(TensorDataset(sequences), shuffle=False)

    return DataLoader(TensorDataset(sequences), batch_size=3, sampler=sampler, collate_fn=collated)


def place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def calibrated() -> Result:
    found = sbc_plugin.calibrate(feedforward(), spikes())
    plain = sbc_plugin.calibrate(
        feedforward().float(), [x.float() for x in spikes()], calibration=Calibration(temporal=False)
    )
    return {
        "weights": {name: each.sum_xx for name, each in found.items()},
        "rows": [(name, each.count) for name, each in found.items()],
        # Sums of zeros and ones are exact in any order.
        "bits": {name: each.sum_xx for name, each in plain.items()},
    }


def channels() -> Result:
    model = convolutional()
    pruner = get_pruner("sbc", model, images()[0], calibration_data=images(), pruning_ratio=0.5, reestimate=True)
    pruner.step()
    return {"weights": weights(model), "rows": [(name, value.shape) for name, value in model.state_dict().items()]}


def single_weights() -> Result:
    model = convolutional()
    get_pruner("sbc", model, images()[0], calibration_data=images(), pattern="2:4").step()
    return {"weights": weights(model), "rows": []}


def bad_batch() -> Result:
    """The last rank's second batch holds NaN, which the others never see."""
    data = spikes()
    data[2 * place()[1] - 1][0, 0, 0] = float("nan")
    model = feedforward()
    before = weights(model)
    try:
        compress(model, data, prune=Prune(0.5), inplace=True)
    finally:
        assert all(map(torch.equal, before.values(), weights(model).values()))
    return {}


class Stops(list[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(super().__iter__()):
            if number == 3 and place()[0] == 1:
                raise ZeroDivisionError("of the user's own")
            yield batch


def own_error() -> Result:
    return compressed(feedforward(), Stops(spikes()), prune=Prune(0.5))


def late_error() -> Result:
    """One rank fails when all weights are written already: on none may they stay."""
    from sbc_plugin.compression import compress as module

    model = feedforward()
    before = weights(model)
    meet, first = ranks.meet, place()[0] == 1

    def fail(where: str) -> None:
        if first and where == "the compressed model":
            raise MemoryError("no memory")
        meet(where)

    module.ranks.meet = fail  # type: ignore[attr-defined]
    try:
        compress(model, spikes(), prune=Prune(0.5), calibration=Calibration(tuning=0), inplace=True)
    finally:
        module.ranks.meet = meet  # type: ignore[attr-defined]
        assert all(map(torch.equal, before.values(), weights(model).values()))
    return {}


def other_model() -> Result:
    model = feedforward()
    if place()[0] == 1:
        model[2].weight.data[0, 0] += 1e-9
    return compressed(model, spikes(), prune=Prune(0.5))


def other_parameters() -> Result:
    model = feedforward()
    if place()[0] == 1:
        model[1].p = model[1].p._replace(v_th=torch.tensor(2.0))
    return compressed(model, spikes(), prune=Prune(0.5))


def other_settings() -> Result:
    return compressed(feedforward(), spikes(), prune=Prune(0.5 + 0.1 * place()[0]))


def other_data() -> Result:
    return compressed(feedforward(), spikes()[place()[0] :], prune=Prune(0.5))


def other_length() -> Result:
    return compressed(feedforward(), spikes(BATCHES + place()[0]), prune=Prune(0.5))


def other_call() -> Result:
    if place()[0]:
        sbc_plugin.calibrate(feedforward(), spikes())
    return compressed(feedforward(), spikes(), prune=Prune(0.5))


def no_data() -> Result:
    return compressed(feedforward(), sbc_plugin.sharded([]), prune=Prune(0.5))


def unpicklable() -> Result:
    """The first batch shows all ranks how the model is called, and this one cannot be sent."""
    batches = [{"x": x, "own": lambda: None} for x in spikes()]
    return compressed(feedforward(), sbc_plugin.sharded(batches), prune=Prune(0.5))


def one_alone() -> Result:
    """Rank 0 works by itself, as scripts do that compress on one rank only."""
    if place()[0]:
        return {}
    with sbc_plugin.alone():
        return compressed(feedforward(), spikes(), prune=Prune(0.5))


def shuffled() -> Result:
    """A loader that draws another order in each pass, from a generator that is seeded alike on all ranks."""
    torch.manual_seed(3)
    sequences = TensorDataset(torch.cat(spikes(), dim=1).transpose(0, 1))
    loader = DataLoader(sequences, batch_size=5, shuffle=True, collate_fn=collated)
    return compressed(feedforward(), loader, prune=Prune(0.6), calibration={"order": "sequential", "align": True})


def wrapped() -> Result:
    model = feedforward()
    if place()[1] > 1:
        model = nn.parallel.DistributedDataParallel(model)
    return compressed(model, spikes(), prune=Prune(0.6))


def file() -> Result:
    """A .nir file that all ranks read, and the first one writes."""
    with TemporaryDirectory() as own:
        folder = Path(sys.argv[1]) if place()[1] > 1 else Path(own)
        source, target = folder / f"source.{place()[0]}.nir", folder / "target.nir"
        sbc_plugin.nir.write(source, feedforward().float(), input_shape=(16,))
        network, _ = sbc_plugin.nir.compress_file(
            source,
            target,
            [x.float() for x in spikes()],
            prune=Prune(0.6),
            calibration=Calibration(tuning=0, temporal=False),
        )
        written = weights(sbc_plugin.nir.read(target))
    assert all(torch.equal(written[name], value) for name, value in weights(network).items())
    return {"weights": {name: value.double() for name, value in written.items()}, "rows": []}


def killed_while_summing() -> Result:
    """One rank is gone while the others are in the middle of a sum."""
    reduce = dist.all_reduce

    def gone(*given: Any, **named: Any) -> Any:
        if place()[0] == place()[1] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return reduce(*given, **named)

    dist.all_reduce = gone
    return compressed(feedforward(), spikes(), prune=Prune(0.5))


def killed() -> Result:
    model = feedforward()
    if place()[0] == place()[1] - 1:
        model[4].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL) if ranks.count() > 1 else None)
    return compressed(model, spikes(), prune=Prune(0.5))


def resumed() -> Result:
    """A run with a folder is stopped on one rank after each of its writes in turn, and goes on where all ranks were."""
    with TemporaryDirectory() as folder:
        shared = ranks_folder(folder)
        for writes in (3, 6, 9):
            interrupted_after(writes, shared)
        return compressed(feedforward(), spikes(), **JOINT, checkpoint=shared)


def ranks_folder(mine: str) -> str:
    """The first rank's folder, on all."""
    if place()[1] == 1:
        return mine
    folders = [mine]
    dist.broadcast_object_list(folders, src=0)
    return folders[0]


def interrupted_after(writes: int, folder: str) -> None:
    """Stop the last rank at one of its writes; the others then end too."""
    write, left = Folder.write, [writes if place()[0] == place()[1] - 1 else -1]

    def failing(self: Folder, name: Any, value: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError("no memory")
        write(self, name, value)

    Folder.write = failing  # type: ignore[method-assign]
    try:
        compressed(feedforward(), spikes(), **JOINT, checkpoint=folder)
    except (MemoryError, RankError):
        pass
    finally:
        Folder.write = write  # type: ignore[method-assign]
    if dist.is_initialized():
        dist.barrier()


JOINT = {"prune": Prune(0.6), "quantize": Quantize(4)}
JOBS: dict[str, Callable[[], Result]] = {
    "joint": lambda: compressed(feedforward(), spikes(), **JOINT),
    "recurrent": lambda: compressed(recurrent(), spikes(), **JOINT),
    "sequential": lambda: compressed(feedforward(), spikes(), **JOINT, calibration={"order": "sequential"}),
    "rounds": lambda: compressed(feedforward(), spikes(), prune=Prune(0.8, rounds=2, silent_first=True)),
    "aligned": lambda: compressed(feedforward(), spikes(), prune=Prune(0.6), calibration={"align": True}),
    "by_loss": lambda: compressed(
        feedforward(), spikes(), prune=Prune(0.5, allocation="loss"), quantize=Quantize(3, allocation="loss")
    ),
    "samples": lambda: compressed(feedforward(), spikes(), **JOINT, calibration={"max_samples": 20}),
    "default": lambda: compressed(feedforward(), spikes(), **JOINT, calibration={"tuning": None}),
    "resumed": resumed,
    "once": lambda: compressed(feedforward(), once(), prune=Prune(0.6)),
    "shares": lambda: compressed(feedforward(), share(empty=1), **JOINT, calibration={"align": True}),
    "shares_tuned": lambda: compressed(feedforward(), share(empty=0), prune=Prune(0.8), calibration={"tuning": 4}),
    "sampled": lambda: compressed(feedforward(), sampled(), prune=Prune(0.6)),
    "tuned": lambda: compressed(feedforward(), spikes(), prune=Prune(0.8), calibration={"tuning": 6}),
    "tuned_scales": lambda: compressed(feedforward(), spikes(), quantize=Quantize(2), calibration={"tuning": 6}),
    "calibrated": calibrated,
    "channels": channels,
    "single_weights": single_weights,
    "bad_batch": bad_batch,
    "own_error": own_error,
    "late_error": late_error,
    "other_model": other_model,
    "other_parameters": other_parameters,
    "other_settings": other_settings,
    "other_data": other_data,
    "other_length": other_length,
    "other_call": other_call,
    "no_data": no_data,
    "unpicklable": unpicklable,
    "one_alone": one_alone,
    # Fewer batches than ranks; a step is then over a piece of the first one, as with one process.
    "one_batch": lambda: compressed(
        feedforward(), spikes(1), prune=Prune(0.8), calibration={"tuning": 4, "align": True}
    ),
    "shuffled": shuffled,
    "wrapped": wrapped,
    "file": file,
    "killed": killed,
    "killed_while_summing": killed_while_summing,
}


def main(folder: str, rank: str, count: str, *names: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    store = dist.FileStore(str(Path(folder) / "store"), int(count))
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(count))
    for name in names:
        try:
            result: Any = JOBS[name]()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        torch.save(result, Path(folder) / f"{name}.{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
