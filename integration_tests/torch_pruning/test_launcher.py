"""A script of the shape of torch-pruning's pipelines with SBC: by the launcher, by one more line, and by hand."""

import runpy
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from integration_tests.torch_pruning.scripts import prune
from sbc_plugin.torch_pruning import SBCPruner, get_pruner, register, unregister
from sbc_plugin.torch_pruning.__main__ import ScriptLoaders, main

SCRIPT = Path(prune.__file__)
STATE = torch.random.get_rng_state()


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    made, argv, path = torch.utils.data.DataLoader.__init__, sys.argv.copy(), sys.path.copy()
    yield
    assert (torch.utils.data.DataLoader.__init__, sys.argv, sys.path) == (made, argv, path)
    unregister()
    torch.random.set_rng_state(STATE)


def by_hand(speed_up: float) -> tuple[float, dict[str, torch.Tensor]]:
    """What the script does, with the pruner that the package's own function makes."""
    torch.manual_seed(0)
    model = prune.make_model()
    train_loader, test_loader = prune.make_loaders()
    prune.train(model, train_loader)
    prune.accuracy(model, test_loader)
    given = {"iterative_steps": 50, "pruning_ratio": 1.0, "ignored_layers": [model[-1]]}  # type: ignore[index]
    example, batches = train_loader.dataset[0][0].unsqueeze(0), list(islice(train_loader, 8))
    pruner = get_pruner("sbc", model, example, calibration_data=batches, **given)
    return prune.prune(pruner, model, example, speed_up), model.state_dict()


@pytest.mark.parametrize("speed_up", [1.5, 2.1])
def test_launcher_and_one_line_do_what_is_done_by_hand(
    speed_up: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached, expected = by_hand(speed_up)
    assert speed_up <= reached < 1.3 * speed_up
    saved, arguments = tmp_path / "saved.pt", ["--speed-up", str(speed_up), "--save", str(tmp_path / "saved.pt")]

    main([str(SCRIPT), "--method", "sbc", *arguments])
    launched = torch.load(saved, weights_only=True)
    assert "DataLoader 2 of 2 that the script made (TensorDataset, shuffled)" in capsys.readouterr().err

    line = "from itertools import islice; from sbc_plugin.torch_pruning import register; "
    line += 'register(list(islice(train_loader, 8)), in_place_of="l1")'
    after = "    train(model, train_loader)\n    example"
    longer = tmp_path / "longer.py"
    longer.write_text(SCRIPT.read_text().replace(after, f"    train(model, train_loader)\n    {line}\n    example"))
    assert len(longer.read_text().splitlines()) == len(SCRIPT.read_text().splitlines()) + 1
    monkeypatch.setattr(sys, "argv", [str(longer), "--method", "l1", *arguments])
    runpy.run_path(str(longer), run_name="__main__")
    one_line = torch.load(saved, weights_only=True)

    for found in (launched, one_line):
        assert (found["kind"], found["reached"]) == (SBCPruner.__name__, reached)
        assert expected.keys() == found["model"].keys()
        assert all(torch.equal(value, found["model"][name]) for name, value in expected.items())


@pytest.mark.parametrize("arguments", [["--method=sbc"], ["--method", "sbc", "--global-pruning"], ["--method", "l2"]])
def test_the_scripts_arguments_reach_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--in-place-of", "l2", "--sbc-batches", "3", str(SCRIPT), *arguments, "--speed-up", "1.2"])
    printed = capsys.readouterr()
    assert printed.out.startswith("l2: 1.") and "calibrates on 3 batches" in printed.err


def test_a_script_that_learns_sparsity_first_runs_too(capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("slim", "growing_reg"):
        main(["--in-place-of", method, str(SCRIPT), "--method", "sbc", "--speed-up", "1.2"])
        assert capsys.readouterr().out.startswith(f"{method}: 1.")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "sbc_plugin.torch_pruning", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_exit_codes_and_tracebacks_pass_through(tmp_path: Path) -> None:
    quick = ("--method", "sbc", "--speed-up", "1.1")
    assert run(str(SCRIPT), *quick, "--fail", "7").returncode == 7
    failing = tmp_path / "failing.py"
    failing.write_text("import sys, neighbour\nraise RuntimeError(f'mine {neighbour.NUMBER} {sys.argv[1:]}')\n")
    (tmp_path / "neighbour.py").write_text("NUMBER = 3\n")
    result = run(str(failing), "--method", "sbc", "other", "sbc.txt")
    assert result.returncode == 1 and result.stderr.endswith(
        "RuntimeError: mine 3 ['--method', 'l1', 'other', 'sbc.txt']\n"
    )
    assert "failing.py" in result.stderr


WITHOUT_LOADER = """
import torch, torch_pruning as tp
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
pruner = tp.pruner.MagnitudePruner(model, torch.rand(1, 4), importance=tp.importance.MagnitudeImportance(p=1))
pruner.step()
"""


def test_a_script_without_a_loader_ends_with_the_line_that_it_needs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_LOADER)
    with pytest.raises(SystemExit, match=r"made no DataLoader .*register\(calibration_data=..., in_place_of=.l1.\)"):
        main([str(script)])


def test_a_script_that_uses_another_method_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_LOADER)
    with pytest.raises(SystemExit, match="without a pruner of 'lamp', so SBC pruned nothing"):
        main(["--in-place-of", "lamp", str(script)])


WRONG = [["missing.py"], ["--in-place-of", "sbc", str(SCRIPT)], ["--sbc-batches", "0", str(SCRIPT)], []]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_end_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: python -m sbc_plugin.torch_pruning" in capsys.readouterr().err


def test_looking_at_a_loader_changes_no_random_number_of_the_script() -> None:
    def loaders() -> tuple[Any, Any]:
        own = torch.Generator().manual_seed(5)
        data = prune.make_data(64, 1)
        return torch.utils.data.DataLoader(data, 16), torch.utils.data.DataLoader(data, 16, shuffle=True, generator=own)

    torch.manual_seed(1)
    expected = [x for x, _ in loaders()[1]], torch.rand(3)
    torch.manual_seed(1)
    watched = ScriptLoaders(2, "l1")
    with watched.watched():
        _, shuffled = loaders()
    taken = list(watched)
    found = [x for x, _ in shuffled], torch.rand(3)
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert len(taken) == 2 and torch.equal(taken[0][0], expected[0][0])
    assert torch.equal(taken[0][0], next(iter(watched))[0])


def test_register_takes_a_loader_of_pairs() -> None:
    train_loader, _ = prune.make_loaders()
    register(train_loader, in_place_of="l1")
    model = prune.make_model().eval()
    import torch_pruning as tp

    pruner = tp.pruner.MagnitudePruner(model, torch.rand(1, 3, 8, 8), importance=tp.importance.MagnitudeImportance(p=1))
    pruner.step()
    assert model[0].out_channels == 6  # type: ignore[index]
