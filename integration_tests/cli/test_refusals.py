"""What the command line refuses before it works, what it writes first, and that any exception ends in one line."""

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy
import pytest

from integration_tests.models.nir_graphs import dense, lif
from sbc_plugin.cli import commands, parser
from sbc_plugin.cli.parser import main
from sbc_plugin.errors import CalibrationError

OWN = """
import norse.torch as norse
import torch
from torch import nn

class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(torch.diag_embed(x))

class Counted(nn.Module):
    def forward(self, x):
        return x * len(torch.nonzero(x > 0)) / x.numel()

def model(middle=None):
    torch.manual_seed(0)
    first, last = nn.Linear(5, 8), nn.Linear(8, 3)
    with torch.no_grad():
        for weight in (*first.parameters(), *last.parameters()):
            weight *= 6
    between = [] if middle is None else [middle]
    return norse.SequentialState(first, norse.LIFBoxCell(), *between, last, norse.LIFBoxCell())

def unknown():
    return model(Unknown())

def sparse():
    made = model(nn.Identity())
    made[2].register_buffer("index", torch.eye(3).to_sparse())
    return made

def odd_name():
    made = model(nn.Identity())
    made[2].register_buffer("\\ud800", torch.ones(3))
    return made

def batches():
    x = (torch.rand(20, 16, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    return [(x[:, i : i + 8], torch.arange(8) % 3) for i in range(0, 16, 8)]

def failing():
    raise RuntimeError("no such\\nfolder")

def ending():
    raise SystemExit(7)

def batches_that_fail():
    yield batches()[0]
    raise OSError(5, "Input/output error", "disk")

def batches_that_end():
    yield batches()[0]
    raise SystemExit(0)

def batches_without_memory():
    yield batches()[0]
    raise MemoryError

def flat_batches():
    return [torch.ones(5)]
"""
COMPRESS = ("compress", "own_refused:model", "--data", "own_refused:batches", "--bits", "4", "--tuning", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's own, a network and spikes."""
    (tmp_path / "own_refused.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("def f(:\n")
    (tmp_path / "own_leaving.py").write_text("raise SystemExit('bye')\n")
    nir.write(tmp_path / "model.nir", dense(lif))
    numpy.savez(tmp_path / "spikes.npz", x=numpy.ones((6, 4, 5), numpy.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_refused", "own_broken", "own_leaving"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails."""
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("sbc: ") and told.err.count("\n") == 1, told
    return told.err


def forbidden(*arguments: Any, **named: Any) -> Any:
    pytest.fail("the work began")


@pytest.mark.parametrize(
    ("source", "output", "parts"),
    [
        ("unknown", "small.nir", ["Unknown"]),
        ("unknown", "small.onnx", ["aten::", "replace the operation"]),
        ("sparse", "small.safetensors", ["2.index", "dense tensor"]),
        ("odd_name", "small.safetensors", ["is no text", "rename"]),
    ],
)
def test_a_model_that_the_file_cannot_hold_is_refused_before_the_work(
    folder: Path,
    source: str,
    output: str,
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commands, "compress_model", forbidden)
    err = failed(capfd, COMPRESS[0], f"own_refused:{source}", *COMPRESS[2:], "-o", output)
    assert all(part in err for part in parts), err
    assert not Path(output).exists()


@pytest.mark.parametrize("output", [f"{'a' * 300}.nir", f"{'a' * 240}.nir", "a\0b.nir", "model.nir/a.nir", "own.nir"])
def test_a_target_that_cannot_be_written_is_refused_before_anything_is_read(
    folder: Path, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "load_model", forbidden)
    Path("own.nir").mkdir()
    assert output[:9] in failed(capsys, *COMPRESS, "-o", output)


@pytest.mark.parametrize("report", [f"{'a' * 240}.html", "nowhere/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(
    folder: Path, report: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "load_model", forbidden)
    assert report[:9] in failed(capsys, *COMPRESS, "-o", "small.nir", "--report", report)


def test_a_page_without_the_package_that_draws_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "compress_model", forbidden)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "sbc_plugin.evaluation.plots", raising=False)
    err = failed(capsys, *COMPRESS, "-o", "small.nir", "--report", "report.html")
    assert "matplotlib; pip install 'sbc-plugin[plots]'" in err


@pytest.mark.parametrize("output", ["small.nir", "small.safetensors", "small.onnx"])
def test_what_can_be_written_is(folder: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPRESS, "-o", output]) == 0
    assert Path(output).is_file() and f"written: {output}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [CalibrationError("no spikes"), ZeroDivisionError("by\nzero"), OSError(5, "broken")])
def test_results_are_written_before_they_are_evaluated(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any, **named: Any) -> Any:
        assert Path("small.nir").is_file()
        raise error

    monkeypatch.setattr(commands, "evaluate", fails)
    err = failed(capsys, *COMPRESS, "-o", "small.nir", "--report", "report.json")
    assert "small.nir is written" in err and str(error).split()[-1] in err
    assert json.loads(Path("report.json").read_text())["evaluation"] is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("inspect", "own_refused:failing", "--data", "spikes.npz"), ["RuntimeError: no such folder", "own_refused"]),
        (("inspect", "own_refused:ending", "--data", "spikes.npz"), ["SystemExit: 7", "own_refused:ending"]),
        (("inspect", "own_broken:model", "--data", "spikes.npz"), ["SyntaxError", "own_broken"]),
        (("inspect", "own_leaving:model", "--data", "spikes.npz"), ["SystemExit: bye"]),
        (("inspect", "own_refused:model", "--data", "own_refused:batches_that_fail"), ["disk: Input/output error"]),
        (("inspect", "own_refused:model", "--data", "own_refused:batches_that_end"), ["SystemExit"]),
        (("inspect", "own_refused:model", "--data", "own_refused:batches_without_memory"), ["memory", "--limit"]),
        (("inspect", "own_refused:model", "--data", "own_refused:flat_batches", "--limit", "2"), ["--debug shows"]),
        (("inspect", "model.nir", "--threads", "0"), ["--threads 0"]),
        (("inspect", "model.nir", "--threads", "-3"), ["--threads -3"]),
        (("inspect", "model.nir", "--dt", "nan"), ["nan"]),
        (("inspect", "model.nir", "--dt", "-1"), ["dt"]),
        (("inspect", "model.nir", "--max-bytes", "-1"), ["max_bytes=-1"]),
        (("report", "deep.json", "-o", "page.html"), ["deep.json"]),
        (("report", "odd.json", "-o", "page.html"), ["odd.json"]),
        (("report", "own.nir", "-o", "page.html"), ["own.nir"]),
    ],
)
def test_any_exception_is_one_line(
    folder: Path, arguments: tuple[str, ...], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("deep.json").write_text("[" * 100_000)
    Path("odd.json").write_text('{"report": {"format": 1, "settings": [], "layers": 3, "skipped": 1}}')
    Path("own.nir").mkdir()
    err = failed(capsys, *arguments)
    assert all(part in err for part in parts), err


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, AssertionError, ArithmeticError, TypeError])
def test_an_exception_that_nobody_foresaw_is_one_line_and_debug_shows_the_rest(
    folder: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any, **named: Any) -> Any:
        raise error("one\ntwo " + "x" * 10_000)

    monkeypatch.setattr(commands, "inspect_model", fails)
    err = failed(capsys, "inspect", "model.nir", "--data", "spikes.npz")
    assert f"unexpected {error.__name__}" in err and "--debug" in err and len(err) < 600
    assert main(["inspect", "model.nir", "--data", "spikes.npz", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(folder: Path) -> None:
    script = (
        "from sbc_plugin.cli import commands, parser\n"
        "commands.inspect_model = lambda *a, **k: 'layer \\ud800 of \\u4e2d'\n"
        "raise SystemExit(parser.main(['inspect', 'model.nir', '--data', 'spikes.npz']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(parser.__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "layer \\ud800 of \\u4e2d\n"


HIDDEN = {
    "nir": ("nir", "norse", "import sbc_plugin.nir"),
    "h5py": ("h5py", "norse", "import sbc_plugin.nir"),
    "norse": ("norse", "norse", "import sbc_plugin.norse"),
    "nirtorch": ("nirtorch", "norse", "import sbc_plugin.norse"),
    "norse for the demo": ("norse", "norse", "import sbc_plugin.demo.network"),
    "sklearn": ("sklearn", "demo", "import sbc_plugin.demo.run"),
    "brevitas": ("brevitas", "brevitas", "from sbc_plugin.brevitas import sbc_mode"),
    "onnx": ("onnx", "onnx", "import sbc_plugin.brevitas.onnx_graph"),
    "torch_pruning": ("torch_pruning", "torch-pruning", "from sbc_plugin.torch_pruning import get_pruner"),
    "neurobench": ("neurobench", "neurobench", "import sbc_plugin.neurobench"),
    "matplotlib": (
        "matplotlib",
        "plots",
        "import sbc_plugin.evaluation.plots",
    ),
    "brevitas as a back end": (
        "brevitas",
        "brevitas",
        "from sbc_plugin.compression.backends import backend_called; backend_called('brevitas')",
    ),
    "onnx at the call": (
        "onnx",
        "onnx",
        "from sbc_plugin.brevitas import export_onnx; export_onnx(None, 'a.onnx', None)",
    ),
}


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(hidden: str) -> None:
    package, extra, code = HIDDEN[hidden]
    script = (
        f"import sys, warnings; warnings.simplefilter('ignore'); sys.modules[{package!r}] = None\n"
        "from sbc_plugin.errors import CompressionError\n"
        f"try:\n    exec({code!r})\nexcept CompressionError as error:\n    print(type(error).__name__, error)\n"
        f"    assert isinstance(error, ImportError) or type(error).__name__ == 'SettingsError'\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert package in result.stdout and f"pip install 'sbc-plugin[{extra}]'" in result.stdout, result.stdout


def test_what_imports_one_package_is_not_disturbed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of a package that is installed, but too old to have it, asks for a newer one."""
    original: Callable[..., Any] = builtins.__import__

    def old(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torch.nowhere":
            raise ModuleNotFoundError("No module named 'torch.nowhere'", name="torch.nowhere")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", old)
    from sbc_plugin.errors import MissingPackageError, extra

    wanted = r"installed torch has no torch.nowhere; pip install --upgrade"
    with pytest.raises(MissingPackageError, match=wanted), extra("norse"):
        import torch.nowhere  # noqa: F401
