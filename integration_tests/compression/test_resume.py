"""A run that is interrupted goes on, and ends in the same bits as one that was left alone."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import sbc_plugin
from integration_tests.models.cases import CASES
from integration_tests.models.networks import over_time
from integration_tests.models.resumed import RUNS, assert_same, compressed
from sbc_plugin import Calibration, Prune, Quantize, Report
from sbc_plugin.checkpoint import folder as folders
from sbc_plugin.compression import journal, plan, resume, run
from sbc_plugin.errors import CheckpointError, SettingsError


class StoppedError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Stop the run in the place of the write of this number, counted from 1; 0: never."""
    write = folders.Folder.write
    left = [0]

    def counted(self: folders.Folder, name: folders.Name, value: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise StoppedError
        write(self, name, value)

    monkeypatch.setattr(folders.Folder, "write", counted)
    monkeypatch.setattr(journal, "SECONDS", 0.0)  # the state of tuning is kept after each step
    monkeypatch.setattr(journal, "SHARE", 0)
    monkeypatch.setattr(plan, "TUNING_STEPS", 3)
    return lambda number: left.__setitem__(0, number)


@pytest.mark.parametrize("name", ["tuned", "rounds", "recurrent"])
def test_tuning_moves_what_is_interrupted_below(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, gained = run.tune, []

    def watched(*arguments: Any) -> Any:
        tuned = tune(*arguments)
        gained.append(tuned.after < tuned.before)
        return tuned

    monkeypatch.setattr(run, "tune", watched)
    compressed(name)
    assert gained and all(gained)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_at_each_write_ends_in_the_same_bits(
    name: str, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    wanted = compressed(name)
    assert_same(compressed(name, checkpoint=tmp_path / "at once"), wanted)
    for stops in range(200):
        stop_at(2)  # each start gets one write further
        torch.manual_seed(stops)
        try:
            found = compressed(name, checkpoint=tmp_path / "stopped")
            break
        except StoppedError:
            pass
    assert stops >= 5
    assert_same(found, wanted)
    assert len(list((tmp_path / "stopped").iterdir())) <= 5  # lock, job, answer, batches, result
    stop_at(1)  # a finished run writes nothing
    assert_same(compressed(name, checkpoint=tmp_path / "stopped"), wanted)


class Counted:
    """Batches that count how often they are run through."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(self.batches)


def job(folder: Path, stop: Callable[[int], None] | None = None, **other: Any) -> tuple[nn.Module, Report]:
    """A tuned run in a folder, as a whole or, with ``stop``, up to its sixth write."""
    case = CASES["step"]
    given = {"model": case.model(), "calibration_data": [case.batch(seed=seed) for seed in range(1, 6)]}
    given |= {"prune": Prune(0.5), "calibration": Calibration(tuning=4), "forward": case.forward, "progress": False}
    given |= other
    if stop is not None:
        stop(6)
        with pytest.raises(StoppedError):
            sbc_plugin.compress(**given, checkpoint=folder)
        stop(0)
        return nn.Module(), Report([])
    return sbc_plugin.compress(**given, checkpoint=folder)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_finished_run_reads_the_data_and_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = job(tmp_path)
    monkeypatch.setattr(run, "_carried_out", None)
    data = Counted([CASES["step"].batch(seed=seed) for seed in range(1, 6)])
    assert_same(job(tmp_path, calibration_data=data), wanted)
    assert data.passes == 2  # for the first batch, and to compare all of them


def moved(name: str) -> nn.Module:
    model = CASES["step"].model()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-6
    return model


def other_constant() -> nn.Module:
    model = CASES["step"].model()
    cell = next(m for m in model.modules() if hasattr(m, "p") and hasattr(m.p, "tau_mem_inv"))
    cell.p = cell.p._replace(tau_mem_inv=cell.p.tau_mem_inv * 1.000001)
    return model


def batches(*seeds: int) -> list[Any]:
    return [CASES["step"].batch(seed=seed) for seed in seeds]


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "sparsity": (lambda: {"prune": Prune(0.6)}, r"prune.sparsity is 0.5 there and 0.6 here"),
    "grid": (lambda: {"quantize": Quantize(4)}, "quantize is None there and Quantize here"),
    "tuning": (lambda: {"calibration": Calibration(tuning=5)}, "calibration.tuning is 4 there and 5 here"),
    "method": (lambda: {"method": "obc"}, "method is 'sbc' there and 'obc' here"),
    "weight": (lambda: {"model": moved("0.weight")}, "'0.weight' of the model is not the same"),
    "bias": (lambda: {"model": moved("2.bias")}, "'2.bias' of the model is not the same"),
    "time constant": (lambda: {"model": other_constant()}, "of the model is not the same"),
    "forward": (
        lambda: {"forward": lambda model, batch: over_time(model, batch) + 1},
        "forward or batch_first has changed",
    ),
    "first batch": (lambda: {"calibration_data": batches(2, 1, 3, 4, 5)}, "first batch.*shuffle=False"),
    "later batch": (lambda: {"calibration_data": batches(1, 2, 3, 5, 4)}, "batch 3 is another.*shuffle=False"),
    "fewer batches": (lambda: {"calibration_data": batches(1, 2, 3, 4)}, "there are 4 batches, and there were 5"),
    "more batches": (lambda: {"calibration_data": batches(1, 2, 3, 4, 5, 6)}, "batch 5 is another"),
    "another type": (lambda: {"calibration_data": [x.double() for x in batches(1, 2, 3, 4, 5)]}, "first batch"),
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_job_is_refused_and_stays(
    name: str, finished: bool, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    job(tmp_path, None if finished else stop_at)
    before = content(tmp_path)
    change, message = OTHERS[name]
    with pytest.raises(CheckpointError, match=message):
        job(tmp_path, **change())
    assert content(tmp_path) == before
    assert_same(job(tmp_path), job(tmp_path.with_name("fresh")))


def test_the_versions_belong_to_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job(tmp_path)
    monkeypatch.setattr(resume, "__version__", "9.9")
    with pytest.raises(CheckpointError, match=r"sbc-plugin is .* there and 9\.9 here"):
        job(tmp_path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_that_shuffles_is_refused_at_once(shuffle: bool, tmp_path: Path) -> None:
    x = torch.stack(batches(*range(1, 9)))
    loader: Any = DataLoader(list(x), batch_size=None, shuffle=shuffle, generator=torch.Generator().manual_seed(0))
    if shuffle:
        with pytest.raises(CheckpointError, match=r"batch 0 is another .*shuffle=False"):
            job(tmp_path, calibration_data=loader)
    else:
        assert_same(job(tmp_path, calibration_data=loader), job(tmp_path.with_name("list"), calibration_data=list(x)))


def test_an_iterator_serves_all_passes(tmp_path: Path) -> None:
    wanted = job(tmp_path / "list")
    assert_same(job(tmp_path / "once", calibration_data=iter(batches(1, 2, 3, 4, 5))), wanted)
    assert_same(job(tmp_path / "once", calibration_data=iter(batches(1, 2, 3, 4, 5))), wanted)


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "text"])
def test_damaged_files_are_made_again_or_refused(damage: str, tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    wanted = job(tmp_path / "whole")
    job(tmp_path / "a", stop_at)
    whole = content(tmp_path / "a")
    names = [name for name in whole if name != "lock"]
    assert len(names) == 4  # the job, the batches, the answer, statistics
    for name in names:
        data = bytearray(whole[name])
        if damage == "a bit":
            data[-1] ^= 1
        changed = {"truncated": data[: len(data) // 2], "a bit": data, "empty": b"", "text": b"{}" * 9}[damage]
        for each, old in whole.items():
            (tmp_path / "a" / each).write_bytes(old)
        (tmp_path / "a" / name).write_bytes(changed)
        if name.startswith(("job", "data")):
            with pytest.raises(CheckpointError, match="cannot be read any more; delete it"):
                job(tmp_path / "a")
        else:
            with pytest.warns(UserWarning, match="is damaged, and is made again"):
                assert_same(job(tmp_path / "a"), wanted)
        for left in (tmp_path / "a").iterdir():
            left.unlink()


def test_pieces_of_another_folder_are_refused(tmp_path: Path) -> None:
    job(tmp_path / "a")
    job(tmp_path / "b", prune=Prune(0.7))
    for file in (tmp_path / "a").glob("result*"):
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another job"):
        job(tmp_path / "b", prune=Prune(0.7))


def test_what_is_no_folder_of_a_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"no folder of a job, it holds 'thesis\.txt'"):
        job(tmp_path / "mine")
    for path in (tmp_path / "file", tmp_path / "file" / "in it"):
        with pytest.raises(CheckpointError, match=r"cannot be used: .*give a folder that one may write to"):
            job(path)
    assert content(tmp_path / "mine") == {"thesis.txt": b"x"}
    with pytest.raises(SettingsError, match="checkpoint=3 is no path"):
        job(3)  # type: ignore[arg-type]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """In this process here; in another one in the test of kills."""

    class Again(Counted):
        def __iter__(self) -> Any:
            if self.passes:  # the first is there before the folder is opened
                with pytest.raises(CheckpointError, match="is in use by a run that goes on"):
                    job(tmp_path)
            return super().__iter__()

    data = Again(batches(1, 2, 3, 4, 5))
    assert_same(job(tmp_path, calibration_data=data), job(tmp_path.with_name("alone")))
    assert data.passes > 1


def test_a_failure_leaves_the_model_and_lets_go_of_the_folder(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    model = CASES["step"].model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    job(tmp_path, stop_at, model=model, inplace=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    found = job(tmp_path, model=model, inplace=True)
    assert found[0] is model
    assert_same(found, job(tmp_path.with_name("fresh")))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    wanted = job(tmp_path / "whole")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # the job fits, random numbers' state does not
        with pytest.raises(CheckpointError, match=r"cannot be written: .*File too large") as caught:
            job(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert "\n" not in str(caught.value)
    assert_same(job(tmp_path / "full"), wanted)


class Noisy(nn.Module):
    """A network whose forward draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = CASES["step"].model()

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.inside(x + 0.1 * torch.randn_like(x), state)


def test_random_numbers_go_on_as_they_would_have(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    loader: Any = DataLoader(batches(1, 2, 3, 4, 5), batch_size=None)  # takes a random number for each pass
    given = {"calibration_data": loader, "forward": None, "calibration": Calibration(tuning=2, order="sequential")}
    torch.manual_seed(3)
    wanted = job(tmp_path / "a", model=Noisy(), **given)
    assert_same(
        (torch.manual_seed(3), sbc_plugin.compress(Noisy(), prune=Prune(0.5), progress=False, **given))[1], wanted
    )
    torch.manual_seed(3)
    job(tmp_path / "b", stop_at, model=Noisy(), **given)
    torch.manual_seed(4)
    assert_same(job(tmp_path / "b", model=Noisy(), **given), wanted)
