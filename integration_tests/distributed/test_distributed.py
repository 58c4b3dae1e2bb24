"""Several processes give what one gives on the same data, and end together."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from integration_tests.distributed import jobs
from sbc_plugin import Calibration, Prune, compress
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression import objective, tuning

EQUAL = (
    "joint", "recurrent", "sequential", "rounds", "aligned", "by_loss", "samples", "once", "shares", "sampled",
    "calibrated", "channels", "single_weights", "shuffled", "wrapped", "file", "one_batch", "resumed",
)  # fmt: skip
TUNED = ("tuned", "tuned_scales", "shares_tuned", "default")
FAILING = {
    "bad_batch": ("CalibrationError: rank 1: batch 3: the input holds NaN",) * 2,
    "own_error": ("RankError: rank 1: ZeroDivisionError: of the user's own", "ZeroDivisionError: of the user's own"),
    "late_error": ("RankError: rank 1: MemoryError: no memory", "MemoryError: no memory"),
    "other_model": ("SettingsError: models differ between ranks: '2.weight'",) * 2,
    "other_parameters": ("SettingsError: models differ between ranks: the parameters of '1'",) * 2,
    "other_settings": ("SettingsError: settings differ between ranks: prune is Prune(sparsity=0.6",) * 2,
    "other_data": ("SettingsError: calibration data differ between ranks: the first batch",) * 2,
    "other_length": ("SettingsError: calibration data differ between ranks: the number of batches is 8",) * 2,
    "other_call": ("SettingsError: settings differ between ranks: call",) * 2,
    "unpicklable": ("", "RankError: rank 0: "),
    "no_data": ("CalibrationError: calibration_data holds no batch",) * 2,
}  # fmt: skip
FOUR = (
    "joint",
    "recurrent",
    "sequential",
    "rounds",
    "aligned",
    "one_batch",
    "shares",
    "tuned",
    "shares_tuned",
    "calibrated",
    "channels",
)

Launch = Callable[..., tuple[list[int], dict[str, list[Any]]]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs jobs on so many ranks: exit codes, and results by job and rank."""

    @cache
    def run(count: int, *names: str) -> tuple[list[int], dict[str, list[Any]]]:
        folder = tmp_path_factory.mktemp("ranks")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        arguments = [sys.executable, "-m", "integration_tests.distributed.jobs", str(folder)]
        ranks = [
            subprocess.Popen([*arguments, str(rank), str(count), *names], env=environment) for rank in range(count)
        ]
        try:
            codes = [rank.wait(timeout=120) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()

        def result(path: Path) -> Any:
            return torch.load(path, weights_only=False) if path.exists() else None

        found = {name: [result(folder / f"{name}.{rank}.pt") for rank in range(count)] for name in names}
        return codes, found

    return run


@pytest.fixture(scope="module")
def of_two(launch: Launch) -> dict[str, list[Any]]:
    codes, found = launch(2, *EQUAL, *TUNED, *FAILING, "one_alone", "killed")
    assert codes == [0, -9]
    return found


@pytest.fixture(scope="module")
def of_four(launch: Launch) -> dict[str, list[Any]]:
    codes, found = launch(4, *FOUR, "killed_while_summing")
    assert codes == [0, 0, 0, -9]
    return found


@cache
def alone(name: str) -> Any:
    """What one process gives."""
    return jobs.JOBS[name]()


def check_same(found: list[Any], expected: Any) -> None:
    for each in found:
        assert "error" not in each, each["error"]
        assert each["rows"] == expected["rows"]
        assert each["weights"].keys() == expected["weights"].keys()
        for name, value in expected["weights"].items():
            assert torch.equal(each["weights"][name] == 0, value == 0), name
            # Sums of float64 in another order, and what their solutions make of the last bits.
            torch.testing.assert_close(each["weights"][name], value, rtol=1e-8, atol=1e-10)
        assert each.get("losses", []) == pytest.approx(expected.get("losses", []), rel=1e-8, abs=1e-12)
        for name, value in expected.get("bits", {}).items():
            assert torch.equal(each["bits"][name], value)


def check_alike(found: list[Any]) -> None:
    """All ranks hold the same bits, and one report."""
    for each in found:
        assert "error" not in each, each["error"]
        assert all(torch.equal(value, found[0]["weights"][name]) for name, value in each["weights"].items())
        assert each.get("report") == found[0].get("report")


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_give_what_one_process_gives(of_two: dict[str, list[Any]], name: str) -> None:
    check_same(of_two[name], alone(name))
    check_alike(of_two[name])


@pytest.mark.parametrize("name", [name for name in FOUR if name in EQUAL])
def test_four_ranks_give_what_one_process_gives(of_four: dict[str, list[Any]], name: str) -> None:
    check_same(of_four[name], alone(name))
    check_alike(of_four[name])


@pytest.mark.parametrize("name", TUNED)
def test_ranks_stay_alike_while_they_tune(of_two: dict[str, list[Any]], name: str) -> None:
    check_alike(of_two[name])


def expected_of_tuning(shares: list[list[int]], steps: int) -> dict[str, Tensor]:
    """One process that takes, in each step, a piece of each share, and the mean gradient weighted by their sizes.

    Args:
        shares: the places of each rank's batches among all; a batch is one piece here.
        steps: of torch's own Adam.
    """
    batches = jobs.spikes()
    dense = jobs.feedforward()
    aims = objective.targets(Runner.of(dense, batches[0]), batches, True)
    decides = [place for place in range(len(batches)) if place % 5 == 4]
    fitting = [place for place in range(len(batches)) if place not in decides]
    by_place = dict(zip(fitting, aims.train, strict=True))
    parts = [[by_place[place] for place in share if place in by_place] for share in shares]
    model, _ = compress(dense, batches, prune=Prune(0.8, silent_first=True), calibration=Calibration(tuning=0))
    runner = Runner.of(model, batches[0])
    tuned = [model[0].weight, model[2].weight, model[4].weight]
    start = [weight.detach().clone() for weight in tuned]
    before = objective.mean_distance(runner, aims)
    for weight in tuned:
        weight.requires_grad_(True)
    groups = [
        {"params": [weight], "lr": 0.05 * float(kept[kept != 0].square().mean().sqrt())}
        for weight, kept in zip(tuned, start, strict=True)
    ]
    adam = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    orders = [tuning._shuffled(len(part), steps) for part in parts]
    for step in range(steps):
        adam.zero_grad()
        for part, chosen in zip(parts, orders, strict=True):
            if part:
                loss = objective.distance_on(runner, aims, part[chosen[step]])
                (loss * len(part) / len(by_place)).backward()
        for weight, kept in zip(tuned, start, strict=True):
            assert weight.grad is not None
            weight.grad[kept == 0] = 0
        adam.step()
        falling.step()
    moved = [weight.detach().clone() for weight in tuned]
    with torch.no_grad():
        for part in (1.0, 0.5, 0.25, 0.0):
            for weight, old, new in zip(tuned, start, moved, strict=True):
                weight.copy_(torch.lerp(old, new, part))
            if part == 0 or objective.mean_distance(runner, aims) < before:
                assert part > 0, "the test needs steps that bring something"
                break
    return {f"{place}.weight": weight.detach() for place, weight in zip((0, 2, 4), tuned, strict=True)}


@pytest.mark.parametrize(
    ("name", "steps", "shares"),
    [
        ("tuned", 6, {2: [[0, 2, 4, 6], [1, 3, 5]], 4: [[0, 4], [1, 5], [2, 6], [3]]}),
        # Shares of their own: batch i of rank r counts as the (i * ranks + r)th. Rank 0 has none.
        ("shares_tuned", 4, {2: [[], [0, 1, 2, 3, 4, 5, 6]], 4: [[], [0, 3, 6], [1, 4], [2, 5]]}),
    ],
)
def test_a_step_is_one_over_a_piece_of_each_rank(
    of_two: dict[str, list[Any]], of_four: dict[str, list[Any]], name: str, steps: int, shares: dict[int, Any]
) -> None:
    for found in (of_two, of_four):
        check_alike(found[name])
        for layer, weight in expected_of_tuning(shares[len(found[name])], steps).items():
            # Gradients of a whole sequence and step by step, in float64, which Adam's root divides by little ones.
            torch.testing.assert_close(found[name][0]["weights"][layer], weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FAILING)
def test_one_that_fails_ends_all(of_two: dict[str, list[Any]], name: str) -> None:
    """And what the same processes compress afterwards is right."""
    for told, expected in zip(of_two[name], FAILING[name], strict=True):
        assert told["error"].startswith(expected)
        assert "\n" not in told["error"]


def test_one_rank_alone(of_two: dict[str, list[Any]]) -> None:
    expected = jobs.compressed(jobs.feedforward(), jobs.spikes(), prune=Prune(0.5))
    check_same(of_two["one_alone"][:1], expected)


def test_a_killed_rank_is_named(of_two: dict[str, list[Any]], of_four: dict[str, list[Any]]) -> None:
    """While it calibrates, and in the middle of a sum, where ranks that are not its neighbours wait for others."""
    for found in (of_two["killed"], of_four["killed_while_summing"]):
        *others, last = found
        assert last is None
        for told in others:
            assert told["error"] == (
                f"RankError: rank {len(others)}: no longer answers: it was killed, or its machine or network is gone; "
                "nothing was changed"
            )


NETWORK = """
import os, signal
import torch
import sbc_plugin
from integration_tests.distributed.jobs import feedforward, spikes

def model():
    return feedforward()

def loader():
    return spikes()

def bad_loader():
    batches = spikes()
    batches[3][0] = float("nan")
    return batches
"""


def sbc(folder: Path, data: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "own.py").write_text(NETWORK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "sbc_plugin"]
    command += ["compress", "own:model", "--data", f"own:{data}", "-o", "small.safetensors", *arguments]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join([os.getcwd()]),
    }  # fmt: skip
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    done = sbc(tmp_path, "loader", "--sparsity", "0.6", "--bits", "4", "--tuning", "0", "--json", "--report", "r.json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["sequences"] for row in told["report"]["layers"]] == [42, 42, 42]
    assert json.loads((tmp_path / "r.json").read_text())["report"] == told["report"]
    from sbc_plugin import load

    small, _ = load(tmp_path / "small.safetensors", jobs.feedforward())
    check_same(
        [{"weights": jobs.weights(small), "rows": [], "losses": []}], {**alone("joint"), "rows": [], "losses": []}
    )


def test_the_command_line_where_a_rank_fails(tmp_path: Path) -> None:
    done = sbc(tmp_path, "bad_loader", "--sparsity", "0.6")
    assert done.returncode != 0 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if "sbc: " in line]
    assert len(lines) in {1, 2}, done.stderr  # torchrun ends a rank that has not told yet
    for line in lines:
        assert line.endswith("sbc: rank 1: batch 3: the input holds NaN or infinity; clean the calibration data")
    assert not (tmp_path / "small.safetensors").exists()
